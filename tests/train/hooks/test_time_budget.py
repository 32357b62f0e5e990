"""A run whose time is used up stops saved, and goes on."""

import pytest
import tiny

from mmjax.core.config import check_ranges
from mmjax.core.errors import UserError
from mmjax.train import Checkpoint, TimeBudget, train
from mmjax.train.hooks import time_budget
from mmjax.train.run import Run

pytestmark = pytest.mark.usefixtures("single")


def made(seconds):
    hooks = {"budget": TimeBudget(seconds)}
    return tiny.experiment(steps=3, evaluate={}, checkpoint=Checkpoint(every=100), hooks=hooks)


def test_it_stops_after_its_seconds_and_goes_on_with_the_same_command(tmp_path, capsys):
    assert train(made(1e-3), tmp_path) == {}
    said = "stopped after hooks.budget.seconds=0.001; saved step 1; the same command goes on from there"
    assert said in capsys.readouterr().err and Run(tmp_path).saved_steps() == [1]
    train(made(1e-3), tmp_path)  # each call has its own budget
    assert Run(tmp_path).saved_steps() == [1, 2]
    train(made(1e6), tmp_path)
    assert Run(tmp_path).saved_steps() == [2, 3] and "stopped" not in capsys.readouterr().err.splitlines()[-1]


def test_process_0_alone_looks_at_its_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(time_budget, "is_main", lambda: False)
    train(made(1e-3), tmp_path)
    assert Run(tmp_path).saved_steps() == [3]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_seconds_that_are_none_are_refused(seconds):
    with pytest.raises(UserError, match=r"^hooks\.budget\.seconds="):
        check_ranges(made(seconds))
