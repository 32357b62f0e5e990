"""Norms of the parts of a model, against numpy; on all devices that there are."""

import numpy as np
import pytest
import tiny

from mmjax.core.trees import leaves_by_path
from mmjax.train import Checkpoint, Norms, TimeBudget, train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.hooks.norms import norms
from mmjax.train.metrics import read_lines


def written(folder):
    lines = [line for line in read_lines(folder / "metrics.jsonl") if any(name.startswith("norm/") for name in line)]
    return {line.pop("step"): line for line in lines}


def test_each_part_is_the_root_of_all_its_squares():
    found = norms(
        {"a": {"x": np.full((2, 2), 3.0, np.float32), "y": {"z": np.full(7, 2.0, np.float32)}}, "b": np.float32([-4.0])}
    )
    assert {part: float(value) for part, value in found.items()} == {"a": 8.0, "b": 4.0}
    deeper = norms({"a": {"x": np.float32([3.0]), "y": {"z": np.float32([1.0]), "w": np.float32([0.0])}}}, depth=2)
    assert {part: float(value) for part, value in deeper.items()} == {"a/x": 3.0, "a/y": 1.0}


@pytest.mark.parametrize("interrupted", [False, True])
def test_they_are_those_of_the_saved_parameters(tmp_path, interrupted):
    hooks = {"norm": Norms(every=2)} | ({"budget": TimeBudget(1e-3)} if interrupted else {})
    made = tiny.experiment(steps=5, evaluate={}, checkpoint=Checkpoint(every=2, keep=9), hooks=hooks)
    for _ in range(5 if interrupted else 1):
        train(made, tmp_path)
    found = written(tmp_path)
    assert list(found) == [2, 4]
    kept = Checkpoints(tmp_path / "checkpoints", made.checkpoint, read_only=True)
    for step, line in found.items():
        leaves = leaves_by_path(kept.params(step)[0])
        for part in {path.split("/")[0] for path in leaves}:
            squares = sum(
                float(np.square(leaf, dtype=np.float64).sum()) for path, leaf in leaves.items() if path.split("/")[0] == part
            )
            assert line.pop(f"norm/{part}") == pytest.approx(squares**0.5, rel=1e-6)
        assert not line
