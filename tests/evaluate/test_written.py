"""Texts that an evaluator has written, of real runs on eight devices: those of `mmjax.Predictor`, and their scores."""

import dataclasses
import json
import logging
import sys

import numpy as np
import pytest
import tiny

import mmjax
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Data, Digits, Manifest, Strings, Text, WordPiece
from mmjax.evaluate import Answers, Captions
from mmjax.evaluate.texts import bleu, cider_d, exact_match, f1, rouge_l, vqa_accuracy
from mmjax.generate import Settings
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.objectives import CausalLM
from mmjax.parallel.mesh import Mesh
from mmjax.train import Checkpoint, Task, train
from mmjax.train.evaluate import evaluate_run

SHORT = Settings(max_new_tokens=6)


def told(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """(folder, final metrics, what was said) of a run that captions digits, its parameters split over four devices."""
    folder, said = tmp_path_factory.mktemp("written") / "run", []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("mmjax").addHandler(handler)
    level = logging.getLogger("mmjax").level
    logging.getLogger("mmjax").setLevel(logging.INFO)
    spec = Checkpoint(every=20, best="captions/cider_d")
    metrics = train(tiny.captioner(steps=20, evaluate_every=20, mesh=Mesh(data=2, fsdp=4), checkpoint=spec), folder)
    logging.getLogger("mmjax").removeHandler(handler)
    logging.getLogger("mmjax").setLevel(level)
    return folder, metrics, said


def test_the_texts_are_those_of_the_predictor_and_the_scores_those_of_the_texts(captioned):
    folder, metrics, _ = captioned
    found = told(folder / "predictions.jsonl")
    assert [one["index"] for one in found] == list(range(360)) and {one["data"] for one in found} == {"test"}
    records = Digits("test").build()
    written = mmjax.Predictor(folder).generate(images=[records[i]["image"] for i in range(60)], max_new_tokens=6)
    assert [one["text"] for one in found[:60]] == written
    texts, references = [one["text"] for one in found], [one["references"] for one in found]
    assert {len(own) for own in references} == {1} and len({own[0] for own in references}) == 20
    expected = {f"bleu{n}": score for n, score in enumerate(bleu(texts, references), 1)}
    expected |= {"rouge_l": np.mean(rouge_l(texts, references)), "cider_d": np.mean(cider_d(texts, references))}
    assert {name: metrics[f"captions/{name}"] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert 1 <= metrics["captions/tokens"] <= 6 and 0 <= metrics["captions/cut"] <= 1


def test_while_training_a_share_is_asked_and_some_texts_are_logged(captioned):
    folder, metrics, said = captioned
    (line,) = [line for line in told(folder / "metrics.jsonl") if "captions/cider_d" in line]
    assert line["captions/cider_d"] != metrics["captions/cider_d"]
    samples = [one for one in said if one.startswith("captions of data.validation, record ")]
    assert len(samples) == 3 and all("people: '" in one for one in samples)
    records = [int(one.split("record ")[1].split(":")[0]) for one in samples]
    assert records == [0, 1, 2]


def test_evaluating_again_with_flags_and_on_one_device(captioned, monkeypatch, capsys, tmp_path):
    folder, metrics, _ = captioned
    tiny.single_device(monkeypatch)
    again = evaluate_run(folder, flags=["--mesh.data", "1", "--mesh.fsdp", "1"], predictions=tmp_path / "again.jsonl")
    assert {name: again[name] for name in metrics} == pytest.approx(metrics, abs=1e-6)
    before = told(folder / "predictions.jsonl")
    assert [one["text"] for one in told(tmp_path / "again.jsonl")] == [one["text"] for one in before]
    flags = ["--evaluate.captions.settings.max_new_tokens", "1", "--evaluate.captions.scores", "bleu"]
    assert main(["evaluate", str(folder), *flags, "--mesh.data", "1", "--mesh.fsdp", "1"]) == 0
    short = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert short["captions/tokens"] == 1.0 and "captions/rouge_l" not in short
    with pytest.raises(UserError, match=r"share_in_training 0\.5: evaluation asks the whole"):
        evaluate_run(folder, flags=["--evaluate.captions.share_in_training", "0.5"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Captions(references="refs"), "data='validation' has no 'refs', which texts are held against"),
        (Captions(references="text"), "references='text' is no column of Strings in data.validation"),
        (Captions(prompt="question"), "data='validation' has no 'question', which this evaluation needs"),
        (Captions(prompt="text"), r"max_new_tokens=20 and a prompt of 12 tokens do not fit into .*max_length=12"),
        (Captions(decoder="captoin", settings=SHORT), "there is no 'captoin' .did you mean 'caption'"),
        (Captions(text="title", settings=SHORT), "tokenizer=None: captions reads title"),
        (Captions(settings=Settings(max_new_tokens=12)), "max_new_tokens=12 and a prompt of 1 tokens do not fit"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_compiled(tmp_path, spec, message):
    with pytest.raises(UserError, match=message) as raised:
        train(dataclasses.replace(tiny.captioner(steps=1), evaluate={"mine": spec}), tmp_path)
    assert str(raised.value).startswith("evaluate.mine: ")


def test_a_stop_string_ends_a_text_and_is_no_cut(captioned, tmp_path, capsys):
    folder, _, _ = captioned
    before, out = [one["text"] for one in told(folder / "predictions.jsonl")], tmp_path / "all.jsonl"
    word = before[0].split()[0]
    stop = ["--evaluate.captions.settings.stop_strings", word, "--predictions", str(out)]
    assert main(["evaluate", str(folder), *stop]) == 0
    wanted = [text[: text.index(word) + len(word)] if word in text else text for text in before]
    assert [one["text"] for one in told(out)] == wanted and wanted != before
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["captions/cut"] < 1


def test_scores_that_there_are_not(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="num_return_sequences=2: one text an example is scored"):
        Captions(settings=Settings(num_beams=2, num_return_sequences=2))
    with pytest.raises(UserError, match=r"scores has 'cider'.*there are bleu, rouge_l, cider_d"):
        Captions(scores=("cider",))
    with pytest.raises(UserError, match=r"scores=\(\): name some of"):
        Answers(scores=())
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError, match=r"evaluate.mine: jiwer is not installed"):
        train(
            dataclasses.replace(tiny.captioner(steps=1), evaluate={"mine": Captions(settings=SHORT, scores=("error_rates",))}),
            tmp_path,
        )


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


def asked(path):
    """Sums and what ten people say they are; of one nobody has said anything."""
    lines = []
    for i in range(48):
        a, b = i % 4, i // 4 % 4
        question, answer = f"what is {NUMBERS[a]} plus {NUMBERS[b]}", NUMBERS[a + b]
        people = [answer, answer.upper(), f"the {answer}."] * 3 + ["none"]
        split = ("train", "validation")[i >= 28]
        line = {"text": f"{question} {answer}", "question": question, "answers": people, "split": split}
        lines.append(line | ({"answers": []} if i == 47 else {}))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """(folder, final metrics) of a language model that goes on with questions."""
    home = tmp_path_factory.mktemp("answers")
    asked(home / "sums.jsonl")

    def data(split):
        source = Manifest(str(home / "sums.jsonl"), split, fields={"question": "question", "answers": "answers"})
        columns = {"question": Text(max_length=10), "answers": Strings(rows=10, length=24)}
        return Data(source, columns=columns, batch_size=8, max_length=12, threads=0)

    e = tiny.experiment(
        model=Multimodal(encoders={}, decoders={"caption": TextDecoder(vocab_size=64, max_length=16, context=(), **tiny.SIZE)}),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=WordPiece(64),
        tasks={"caption": Task(CausalLM(context=()))},
        steps=30,
        evaluate={"answers": Answers(prompt="question", settings=Settings(max_new_tokens=3))},
        evaluate_every=0,
        test_data="validation",
    )
    return home / "run", train(e, home / "run")


def test_answers_go_on_with_the_question(answered):
    folder, metrics = answered
    found = told(folder / "predictions.jsonl")
    assert len(found) == 19 and found[-1]["index"] == 18  # of the last nobody has said anything
    assert found[0]["prompt"] == "what is zero plus three" and len(found[0]["references"]) == 10
    written = mmjax.Predictor(folder).generate(prompts=[one["prompt"] for one in found], max_new_tokens=3)
    assert [one["text"] for one in found] == written
    texts, references = [one["text"] for one in found], [one["references"] for one in found]
    for name, score in (("vqa_accuracy", vqa_accuracy), ("exact_match", exact_match), ("f1", f1)):
        assert metrics[f"answers/{name}"] == pytest.approx(np.mean(score(texts, references)), abs=1e-9)
