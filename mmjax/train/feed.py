"""The batches of a run's steps, in their order, on the mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mmjax.core.types import Batch
from mmjax.train.setup import Setup


class Feed:
    """Takes a batch of each stream that a step trains on. A stream advances only in the steps that take it.

    Args:
      step: how many steps are done; each stream begins where the next one finds it.
    """

    def __init__(self, setup: Setup, step: int):
        self._setup, self._step = setup, step
        self._groups = groups = setup.experiment.groups()
        self._closing = contextlib.ExitStack()
        self._streams: dict[str, Iterator[Any]] = {}
        with contextlib.ExitStack() as closing:  # those that are open are closed where another does not open
            for name in setup.experiment.task_data():
                whole, part = divmod(step, len(groups))
                taken = whole * sum(name in group for group in groups) + sum(name in group for group in groups[:part])
                self._streams[name] = setup.batches(name, taken)
                closing.callback(self._streams[name].close)  # type: ignore[attr-defined]
            self._closing = closing.pop_all()

    @property
    def group(self) -> tuple[str, ...]:
        """Names of the streams that the next step trains on."""
        return self._groups[self._step % len(self._groups)]

    def take(self) -> dict[str, Batch]:
        """The batches of the next step, by stream."""
        batches = {name: self._setup.place(next(self._streams[name])) for name in self.group}
        self._step += 1
        return batches

    def close(self) -> None:
        """End the threads and processes that read."""
        self._closing.close()
