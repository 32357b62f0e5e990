"""Distillation of features: each token of the student, projected, comes near the teacher's token in its place."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError, within
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks, routes
from mmjax.objectives.losses import counted, valid_rows

EPSILON = 1e-12  # beside a squared length: a token of zeros has no direction


@dataclasses.dataclass(frozen=True)
class DistilTokens:
    """Mean squared error (FitNets: Romero 2015, eq. 3) or one minus the cosine between tokens, summed over real ones.

    Attributes:
      teacher: one of the experiment's `teachers`.
      head: the student's tokens in the teacher's width, [B, T, D]: `TokenClassifier(classes=D, input="image", transform=False)`
        is a learned projection, whose `input` may be a layer, `image:5`.
      teacher_input: the teacher's encoder or fusion, or a layer of an encoder, `image:11`; "" for what `head` reads.
      loss: `mse`, the mean over the D numbers of a token, or `cosine`.

    Raises:
      UserError: when called: tokens of another number or width, or laid out otherwise over the image.
    """

    teacher: str = "teacher"
    head: str = "project"
    teacher_input: str = ""
    loss: str = "mse"

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.one_of("distil_tokens.loss", self.loss, ("mse", "cosine"))

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        inputs = routes.named(forward.spec(f"heads.{self.head}").input)
        if len(inputs) > 1:
            raise UserError(f"model.heads.{self.head} reads {inputs}: give it one input, whose tokens are compared")
        own, x_BTD = forward.tokens(inputs[0]), forward.head(self.head)
        with within(f"teachers.{self.teacher}"):
            theirs = forward.teacher(self.teacher).tokens(self.teacher_input or inputs[0])
        y_BTD = theirs.embeddings.astype(jnp.float32)
        if x_BTD.ndim != 3:
            raise UserError(
                f"model.heads.{self.head} gives one vector an example: use a TokenClassifier, which gives one a token"
            )
        if x_BTD.shape[1] != y_BTD.shape[1] or (own.grid and theirs.grid and own.grid != theirs.grid):
            raise UserError(
                f"model.heads.{self.head} reads {x_BTD.shape[1]} tokens{_laid(own.grid)} and teachers.{self.teacher} gives "
                f"{y_BTD.shape[1]}{_laid(theirs.grid)}: only tokens of the same places can be compared"
            )
        if x_BTD.shape[2] != y_BTD.shape[2]:
            raise UserError(
                f"model.heads.{self.head}.classes={x_BTD.shape[2]}: teachers.{self.teacher} is {y_BTD.shape[2]} wide"
            )
        real_BT = own.mask & theirs.mask & valid_rows(batch, x_BTD.shape[0])[:, None]
        return Loss(*counted(_apart(x_BTD, y_BTD, self.loss), real_BT))


def _apart(x_BTD: Array, y_BTD: Array, loss: str) -> Array:
    """[B, T] float32."""
    if loss == "mse":
        return jnp.mean(jnp.square(x_BTD - y_BTD), axis=-1)
    x_BTD, y_BTD = (v * jax.lax.rsqrt(jnp.sum(v * v, axis=-1, keepdims=True) + EPSILON) for v in (x_BTD, y_BTD))
    return 1 - jnp.sum(x_BTD * y_BTD, axis=-1)


def _laid(grid: tuple[int, int, int] | None) -> str:
    return f" (a grid of {grid[0]}x{grid[1]} after {grid[2]} others)" if grid else ""
