"""A head of codebooks: what a frame of sound is, as a choice of one entry of each (Baevski 2020, "wav2vec 2.0", section 2)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.linear import Linear


class Codebook(nn.Module):
    """Tokens [B, T, books * entries], a weight for each entry of each book -> [B, T, C], float32: the entries of a book summed
    by their weights, the sums of the books joined, [width], and projected. The objective `MaskedContrastive` gives the weights.

    Attributes:
      classes: C.
      books: how many.
      entries: of each.
      width: of what the books give together; `books` divides it.
      input: name of what it is about, whose frames those are.

    Raises:
      UserError: weights of another number, a width that the books do not divide.
    """

    classes: int = setting(least=1, default=256)
    books: int = setting(least=1, default=2)
    entries: int = setting(least=1, default=320)
    width: int = setting(least=1, default=256)
    input: str = "audio:frames"

    @nn.compact
    def __call__(self, tokens: Tokens, table: Array | None = None) -> Array:
        if self.width % self.books:
            raise UserError(f"books={self.books} does not divide width={self.width}")
        entries_XE = self.param(
            "codebook", nn.initializers.uniform(1.0), (self.books * self.entries, self.width // self.books)
        ).astype(jnp.float32)
        weights_BTX = tokens.embeddings.astype(jnp.float32)
        if self.is_initializing():
            weights_BTX = jnp.zeros((*weights_BTX.shape[:2], len(entries_XE)))
        if weights_BTX.shape[-1] != len(entries_XE):
            raise UserError(
                f"books={self.books} of entries={self.entries} have {len(entries_XE)} weights, found {weights_BTX.shape[-1]}: "
                "they come from the objective MaskedContrastive"
            )
        weights_BTGV = weights_BTX.reshape(*weights_BTX.shape[:2], self.books, self.entries)
        entries_GVE = entries_XE.reshape(self.books, self.entries, -1)
        found_BTGE = jnp.einsum("btgv,gve->btge", weights_BTGV, entries_GVE, precision="highest")
        return Linear(self.classes, float32=True, name="project")(found_BTGE.reshape(*weights_BTX.shape[:2], self.width))
