"""Hooks of a config: called at their moments, after the built-in ones, and told by their names."""

import dataclasses

import pytest
import tiny

from mmjax.core.config import from_json, to_json
from mmjax.core.draft import set_fields
from mmjax.core.errors import UserError
from mmjax.core.flags import pairs
from mmjax.evaluate import ZeroShot
from mmjax.train import Checkpoint, Hook, Norms, TimeBudget, train
from mmjax.train.hooks import HOOKS
from mmjax.train.hooks.hook import METHODS
from mmjax.train.metrics import read_lines
from mmjax.train.run import Run

pytestmark = pytest.mark.usefixtures("single")
CALLS: list[tuple] = []


@pytest.fixture(autouse=True)
def fresh():
    CALLS.clear()


class Recorder(Hook):
    def __init__(self, name, spec):
        self.name, self.spec = name, spec

    def after_step(self, step, training):
        assert training.step == step and int(training.state.step) == step
        CALLS.append((self.name, "after", step, [done for done, _ in training.done]))
        self._act("after", step, training)

    def at_boundary(self, step, training):
        saved = step in training.checkpoints.steps()
        done = {done: float(figures["loss"]) for done, figures in training.done}
        CALLS.append((self.name, "boundary", step, done, sorted(training.metrics or {}), saved))
        self._act("boundary", step, training)

    def close(self, broken_off):
        CALLS.append((self.name, "close", broken_off))
        self._act("close", 0, None)

    def _act(self, when, step, training):
        if (when, step) == (self.spec.when, self.spec.step):
            if self.spec.act == "stop":
                training.stop("enough")
            elif self.spec.act == "interrupt":
                training.interrupt("for lunch")
            else:
                raise {"user": UserError, "defect": RuntimeError}[self.spec.act]("no")


@dataclasses.dataclass(frozen=True)
class Recording:
    when: str = ""
    step: int = 0
    act: str = ""

    def start(self, name, training):
        return Recorder(name, self)


@dataclasses.dataclass(frozen=True)
class Bad:
    def start(self, name, training):
        return object()


def made(hooks, **changes):
    settings = {"steps": 4, "evaluate": {}, "checkpoint": Checkpoint(every=100), "hooks": hooks}
    return tiny.experiment(**settings | changes)


def curve(folder):
    return {line["step"]: line["loss"] for line in read_lines(folder / "metrics.jsonl") if "loss" in line}


def test_hooks_are_called_in_the_configs_order_and_see_each_step_once(tmp_path):
    evaluate = {"prompted": ZeroShot(tiny.TEMPLATES)}
    train(made({"b": Recording(), "a": Recording()}, evaluate=evaluate, evaluate_every=3), tmp_path)
    assert [call[:3] for call in CALLS[:4]] == [
        ("b", "after", 1),
        ("a", "after", 1),
        ("b", "boundary", 1),
        ("a", "boundary", 1),
    ]
    assert [call[:2] for call in CALLS[-2:]] == [("a", "close"), ("b", "close")] and not CALLS[-1][2]
    boundaries = [call for call in CALLS if call[:2] == ("b", "boundary")]
    assert [(bool(measured), saved) for *_, measured, saved in boundaries] == [(False, False)] * 2 + [(True, True)] * 2
    assert [list(done) for _, _, _, done, *_ in boundaries] == [[], [], [1, 2, 3], [4]]
    assert {step: loss for call in boundaries for step, loss in call[3].items()} == curve(tmp_path)
    assert [call[3] for call in CALLS if call[:2] == ("a", "after")] == [[], [], [1], []]


def test_a_hook_changes_nothing_that_is_computed(tmp_path):
    train(made({}), tmp_path / "without")
    train(made({"norm": Norms(every=2), "budget": TimeBudget(1e6), "mine": Recording()}), tmp_path / "with")
    assert curve(tmp_path / "with") == curve(tmp_path / "without")


@pytest.mark.parametrize("when", ["after", "boundary"])
def test_a_mistake_is_told_with_the_hooks_name(tmp_path, when):
    with pytest.raises(UserError, match=r"^hooks\.mine: no$"):
        train(made({"mine": Recording(when, 2, "user")}), tmp_path / "user")
    assert CALLS[-1] == ("mine", "close", True)
    with pytest.raises(RuntimeError, match=r"^no$"):
        train(made({"mine": Recording(when, 2, "defect")}), tmp_path / "defect")


def test_one_that_fails_to_close_keeps_nothing_else_open(tmp_path):
    made_ = made({"a": Recording(), "b": Recording("close", 0, "user")})
    with pytest.raises(UserError, match=r"^hooks\.b: no$"):
        train(made_, tmp_path)
    assert [call[:2] for call in CALLS[-2:]] == [("b", "close"), ("a", "close")]
    assert Run(tmp_path).saved_steps() == [4]  # whole: the checkpoints were closed


def test_a_hook_may_end_a_run_for_good(tmp_path, capsys):
    evaluate = {"prompted": ZeroShot(tiny.TEMPLATES)}
    metrics = train(made({"mine": Recording("boundary", 2, "stop")}, evaluate=evaluate), tmp_path)
    assert metrics and list(curve(tmp_path)) == [1, 2] and Run(tmp_path).saved_steps() == [2]
    assert "enough: stopping at step 2" in capsys.readouterr().err
    assert train(made({"mine": Recording("boundary", 2, "stop")}, evaluate=evaluate), tmp_path) == metrics
    assert "is finished: 2 steps are done" in capsys.readouterr().err
    train(made({}, evaluate=evaluate), tmp_path)  # nothing stops it now
    assert list(curve(tmp_path)) == [1, 2, 3, 4]


def test_a_hook_may_interrupt_a_run_which_then_goes_on(tmp_path, capsys):
    train(made({}), tmp_path / "whole")
    assert train(made({"mine": Recording("boundary", 2, "interrupt")}), tmp_path / "run") == {}
    assert "stopped for lunch; saved step 2; the same command goes on from there" in capsys.readouterr().err
    assert Run(tmp_path / "run").saved_steps() == [2]
    train(made({"other": Recording()}), tmp_path / "run")  # hooks may change when a run goes on
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_what_is_no_hook_is_refused_by_its_name(tmp_path):
    with pytest.raises(
        UserError, match=r"^hooks\.mine: ZeroShot has no start\(name, training\); use one of norms, time_budget"
    ):
        made({"mine": ZeroShot()}).check()
    with pytest.raises(UserError, match=r"^hooks\.loss: its figures would be called loss/\.\.\."):
        made({"loss": Recording()}).check()
    with pytest.raises(UserError, match=r"^hooks\.prompted: "):
        made({"prompted": Recording()}, evaluate={"prompted": ZeroShot()}).check()
    with pytest.raises(UserError, match=r"^hooks\.mine: Bad\.start gave object, which has no after_step: derive it from"):
        train(made({"mine": Bad()}), tmp_path)
    assert all(getattr(Hook(), name) for name in METHODS)
    assert {name: cls.__module__ for name, cls in HOOKS.items()} == {name: f"mmjax.train.hooks.{name}" for name in HOOKS}


def test_hooks_are_named_by_flags_and_come_back_from_json():
    words = f"--hooks.norm norms --hooks.norm.every 7 --hooks.mine {Recording.__module__}:Recording --hooks.mine.step 3"
    experiment = set_fields(tiny.experiment(), pairs(words.split()))
    assert experiment.hooks["norm"] == Norms(every=7) and experiment.hooks["mine"].step == 3
    assert from_json(to_json(experiment)).hooks == experiment.hooks
    with pytest.raises(
        UserError, match=r"hooks\.budget time_budget: TimeBudget needs seconds; add --hooks\.budget\.seconds FLOAT"
    ):
        set_fields(tiny.experiment(), pairs(["--hooks.budget", "time_budget"]))
