"""What a person sees: metrics.jsonl, TensorBoard, Weights & Biases, a progress bar."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.parallel.multihost import is_main
from mmjax.train.experiment import Log


class MetricWriter:
    """Writes a line of figures to every place that was asked for.

    A resumed run first takes back what was written after its checkpoint, so a curve has each step once.

    Args:
      folder: the run folder.
      step: the step the run goes on from.
      total: the step it ends at.
    """

    def __init__(self, folder: Path, log: Log, step: int, total: int, config: Any):
        self._path = folder / "metrics.jsonl"
        rewind(self._path, step)
        self._file = self._path.open("a")
        self._board = self._wandb = self._bar = None
        if log.tensorboard:
            from tensorboardX import SummaryWriter  # slow to import

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        if log.wandb:
            self._wandb = _open_wandb(folder, log.wandb, config)
        if log.progress:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, file=sys.stderr, mininterval=0.5)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One line; floats are written so that reading them back gives the same bits."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in figures.items():
                if math.isfinite(value):
                    self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(figures), step=step)

    def advance(self, step: int, figures: Mapping[str, float] | None = None) -> None:
        """Move the progress bar, and put the most telling figures beside it."""
        if self._bar is None:
            return
        if figures:
            shown = {name.removeprefix("loss/"): f"{value:.3f}" for name, value in figures.items() if name.startswith("loss/")}
            shown |= {name: f"{figures[name]:.0f}" for name in ("examples_per_second",) if name in figures}
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def say(self, line: str) -> None:
        """One line on the terminal, not torn by the bar."""
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        for sink in (self._bar, self._board, self._file):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()


class Quiet:
    """The writer of a process that is not the first: it writes nothing."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def advance(self, step: int, figures: Mapping[str, float] | None = None) -> None: ...

    def say(self, line: str) -> None: ...

    def close(self) -> None: ...


def open_writer(folder: Path, log: Log, step: int, total: int, config: Any) -> MetricWriter | Quiet:
    """A `MetricWriter` on process 0, and a quiet one on the others."""
    return MetricWriter(folder, log, step, total, config) if is_main() else Quiet()


def rewind(path: Path, step: int) -> None:
    """Drop the lines after `step`, and one that a crash cut short; the file is replaced whole or not at all."""
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if line["step"] <= step]
    beside = path.with_suffix(".jsonl.new")
    beside.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(beside, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that are whole."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break  # cut short by a crash
    return lines


def _open_wandb(folder: Path, project: str, config: Any) -> Any:
    try:
        import wandb  # an extra
    except ImportError:
        raise UserError(f"log.wandb={project!r}: wandb is not installed; pip install 'mmjax[wandb]'") from None
    return wandb.init(project=project, dir=str(folder), id=folder.name, resume="allow", config=config)
