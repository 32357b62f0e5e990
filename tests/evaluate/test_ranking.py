"""Candidates ranked by a real decoder on eight devices, against one candidate and one record at a time."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.core.errors import UserError
from mmjax.data import Class, Data, Manifest, Text, WordPiece
from mmjax.evaluate import Ranking
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.forward import BoundForward
from mmjax.objectives import CausalLM
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import Task, train
from mmjax.train.run import Run
from mmjax.train.setup import set_up

COLOURS = ("red", "green", "blue", "light blue", "dark red", "white")


def prepared(e, spread=3.0):
    """(setup, parameters) on eight devices; parameters so large that no two candidates are alike."""
    built = Mesh(data=2, fsdp=4).build()
    with use_mesh(built):
        setup = set_up(e, Run("nowhere"), built)
        return setup, jax.tree.map(lambda x: x * (spread if x.ndim > 1 else 1.0), setup.evaluated(setup.init()))


def ranked(setup, params, spec):
    """(metrics, examples)."""
    with use_mesh(setup.mesh):
        evaluation = setup.evaluation()
        evaluation.kept = []
        return spec(evaluation, params), evaluation.kept


def likelihoods(model, params, context=()):
    """Of `ids[start:]` after `ids[:start]`, a text at a time: (ids, start, batch) -> [B]."""

    @jax.jit
    def logs_of(batch, ids_1T):
        forward, size = BoundForward(model, params, batch), len(next(iter(batch.values())))
        inputs = {"text": jnp.tile(ids_1T, (size, 1)), "text_mask": jnp.ones((size, ids_1T.shape[1]), bool)}
        logits = forward.decode("caption", inputs, {name: forward.tokens(name) for name in context} or None)
        return jax.nn.log_softmax(logits)

    def of(ids, start, batch):
        padded = np.array([ids + [0] * (tiny.LENGTH * 2 - len(ids))], np.int32)  # nothing looks at what comes later
        if len(ids) <= tiny.LENGTH:
            padded = padded[:, : tiny.LENGTH]
        logs = np.asarray(logs_of(batch, padded), np.float64)
        return sum(logs[:, place - 1, ids[place]] for place in range(start, len(ids)))

    return of


def expected(scores, labels):
    """By hand, of [N][K] log-likelihoods."""
    places = [sorted(range(len(row)), key=lambda k: -row[k]).index(label) for row, label in zip(scores, labels, strict=True)]
    shares = [np.exp(row[label]) / np.exp(row).sum() for row, label in zip(scores, labels, strict=True)]
    return {
        "accuracy": np.mean([place == 0 for place in places]),
        "top5_accuracy": np.mean([place < 5 for place in places]),
        "mean_reciprocal_rank": np.mean([1 / (place + 1) for place in places]),
        "log_loss": -np.mean(np.log(shares)),
    }


def test_captions_of_the_classes_are_ranked_by_their_likelihood():
    whole = tiny.model()
    encoders = {"image": whole.encoders["image"]}
    model = whole.copy(encoders=encoders, fusions={}, heads={})
    e = tiny.experiment(model=model, tasks=tiny.tasks("caption"), evaluate={})
    setup, params = prepared(e)
    names, tokenizer = setup.datasets["validation"].classes, setup.tokenizer
    rows = [encoded(tokenizer, f"the number {name}.") for name in names]
    batch = {"image": next(iter(setup.datasets["validation"].epoch()))["image"]}
    of = likelihoods(model, jax.device_get(params), ("image",))
    summed = np.stack([of(row, 1, batch) for row in rows], axis=1)
    for per_token in (False, True):
        metrics, kept = ranked(setup, params, Ranking(template="the number {}.", per_token=per_token))
        scores = summed / [len(row) - 1 if per_token else 1 for row in rows]
        shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        assert len(kept) == setup.datasets["validation"].size
        assert [one["predicted"] for one in kept[:96]] == [names[k] for k in scores.argmax(axis=1)]
        np.testing.assert_allclose([one["score"] for one in kept[:96]], shares.max(axis=1), rtol=1e-4)
        assert metrics["accuracy"] == np.mean([one["label"] == one["predicted"] for one in kept])


def questions(path, count=20):
    lines = []
    for i in range(count):
        question = " ".join(["the colour of"] + ["very"] * (i % 3) + [("sky", "grass", "snow", "wine")[i % 4]])
        answer = COLOURS[i % 6]
        lines.append({"text": f"{question} {answer}", "question": question, "answer": answer if i else None})
    path.write_text("".join(json.dumps({**line, "split": "validation"}) + "\n" for line in lines))


def answering(tmp_path, evaluate=None):
    questions(tmp_path / "colours.jsonl")
    source = Manifest(str(tmp_path / "colours.jsonl"), "validation", fields={"question": "question", "answer": "answer"})
    columns = {"question": Text(max_length=16), "answer": Class(COLOURS)}
    data = Data(source, columns=columns, batch_size=8, max_length=24, threads=0)
    return tiny.experiment(
        model=Multimodal(
            encoders={}, decoders={"caption": TextDecoder(vocab_size=120, max_length=48, context=(), **tiny.SIZE)}
        ),
        data={"train": data, "validation": data},
        tokenizer=WordPiece(120),
        tasks={"caption": Task(CausalLM(context=()))},
        evaluate=evaluate or {},
        evaluate_every=0,
        steps=1,
        test_data="validation",
    )


def test_answers_are_ranked_after_each_question(tmp_path):
    """Prompts of three lengths, candidates of two; the classes are given in another order than the data's."""
    e = answering(tmp_path)
    order = COLOURS[::-1]
    setup, params = prepared(e)
    metrics, kept = ranked(setup, params, Ranking(order, prompt="question", label="answer"))
    tokenizer, of = setup.tokenizer, likelihoods(e.model, jax.device_get(params))
    scores, labels = [], []
    for index in range(1, 20):  # of the first no answer is known
        row = setup.datasets["validation"]._reader.records[index]
        prompt, one = encoded(tokenizer, row["question"])[:-1], {"valid": np.ones(1, bool)}
        scores.append([of(prompt + encoded(tokenizer, name)[1:], len(prompt), one)[0] for name in order])
        labels.append(order.index(row["answer"]))
    assert metrics == pytest.approx(expected(scores, labels), rel=1e-4)
    assert [one["index"] for one in kept] == list(range(1, 20))
    assert [one["label"] for one in kept] == [order[label] for label in labels]


def encoded(tokenizer, text):
    found = tokenizer.encode([text], 24)
    return found["ids"][0][found["mask"][0]].tolist()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="template='the number' lacks"):
        Ranking(template="the number")
    with pytest.raises(UserError, match="name each once"):
        Ranking(("a", "a"))
    for spec, message in (
        (Ranking(("red",), label="answer"), "give two or more"),
        (Ranking(("red", "pink"), label="answer"), "has the class 'green', which is not one of them"),
        (Ranking(label="colour"), "give two or more"),
        (Ranking(("a", "b"), label="colour"), "has no 'colour'"),
        (Ranking(("red " * 30, "b"), label="answer"), "is longer than 24 tokens"),
        (Ranking(COLOURS, label="answer", decoder="captoin"), "did you mean 'caption'"),
    ):
        e = dataclasses.replace(answering(tmp_path), evaluate={"mine": spec})
        with pytest.raises(UserError, match=message):
            train(e, tmp_path / "run")
