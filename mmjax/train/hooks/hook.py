"""What a hook is: three moments of a run at which it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mmjax.train.training import Training


class Hook:
    """A part of a run that is called as the run goes on; each method does nothing unless it is overridden.

    All processes of a run have the same hooks and call them alike, so that a hook may compute on sharded arrays. What it raises
    ends the run; a `UserError` is told in one line, with `hooks.NAME` before it.

    Usage:

        @dataclasses.dataclass(frozen=True)
        class Drift:  # in a config: hooks={"drift": Drift(every=50)}; or --hooks.drift package.module:Drift
            every: int = 100

            def start(self, name, training):
                return Drifting(name, self.every, training.state.params)

        class Drifting(Hook):
            def at_boundary(self, step, training):
                if step % self.every == 0:
                    training.write(step, {f"{self.name}/distance": ...})
    """

    def after_step(self, step: int, training: Training) -> None:
        """Step number `step` (from 1) was handed to the devices, which may compute it for a while yet.

        To read `training.figures` or `training.state` here waits for them; to start a computation on them does not.
        `training.done` is read at once. A step may take `log.watchdog` seconds, this call included.
        """

    def at_boundary(self, step: int, training: Training) -> None:
        """Between a step and the next, after every hook's `after_step`: what is to be measured and saved there, has been.

        `training.metrics` holds what was measured, `training.done` the figures of each step that has come to its end since
        the step before: whoever reads them here, and nowhere else, sees each step once. `training.stop` and
        `training.interrupt` end the run here.
        """

    def close(self, broken_off: bool) -> None:
        """The run ends.

        Args:
          broken_off: an error ended it. Other processes may be gone then: compute nothing, wait for nothing.
        """


class HookSpec(Protocol):
    """What a config holds of a hook: a frozen dataclass of JSON-able fields."""

    def start(self, name: str, training: Training) -> Hook:
        """The hook itself; called once, before the first step that is left to do.

        Args:
          name: its name in the config, before the names of the figures that it writes: `NAME/figure`.
        """
        ...


METHODS = ("after_step", "at_boundary", "close")


def missing(hook: Any) -> str:
    """The first method of a hook that an object lacks; "" for none."""
    return next((name for name in METHODS if not callable(getattr(hook, name, None))), "")
