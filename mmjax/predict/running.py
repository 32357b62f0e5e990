"""A run at work on inputs: what all of a `Predictor`'s answers are computed by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.models.forward import BoundForward
from mmjax.predict import made
from mmjax.predict.work import Work, open_work


class Running:
    """A run, or a HuggingFace folder, with the programs that were compiled for it.

    Args:
      path: of a run or a HuggingFace folder; or one that is open.
      batch_size: inputs that are computed at once.

    Raises:
      UserError: as `mmjax.load`.
    """

    def __init__(self, path: str | Path | Work, batch_size: int = 32) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r}: use a whole number from 1 up")
        self.work, self.batch_size = path if isinstance(path, Work) else open_work(path), batch_size
        self._given: Any = self.work.params  # what programs are given
        self._compiled: dict[Any, Callable[..., Any]] = {}

    @property
    def model(self) -> Any:
        """The model."""
        return self.work.model

    def _can(self) -> str:
        """What the model has, for whoever asks for something else."""
        m = self.work.model
        return "the model has " + ", ".join(
            f"{room} {', '.join(parts)}" for room in ("encoders", "fusions", "decoders", "heads") if (parts := getattr(m, room))
        )

    def _batch(self, given: Mapping[str, Any], pairs: Any = None) -> dict[str, np.ndarray]:
        """What encoders read, one row an input."""
        return made.batch(self.work, given, pairs)

    def _beside(self, given: Mapping[str, list[Any]], texts: Any) -> dict[str, np.ndarray]:
        """What encoders read of the inputs of each modality, and of texts."""
        return self._batch({**given, "text": texts})

    def _program(self, key: Any, run: Callable[..., Any], donated: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The compiled function of a key; made when first asked for."""
        if key not in self._compiled:
            self._compiled[key] = jax.jit(run, donate_argnums=donated)
        return self._compiled[key]

    def _rows(self, key: Any, ask: Callable[..., Any], batch: dict[str, np.ndarray], bound: bool = True) -> Any:
        """What `ask` gives of the forward (or of parameters and a batch), some rows at a time: a tree of numpy [N, ...]."""
        work, size = self.work, self.batch_size
        run = complete(work.model, ask) if bound else ask
        program = self._program(key, run)
        count, given = len(next(iter(batch.values()))), []
        for start in range(0, count, size):
            rows = {name: x[start : start + size] for name, x in batch.items()}
            real = len(next(iter(rows.values())))
            # Filled up to a power of two, so that batches which lack some rows need few programs.
            full = size if start else min(size, 1 << (real - 1).bit_length())
            rows = {name: np.concatenate([x, np.repeat(x[-1:], full - real, 0)]) for name, x in rows.items()}
            out = program(self._given, {name: jnp.asarray(x) for name, x in rows.items()})
            given.append(jax.tree.map(lambda x, real=real: np.asarray(x)[:real], out))
        found = jax.tree.map(lambda *parts: np.concatenate(parts), *given)
        if not bound:
            return found
        if not found[1].all():
            number = int(np.flatnonzero(~found[1])[0])
            raise UserError(f"{work.path}: input {number}: what is asked of it reads a modality that it lacks; {self._can()}")
        return found[0]


def complete(model: Any, ask: Callable[..., Any]) -> Callable[..., Any]:
    """`ask` of the forward of parameters and rows; and which rows have what it read, [B] bool."""

    def run(params: Any, rows: Any) -> tuple[Any, Any]:
        forward = BoundForward(model, params, rows)
        found, has_B = ask(forward), forward.complete()
        return found, jnp.ones(next(iter(rows.values())).shape[0], bool) if has_B is None else has_B

    return run
