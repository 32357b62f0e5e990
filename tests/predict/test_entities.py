"""Named entities from data to `transformers`: trained, evaluated, found in texts, and handed over with the same answers."""

import json

import numpy as np
import pytest
import transformers

import mmjax
from mmjax.cli import main
from mmjax.convert import load_tagger
from mmjax.core.errors import UserError
from mmjax.data import BPE, Conll, Data, Pretrained, Tags, WordPiece
from mmjax.evaluate import Entities
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import TokenClassifier
from mmjax.objectives import Classification
from mmjax.predict.entities import grouped
from mmjax.train import AdamW, Experiment, Log, Task, train

NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
SIZE = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}
PEOPLE, PLACES = ("Anna", "Otto", "Mia Berg", "Ida Roth"), ("Rome", "Oslo", "New York", "Bad Ems")
TEXTS = ["Anna lives in New York. Otto lives in Rome.", "Nobody left", "Mia Berg met Ida in Bad Ems"]


def sentences():
    """40 of them in CoNLL's format."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(40):
        who, where = PEOPLE[rng.integers(4)], PLACES[rng.integers(4)]
        for kind, text in (("PER", who), ("", "lives in"), ("LOC", where), ("", ".")):
            for n, word in enumerate(text.split()):
                lines.append(f"{word} X {'BI'[n > 0]}-{kind}" if kind else f"{word} X O")
        lines.append("")
    return "\n".join(lines)


def experiment(folder, model, tokenizer, steps, **changes):
    (folder / "train.conll").write_text(sentences())
    data = Data(Conll(str(folder / "train.conll")), (), {"tags": Tags(label_all=True)}, batch_size=8, max_length=16, threads=0)
    return Experiment(
        model=model,
        tokenizer=tokenizer,
        data={"train": data, "validation": data},
        tasks={"tags": Task(Classification(head="token_classes", label="tags"), data="train")},
        evaluate={"entities": Entities(), "strict": Entities(mode="strict")},
        optimizer=AdamW(learning_rate=2e-2, schedule="constant", warmup_steps=0),
        steps=steps,
        log=Log(every=steps, tensorboard=False, progress=False),
        **changes,
    )


def of_own():
    """As a BertForTokenClassification is."""
    text = TextTransformer(vocab_size=90, max_length=16, norm_placement="post", embed_norm=True, segments=2, **SIZE)
    return Multimodal(encoders={"text": text}, heads={"token_classes": TokenClassifier(classes=5, transform=False)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    made = experiment(folder, of_own(), WordPiece(90, lowercase=False), 40)
    metrics = train(made, folder / "run")
    return folder / "run", metrics


def pipeline(folder):
    return transformers.pipeline("token-classification", str(folder), aggregation_strategy="simple", device="cpu")


def assert_same(theirs, ours):
    assert len(theirs) == len(ours)
    for one, other in zip(theirs, ours, strict=True):
        assert (one["entity_group"], one["start"], one["end"]) == (other["type"], other["start"], other["end"])
        assert float(one["score"]) == pytest.approx(other["score"], rel=1e-4)


def test_it_learns_and_is_evaluated(run):
    folder, metrics = run
    assert metrics["entities/f1"] == metrics["strict/f1"] == 1.0 and metrics["entities/f1/LOC"] == 1.0
    assert metrics["entities/lost"] == 0.0
    ask = mmjax.Predictor(folder)
    assert ask.work.classes == {"token_classes": NAMES} and ask.tags() and not ask.classifies()


def test_entities_of_a_text_by_the_command(run, capsys):
    assert main(["predict", str(run[0]), *TEXTS[:2], "--text"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert second == {"text": "Nobody left", "entities": second["entities"]} and first["text"] == TEXTS[0]
    assert [one["text"] for one in first["entities"]][:2] == ["Anna", "New York"]
    for one in first["entities"]:
        assert TEXTS[0][one["start"] : one["end"]] == one["text"] and 0 < one["score"] <= 1
    assert {one["type"] for one in first["entities"]} == {"PER", "LOC"}


def test_transformers_finds_the_same_in_what_is_handed_over(run, tmp_path, capsys):
    folder, ask = tmp_path / "hf", mmjax.Predictor(run[0])
    assert main(["convert", "to-hf", str(run[0]), str(folder)]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"] and [config["id2label"][str(n)] for n in range(5)] == [
        *NAMES
    ]
    found = ask.entities(TEXTS)
    assert sum(map(len, found)) > 4
    for theirs, ours in zip(pipeline(folder)(TEXTS), found, strict=True):
        assert_same(theirs, ours)
    back = tmp_path / "back"
    assert main(["convert", "from-hf", str(folder), str(back)]) == 0
    for path in (folder, back):
        again = mmjax.Predictor(path)
        assert again.work.classes == {"token_classes": NAMES} and again.tags()
        for ours, other in zip(found, again.entities(TEXTS), strict=True):
            assert [one | {"score": 0} for one in other] == [one | {"score": 0} for one in ours]
            assert [one["score"] for one in other] == pytest.approx([one["score"] for one in ours], rel=1e-5)


def test_a_roberta_goes_there_and_back(tmp_path):
    own = BPE(300).train([" ".join(PEOPLE + PLACES), " lives in."])
    own.huggingface.backend_tokenizer.model.save(str(tmp_path))
    files = {"vocab": str(tmp_path / "vocab.json"), "merges": str(tmp_path / "merges.txt")}
    special = {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[PAD]", "mask_token": "[MASK]"}
    tokenizer = transformers.RobertaTokenizerFast(**files, **special, cls_token="[CLS]", sep_token="[SEP]")
    widths = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 40}
    transformers.RobertaModel(transformers.RobertaConfig(**widths, **ids)).save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "start")]) == 0
    start = {"init_from": str(tmp_path / "start"), "init_fresh": ("heads_token_classes/*",)}
    model = load_tagger(tmp_path / "start", 5)
    metrics = train(experiment(tmp_path, model, Pretrained(str(tmp_path / "hf")), 30, **start), tmp_path / "run")
    assert metrics["entities/f1"] > 0.5
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["RobertaForTokenClassification"] and [config["id2label"][str(n)] for n in range(5)] == [
        *NAMES
    ]
    found = mmjax.Predictor(tmp_path / "run").entities(TEXTS)
    assert sum(map(len, found)) > 3
    for theirs, ours in zip(pipeline(tmp_path / "out")(TEXTS), found, strict=True):
        assert_same(theirs, ours)


def test_tokens_are_grouped_by_type_until_one_begins_anew():
    names = ("O", "B-A", "I-A", "E-A", "S-A", "thing")
    text = "one two  three four five six"
    places = np.array([[-1, -1], [0, 3], [3, 7], [9, 14], [14, 19], [19, 24], [24, 28], [-1, -1]])

    def of(*tags, score=0.5):
        shares = np.full((8, 6), (1 - score) / 5)
        for place, tag in enumerate(tags):
            shares[place + 1, names.index(tag)] = score
        return [(one["type"], one["text"], one["start"]) for one in grouped(text, shares, places, names)]

    assert of("B-A", "I-A", "O", "I-A", "B-A", "O") == [("A", "one two", 0), ("A", "four", 15), ("A", "five", 20)]
    four = [("A", "one two", 0), ("A", "three", 9), ("A", "four", 15), ("A", "five six", 20)]
    assert of("B-A", "E-A", "E-A", "S-A", "I-A", "I-A") == four
    assert of("thing", "thing", "O", "O", "I-A", "thing") == [("thing", "one two", 0), ("A", "five", 20), ("thing", "six", 25)]
    shares = np.full((8, 6), 0.0)
    shares[:, 0], shares[1, 1:3], shares[2, 2] = 0.1, (0.9, 0.1), 0.6
    (one,) = grouped(text, shares, places, names)
    assert one["score"] == pytest.approx(0.75) and one["end"] == 7


def test_what_has_no_head_of_tags_says_so(run):
    ask = mmjax.Predictor(run[0])
    with pytest.raises(UserError, match="head='classes': heads that tag are token_classes"):
        ask.entities("a", head="classes")
    with pytest.raises(UserError, match="no head classifies"):
        ask.classify(texts="Anna")


def test_a_text_that_is_cut_is_said(run, caplog):
    (found,) = mmjax.Predictor(run[0]).entities("Anna lives in Rome . " * 6)
    assert "1 of 1 texts were cut to 16 tokens" in caplog.text and found[0]["text"] == "Anna"
