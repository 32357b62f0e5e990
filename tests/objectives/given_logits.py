"""A forward whose head gives logits that the batch holds, for objectives that read nothing else."""

from __future__ import annotations

import functools

import jax

from mmjax.core.types import Loss


class Given:
    """A forward whose head gives what the batch says."""

    train = False

    def __init__(self, batch):
        self.batch = batch

    def head(self, head, tokens=None, key=""):
        return self.batch["logits"]


@functools.partial(jax.jit, static_argnums=0)
def run(objective, batch) -> Loss:
    return objective(Given(batch), batch, jax.random.key(0))
