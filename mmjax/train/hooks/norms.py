"""How large the parameters of each part of a model are, as they train."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from mmjax.adapt import wide
from mmjax.core.config import setting
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Array, Params
from mmjax.parallel.mesh import replicated
from mmjax.train.hooks.hook import Hook

if TYPE_CHECKING:
    from mmjax.train.training import Training


@dataclasses.dataclass(frozen=True)
class Norms:
    """Writes the Euclidean norm of the parameters of each part of the model, `NAME/encoders_image` and the like.

    A part whose norm grows without end, or does not move at all, shows here long before it shows in a loss.

    Attributes:
      every: steps between lines of metrics.jsonl that hold them.
      depth: how many names of a parameter's path make a part: 1 for each encoder, fusion, decoder and head; more for what is
        in them.

    Usage: `hooks={"norm": Norms(every=50)}`, or `--hooks.norm norms --hooks.norm.every 50`.
    """

    every: int = setting(least=1, default=100)
    depth: int = setting(least=1, default=1)

    def start(self, name: str, training: Training) -> Hook:
        return _Measure(name, self, training)


class _Measure(Hook):
    def __init__(self, name: str, spec: Norms, training: Training):
        def measured(params: Params) -> dict[str, Array]:
            return {f"{name}/{part}": norm for part, norm in norms(wide(params), spec.depth).items()}

        self._every, self._training = spec.every, training
        self._measured = jax.jit(measured, out_shardings=replicated(training.setup.mesh))
        self._pending: collections.deque[tuple[int, dict[str, Array]]] = collections.deque()

    def after_step(self, step: int, training: Training) -> None:
        if step % self._every == 0:  # started now, since the next step takes these arrays; read when it is done
            self._pending.append((step, self._measured(training.state.params)))

    def at_boundary(self, step: int, training: Training) -> None:
        self._write(max((done for done, _ in training.done), default=0))

    def close(self, broken_off: bool) -> None:
        if not broken_off:
            self._write(self._training.step)

    def _write(self, until: int) -> None:
        while self._pending and self._pending[0][0] <= until:
            step, figures = self._pending.popleft()
            self._training.write(step, {name: float(value) for name, value in jax.device_get(figures).items()})


def norms(params: Params, depth: int = 1) -> dict[str, Array]:
    """[] float32 for each part of a model: the square root of the sum of the squares of all its parameters."""
    squares: dict[str, list[Array]] = {}
    for path, leaf in leaves_by_path(params).items():
        part = "/".join(path.split("/")[:depth])
        squares.setdefault(part, []).append(jnp.sum(jnp.square(leaf.astype(jnp.float32))))
    return {part: jnp.sqrt(sum(found[1:], start=found[0])) for part, found in squares.items()}
