"""What a person sees: metrics.jsonl, TensorBoard, Weights & Biases, a progress bar."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.core.files import write_whole
from mmjax.core.strict_json import line
from mmjax.parallel.multihost import is_main
from mmjax.train.experiment import Log
from mmjax.train.reading import numbered, read_text


class MetricWriter:
    """Writes a line of figures to every place that was asked for.

    A resumed run first takes back what was written after its checkpoint, so a curve has each step once. One that starts from
    step 0 moves the file of an earlier start aside: there may be no checkpoint that its steps could be had from again.

    Args:
      folder: the run folder.
      step: the step the run goes on from.
      total: the step it ends at.
      identity: a name that no other run has.
    """

    def __init__(self, folder: Path, log: Log, step: int, total: int, config: Any, identity: str):
        self._path = folder / "metrics.jsonl"
        before = None if step else set_aside(self._path)
        rewind(self._path, step)
        self._file = self._path.open("a")
        self._board = self._wandb = self._bar = None
        if log.tensorboard:
            from tensorboardX import SummaryWriter  # slow to import

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        if log.wandb:
            self._wandb = _open_wandb(folder, log.wandb, config, identity)
        if log.progress:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, file=sys.stderr, mininterval=0.5)
        if before is not None:
            self.say(f"starting from step 0; the metrics.jsonl of an earlier start is {before.name} now")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One line; floats are written so that reading them back gives the same bits, what is infinite or no number as null."""
        self._file.write(line({"step": step, **figures}) + "\n")
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
        with _closed_terminal():
            self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        """One line on the terminal, not torn by the bar."""
        with _closed_terminal():
            if self._bar is None:
                print(text, file=sys.stderr, flush=True)
            else:
                self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        with contextlib.ExitStack() as closing:  # each is closed, whatever another raises
            for sink in (self._board, self._file):
                if sink is not None:
                    closing.callback(sink.close)
            if self._wandb is not None:
                closing.callback(self._wandb.finish)
            if self._bar is not None:
                with _closed_terminal():
                    self._bar.close()


class Quiet:
    """The writer of a process that is not the first: it writes nothing."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def advance(self, step: int, figures: Mapping[str, float] | None = None) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def open_writer(folder: Path, log: Log, step: int, total: int, config: Any, identity: str) -> MetricWriter | Quiet:
    """A `MetricWriter` on process 0, and a quiet one on the others."""
    return MetricWriter(folder, log, step, total, config, identity) if is_main() else Quiet()


def rewind(path: Path, step: int) -> None:
    """Drop the lines after `step`, and what a crash left of others; the file is replaced whole or not at all."""
    text = read_text(path)
    if text is not None:
        write_whole(path, "".join(line(kept) + "\n" for kept in _parsed(text) if kept["step"] <= step))


def set_aside(path: Path) -> Path | None:
    """Rename a metrics.jsonl in which something stands, and return what it is called now."""
    if not (read_text(path) or "").strip():
        return None
    return path.rename(numbered(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that are whole, wherever others were torn; a value of null is NaN."""
    return [
        {name: math.nan if value is None else value for name, value in found.items()}
        for found in _parsed(read_text(path) or "")
    ]


def _parsed(text: str) -> Iterator[dict[str, Any]]:
    """Each object that has a step, of each line. What was torn may stand before a whole one, on one line with it."""
    for one in text.splitlines():
        for start in [0, *(found.start() for found in re.finditer(r"(?<!^)\{\"step\"", one))]:
            with contextlib.suppress(json.JSONDecodeError):
                found = json.loads(one[start:])
                if isinstance(found, dict) and isinstance(found.get("step"), int):
                    yield found
                break


@contextlib.contextmanager
def _closed_terminal() -> Iterator[None]:
    """A terminal that is gone must not keep a run from saving."""
    with contextlib.suppress(OSError, ValueError):
        yield


def _open_wandb(folder: Path, project: str, config: Any, identity: str) -> Any:
    try:
        import wandb  # an extra
    except ImportError:
        raise UserError(f"log.wandb={project!r}: wandb is not installed; pip install 'mmjax[wandb]'") from None
    return wandb.init(project=project, dir=str(folder), id=identity, name=folder.name, resume="allow", config=config)
