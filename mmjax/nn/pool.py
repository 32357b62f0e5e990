"""From a sequence to one vector."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.attention import Attention
from mmjax.nn.mlp import Mlp
from mmjax.nn.norm import Norm

POOLS = ("cls", "first_two", "last", "mean", "rest", "cls_rest", "attention")


def there(tokens: Tokens) -> Array:
    """[B] bool: the rows that have any token."""
    return jnp.any(tokens.mask, axis=1)


class Pool(nn.Module):
    """[B, T, D] -> [B, D].

    `cls`: the first token. `first_two`: the mean of the first and the second (AST's class and distillation tokens). `last`:
    the last real one (CLIP's and GPT's text). `mean`: of the real ones. `rest`: the mean of the real ones after the first (an
    image's patches without its class token). `cls_rest`: both, [B, 2 D] (DINOv2). `attention`: one learned query attends to
    all, then a residual feed-forward layer (Zhai 2022, "MAP head").

    Virtual tokens (`Tokens.virtual`) are in no mean. Where they come before all others, `cls` is the first of them.

    Raises:
      UserError: an unknown `kind`, heads that do not divide the width, rows of several texts.
    """

    kind: str = "mean"
    heads: int = 1
    mlp_width: int = 0
    activation: str = "gelu"
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, tokens: Tokens) -> Array:
        first_BD = tokens.alone("pooling").embeddings[:, 0]
        own = tokens.real() if self.kind in ("mean", "rest", "cls_rest") else tokens
        x_BTD, mask_BT = own.embeddings, own.mask
        if self.kind == "cls":
            return first_BD
        if self.kind == "first_two":
            return (first_BD + x_BTD[:, 1]) / 2
        if self.kind == "last":
            last_B = jnp.max(jnp.where(mask_BT, jnp.arange(mask_BT.shape[1])[None], 0), axis=1)
            return jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
        if self.kind in ("rest", "cls_rest"):
            x_BTD, mask_BT = x_BTD[:, 1:], mask_BT[:, 1:]
        if self.kind in ("mean", "rest", "cls_rest"):
            weights_BT = mask_BT.astype(jnp.float32) / jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1).astype(jnp.float32)
            mean_BD = jnp.einsum("btd,bt->bd", x_BTD.astype(jnp.float32), weights_BT).astype(x_BTD.dtype)
            return jnp.concatenate([first_BD, mean_BD], axis=1) if self.kind == "cls_rest" else mean_BD
        if self.kind != "attention":
            raise UserError(f"pool={self.kind!r}: use one of {', '.join(POOLS)}")
        width = x_BTD.shape[-1]
        if width % self.heads:
            raise UserError(f"heads={self.heads} of attention pooling does not divide width={width}")
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, width)).astype(x_BTD.dtype)
        probe_B1D = jnp.broadcast_to(probe[None], (x_BTD.shape[0], 1, width))
        y = Attention(self.heads, width // self.heads, name="attention")(probe_B1D, mask_BT, x_BTD)
        hidden = Norm(epsilon=self.norm_epsilon, name="norm")(y)
        y = y + Mlp(self.mlp_width or 4 * width, self.activation, name="mlp")(hidden)
        return y[:, 0]
