"""A run that is being trained, as the loop moves it and its hooks see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax.core.config import to_json
from mmjax.core.types import Batch
from mmjax.parallel.multihost import processes
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.finish import data_troubles
from mmjax.train.init_from import first_state
from mmjax.train.local import LocalCheckpoints
from mmjax.train.metrics import MetricWriter, Quiet, open_writer
from mmjax.train.run import Run
from mmjax.train.setup import Kind, Setup
from mmjax.train.state import State
from mmjax.train.streams import go_on


class Training:
    """One call of `train`: the host's side of a run. Hooks read all of it, and ask it to write, to say, and to stop.

    Attributes:
      setup, run: what is trained, and its folder.
      experiment, config: `setup.experiment`, and the same as JSON.
      began: `time.monotonic()` when `train` was called.
      checkpoints, local: of the run folder; of this host's disk, or None.
      evaluation: what evaluators are handed.
      step: how many steps were started, those of earlier calls included.
      state: after them. The next step takes its arrays over: copy what is to be kept.
      group, examples: names of the streams of the last step, and how many examples it took.
      kind: what the last step was compiled for: its group, and the tokens of its texts.
      figures: of the last step: [] float32 by name (`loss`, `loss/TASK`, `gradient_norm`, ...); reading one waits for it.
      done: (step, figures) of the steps that have come to their end since the one before was started, usually the last but
        two; reading these waits for nothing.
      metrics: `evaluator/metric` -> value, measured after this very step; None where nothing was.
      stopping: whether the run ends after this step for good.
      interrupted: why it is to stop for now; "" for no reason of its own.
    """

    def __init__(self, setup: Setup, run: Run, notes: list[str], began: float):
        self.setup, self.experiment, self.run, self.began = setup, setup.experiment, run, began
        self._notes = notes
        self._writer: MetricWriter | Quiet | None = None
        e = self.experiment
        self.checkpoints = Checkpoints(run.checkpoints, e.checkpoint, self.say, trained=setup.trained())
        self.config = to_json(e)
        self.local = self._local()
        self.evaluation = setup.evaluation()
        go_on(setup, run)
        self.state, self.step = self._start()
        self.kind: Kind = ((), ())
        self.examples = 0
        self.figures: Mapping[str, jax.Array] = {}
        self.done: list[tuple[int, Mapping[str, jax.Array]]] = []
        self.metrics: dict[str, float] | None = None
        self.stopping, self.interrupted = False, ""
        self._writer = open_writer(run.path, e.log, self.step, e.steps, self.config, run.identity())
        for note in self._notes:
            self._writer.say(note)

    @property
    def last(self) -> bool:
        """Whether the step at hand is the experiment's last."""
        return self.step == self.experiment.steps

    def say(self, text: str) -> None:
        """One line on the terminal of process 0; kept back until there is one to say it on."""
        if self._writer is None:
            self._notes.append(text)
        else:
            self._writer.say(text)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """A line of metrics.jsonl, TensorBoard and Weights & Biases. Names are `NAME/figure`, with the hook's own name."""
        assert self._writer is not None
        self._writer.write(step, figures)

    def advance_bar(self, step: int, figures: Mapping[str, float]) -> None:
        """Move the progress bar to a step."""
        assert self._writer is not None
        self._writer.advance(step, figures)

    def stop(self, why: str) -> None:
        """End the run after this step, for good: saved, and evaluated as a finished run is. All processes must ask alike."""
        self.stopping = True
        self.say(f"{why}: stopping at step {self.step}")

    def interrupt(self, why: str) -> None:
        """Stop as after a signal: after this step, or with other processes a few later, the run is saved, and the same command
        goes on from there. One process may ask alone.

        Args:
          why: as in "stopped after 600 s".
        """
        self.interrupted = self.interrupted or why

    @property
    def group(self) -> tuple[str, ...]:
        return self.kind[0]

    def take(self, compiled: Callable[..., Any], kind: Kind, batches: Mapping[str, Batch]) -> None:
        """Start a step."""
        self.done, self.metrics = [], None
        self.state, self.figures = compiled(self.state, batches)
        self.step += 1
        self.kind, self.examples = kind, sum(len(batch["index"]) for batch in batches.values())

    def closings(self, broken_off: bool) -> list[tuple[str, Callable[[], None]]]:
        """What there is to close, in order: (what it is called, what does it)."""
        assert self._writer is not None
        closings: list[tuple[str, Callable[[], None]]] = [
            ("counting what the data lost", self._say_data_troubles),
            ("closing the metrics", self._writer.close),
        ]
        if not broken_off or processes() == 1:  # else to close is to wait for peers that may be gone
            closings.append(("closing the checkpoints", self.checkpoints.close))
            if self.local is not None:
                closings.append(("closing the local checkpoints", self.local.close))
        return [*closings, ("sending the run", self.run.send)]

    def _say_data_troubles(self) -> None:
        for line in data_troubles(self.setup):
            self.say(line)

    def _local(self) -> LocalCheckpoints | None:
        spec = self.experiment.checkpoint
        if not spec.local:
            return None
        folder, trained = Path(spec.local) / self.run.identity(), self.setup.trained()
        return LocalCheckpoints(folder, self.setup.abstract, self.config, self.say, trained)

    def _start(self) -> tuple[State, int]:
        """From the newest good checkpoint, or from another run's parameters, or from the seed."""
        saved = max(self.checkpoints.steps(), default=0)
        near = self.local.restore(newer_than=saved) if self.local is not None else None
        if near is not None:
            self.say(f"going on from step {near[1]} in {self.experiment.checkpoint.local}")
            return near
        restored = self.checkpoints.restore(self.setup.abstract)
        if restored is not None:
            self.say(f"going on from step {restored[1]} in {self.run.name}")
            return restored[:2]
        return first_state(self.setup, self.run, self.say), 0
