"""The hooks of a run, in their order."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from mmjax.core.errors import UserError, within
from mmjax.train.hooks.evaluation import Evaluation
from mmjax.train.hooks.figures import Figures
from mmjax.train.hooks.hook import Hook, missing
from mmjax.train.hooks.patience import Patience
from mmjax.train.hooks.profile import Profile
from mmjax.train.hooks.saving import Saving
from mmjax.train.setup import Kind
from mmjax.train.speed import Speed
from mmjax.train.training import Training


def start_hooks(training: Training, hooks: dict[str, Hook], flops: Mapping[Kind, int], profile: bool) -> Saving:
    """The hooks of every run, each after those whose work it needs; then those of the config, in its order.

    Args:
      hooks: where each is put once it is started, by what messages call it.
      flops: model FLOPs of each kind of step.

    Returns:
      The one that saves.

    Raises:
      UserError: one of the config's is no hook, or does not start.
    """
    figures = Figures(Speed(flops, jax.devices()))
    saving = Saving(figures)
    hooks |= {"figures": figures, "evaluation": Evaluation(figures), "patience": Patience(), "saving": saving}
    if profile:
        hooks["profile"] = Profile(training.run.path / "profile", training.step)
    for name, spec in training.experiment.hooks.items():
        with within(f"hooks.{name}"):
            hooks[f"hooks.{name}"] = _Named(f"hooks.{name}", spec.start(name, training), type(spec).__name__)
    return saving


class _Named(Hook):
    """A hook of the config's, whose mistakes are told with its name."""

    def __init__(self, name: str, hook: Hook, cls: str):
        if missing(hook):
            raise UserError(
                f"{cls}.start gave {type(hook).__name__}, which has no {missing(hook)}: derive it from mmjax.train.Hook"
            )
        self._name, self._hook = name, hook

    def after_step(self, step: int, training: Training) -> None:
        with within(self._name):
            self._hook.after_step(step, training)

    def at_boundary(self, step: int, training: Training) -> None:
        with within(self._name):
            self._hook.at_boundary(step, training)

    def close(self, broken_off: bool) -> None:
        with within(self._name):
            self._hook.close(broken_off)
