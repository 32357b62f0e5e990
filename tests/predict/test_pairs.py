"""Texts in pairs, with marked entities and with several labels: asked, cut and handed over as a pipeline of `transformers`."""

import json

import jax
import numpy as np
import pytest
import transformers

import mmjax
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Classes, Data, Manifest, Markers, WordPiece
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification, MultiLabel
from mmjax.parallel.mesh import Mesh
from mmjax.train import AdamW, Experiment, Log, Task, train

NAMES, COLOURS, LENGTH = ("no", "so", "yes"), ("red", "blue"), 16
TOKENS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
TEXTS = ["a red three top left", "a blue zero", "a red three and a blue zero and a red one bottom right"]
PAIRS = ["the three is red", "the three is red and the one is blue and so is it", "it is"]


def lines(count=24):
    for n in range(count):
        text = TEXTS[n % 3]
        about = {"label": NAMES[n % 3], "labels": [one for one in COLOURS if one in text], "split": "train"}
        yield {"text": text, "text_pair": PAIRS[n % 2], "head": [2, 6], "tail": [7, 11], **about}


def trained(folder, kind):
    """A run of a few steps, and the classes of its head."""
    kept = {
        "pairs": ("text", "text_pair", "label"),
        "marked": ("text", "label", "head", "tail"),
        "several": ("text", "labels"),
    }[kind]
    rows = [{key: row[key] for key in (*kept, "split")} for row in lines()]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {key: key for key in kept if key in ("labels", "head", "tail")}
    columns = {"labels": Classes(COLOURS)} if kind == "several" else {}
    transforms = (Markers(),) if kind == "marked" else ()
    data = Data(Manifest(str(file), fields=fields), transforms, columns, batch_size=8, max_length=LENGTH, threads=0)
    size = {"vocab_size": 90, "max_length": LENGTH, "width": 32, "depth": 1, "heads": 2, "mlp_width": 64}
    text = TextTransformer(norm_placement="post", embed_norm=True, segments=2, **size)
    count = len(COLOURS if kind == "several" else NAMES)
    head = Classifier(classes=count, input="text", pool="cls", hidden_width=32)
    experiment = Experiment(
        model=Multimodal(encoders={"text": text}, heads={"classes": head}),
        tokenizer=WordPiece(90, special=TOKENS if kind == "marked" else ()),
        data={"train": data},
        tasks={"classes": Task(MultiLabel() if kind == "several" else Classification())},
        optimizer=AdamW(learning_rate=1e-2, schedule="constant", warmup_steps=0),
        steps=6,
        log=Log(every=6, tensorboard=False, progress=False),
    )
    train(experiment, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Kind -> the run and the folder that is handed over."""
    found, build = {}, Mesh.build
    with pytest.MonkeyPatch.context() as patch:  # one device, and no passes of optimization: two thirds less to compile
        patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
        jax.config.update("jax_disable_most_optimizations", True)
        for kind in ("pairs", "marked", "several"):
            folder = tmp_path_factory.mktemp(kind)
            run = trained(folder, kind)
            assert main(["convert", "to-hf", str(run), str(folder / "hf")]) == 0
            found[kind] = run, folder / "hf"
    jax.config.update("jax_disable_most_optimizations", False)
    return found


def assert_same(ours, theirs):
    assert [one["label"] for one in ours] == [one["label"] for one in theirs]
    np.testing.assert_allclose([one["score"] for one in ours], [one["score"] for one in theirs], rtol=1e-4)


def test_pairs_answer_as_the_pipeline_does(runs):
    run, folder = runs["pairs"]
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    assert type(pipe.model).__name__ == "BertForSequenceClassification" and set(pipe.model.config.label2id) == set(NAMES)
    found = mmjax.Predictor(run).classify(texts=TEXTS, pairs=PAIRS, top_k=0)
    for text, pair, ours in zip(TEXTS, PAIRS, found, strict=True):
        assert_same(ours, pipe({"text": text, "text_pair": pair}, top_k=None, truncation="longest_first"))
    # The second makes a difference, and what is too long is cut as it is there: of the longer one.
    assert mmjax.Predictor(run).classify(texts=TEXTS[0], pairs="a blue zero", top_k=0) != found[:1]
    batch = mmjax.Predictor(run).work.texts(TEXTS, PAIRS)
    for n, cut in enumerate((False, True, True)):
        theirs = pipe.tokenizer(TEXTS[n], PAIRS[n], truncation=True, max_length=LENGTH)["input_ids"]
        assert batch[0]["ids"][n, : len(theirs)].tolist() == theirs and batch[1][n] == cut


def test_pairs_by_the_command(runs, tmp_path, capsys):
    run = str(runs["pairs"][0])
    file = tmp_path / "pairs.tsv"
    file.write_text("text\ttext_pair\n" + "".join(f"{text}\t{pair}\n" for text, pair in zip(TEXTS, PAIRS, strict=True)))
    assert main(["predict", run, str(file), "--text", "--top_k", "1"]) == 0
    found = list(map(json.loads, capsys.readouterr().out.splitlines()))
    asked = mmjax.Predictor(run).classify(texts=TEXTS, pairs=PAIRS, top_k=1)
    assert [(one["text"], one["text_pair"]) for one in found] == list(zip(TEXTS, PAIRS, strict=True))
    for one, (own,) in zip(found, asked, strict=True):
        assert one["classes"][0]["label"] == own["label"]
    assert main(["predict", run, TEXTS[0], "--text", "--pair", PAIRS[0], "--top_k", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"][0]["label"] == asked[0][0]["label"]
    for words, said in (
        ([TEXTS[0], "--text"], "was trained on two texts at once: give the second (--pair, or 'text_pair' in a manifest)"),
        ([TEXTS[0], "--text", "--question", "who?"], "finds no answers in passages: --question is asked of images here"),
        ([TEXTS[0]], f"{run} reads texts, and neither images, sounds nor videos: add --text"),
        ([str(file)], f"{run} reads texts, and neither images, sounds nor videos: add --text"),
        ([TEXTS[0], "--pair", "a"], "--pair is the second of two texts: give --text, and no --question"),
    ):
        assert main(["predict", run, *words]) == 2
        assert said in capsys.readouterr().err
    file = tmp_path / "pairs.jsonl"  # an empty second text is one, as in training
    file.write_text('{"text": "a", "text_pair": "b"}\n{"text": "a", "text_pair": ""}\n')
    assert main(["predict", run, str(file), "--text"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    file.write_text('{"text": "a", "text_pair": "b"}\n{"text": "c"}\n')
    assert main(["predict", run, str(file), "--text"]) == 2
    assert "c: it has no 'text_pair', and others have" in capsys.readouterr().err


def test_marked_entities_answer_as_the_pipeline_does(runs):
    run, folder = runs["marked"]
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    text = "[E1] a red [/E1] [E2] three [/E2] top"
    assert [one for one in pipe.tokenizer.tokenize(text) if one.startswith("[")] == list(TOKENS)
    (found,) = mmjax.Predictor(run).classify(texts=text, top_k=0)
    assert_same(found, pipe(text, top_k=None))
    with pytest.raises(UserError, match="was trained on one text at a time: leave the second out"):
        mmjax.Predictor(run).classify(texts="a", pairs="b")
    with pytest.raises(UserError, match="1 texts and 2 pairs: give as many of both"):
        mmjax.Predictor(run).classify(texts="a", pairs=["b", "c"])


def test_several_labels_answer_as_the_pipeline_does(runs):
    run, folder = runs["several"]
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "multi_label_classification"
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    found = mmjax.Predictor(run).classify(texts=TEXTS, top_k=0)
    for ours, theirs in zip(found, pipe(TEXTS), strict=True):
        assert_same(ours, theirs)
    assert any(abs(sum(one["score"] for one in own) - 1) > 0.01 for own in found)
