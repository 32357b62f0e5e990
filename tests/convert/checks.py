"""What the tests of the families share: `test_families.py`, `test_family_fields.py`, `test_family_files.py`."""

import functools

import numpy as np
import pytest
import torch
from parity import assert_close, explain

from mmjax.convert import load

TWINS = ("mt5", "hubert")  # families made by the lines of another one: their answers are compared, the rest where there is time


def each(*rows, twins=False):
    """Cases as pytest has them: what follows a case in a row is its own, and the last is named. `twins`: of all families."""
    marks = [pytest.mark.slow if row[0].model_type in TWINS and not twins else () for row in rows]
    return [
        pytest.param(*row[:-1], id="-".join((row[0].model_type, *row[-1])), marks=own)
        for row, own in zip(rows, marks, strict=True)
    ]


def said(changes):
    """A few changes, for the name of a test."""
    return ",".join(f"{name.split('.')[-1]}={value}" for name, value in list(changes.items())[:3])


def plain(answers):
    """Answers as NumPy has them."""
    return {name: np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for name, x in answers.items()}


@functools.cache
def expected(case, made):
    """A HuggingFace model, a batch, and its answers."""
    model = case.make(made)
    batch = case.batch(model)
    with torch.no_grad():
        return model, batch, plain(case.theirs(made, model, batch))


def counting(case, batch, answers):
    """What counts of each answer, of the first T places where there are more."""
    found = {}
    for name, value in answers.items():
        where = case.real(name, batch, value.shape[1] if value.ndim > 1 else 0)
        found[name] = np.asarray(value if where is None else np.asarray(value)[:, : where.shape[1]][where])
    return found


def check_folder(case, folder, batch, answers):
    """Our model of a folder gives these answers; the model."""
    model, params = load(folder)
    check_answers(case, model, params, batch, answers)
    return model, params


def check_answers(case, model, params, batch, answers):
    """Our model gives these answers."""
    ours = counting(case, batch, case.ours(model, params, batch, tuple(answers)))
    for name, value in counting(case, batch, answers).items():
        with explain(name):
            assert_close(ours[name], value)


def differ(case, batch, one, other):
    """Whether any answer is another one."""
    ours, theirs = counting(case, batch, one), counting(case, batch, other)
    return any(ours[n].shape != x.shape or np.abs(ours[n] - x).max() > 1e-4 * np.abs(x).max() for n, x in theirs.items())


def weighted_sum(case, made, hf, batch):
    """A loss of their answers, those that count, and the weights that it sums them by."""
    answers, rng = case.theirs(made, hf, batch), np.random.default_rng(0)
    weights = {name: rng.normal(size=tuple(x.shape)).astype(np.float32) for name, x in answers.items()}
    for name, x in answers.items():
        where = case.real(name, batch, x.shape[1])
        if where is not None:
            weights[name] = (weights[name][:, : where.shape[1]].T * where.T).T
    their_loss = sum((answers[n][:, : w.shape[1]] * torch.tensor(w)).sum() for n, w in weights.items())
    return their_loss, weights
