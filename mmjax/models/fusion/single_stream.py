"""One Transformer over all modalities at once (ViLT, Kim 2021; on top of encoders, FLAVA, Singh 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Tokens
from mmjax.models.fusion.cross import join
from mmjax.models.parts import rejoin, split
from mmjax.nn.linear import Linear
from mmjax.nn.pool import there
from mmjax.nn.stack import StackFields


class SingleStream(StackFields):
    """{modality: Tokens} -> Tokens of all, in the order of `modalities`, each with a learned vector of its type added.

    Attributes:
      modalities: which, and their order.
      types: how many vectors of type each modality has; () for one each, 0 for none.
      cls_token: put a learned token first; it belongs to no modality, its segment is -1.
      project: project every modality, also one that has the width already.
      parts: N inputs of the last modality in an example (NLVR2's two images), whose tokens follow one another: the others are
        read with each of them on its own, the n-th with its modality's n-th type, and the results follow one another.

    Raises:
      UserError: `types` of another length than `modalities`, fewer types of the last modality than parts.
    """

    modalities: tuple[str, ...] = ("text", "image")
    types: tuple[int, ...] = setting(least=0, default=())
    parts: int = setting(least=1, default=1)
    cls_token: bool = False
    project: bool = False

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        joined = join([self._typed(modality, tokens[modality]) for modality in self.modalities])
        if self.cls_token:
            joined = self._after_cls(joined)
        fused = self.stack(name="stack")(joined.embeddings, joined.mask)
        own = Tokens(fused, joined.mask, segments=joined.segments, virtual=joined.virtual)
        return rejoin(own, self.parts)

    def _after_cls(self, tokens: Tokens) -> Tokens:
        """Tokens [B, 1 + T, D], the learned token first."""
        assert tokens.segments is not None
        x_BTD, first = tokens.embeddings, ((0, 0), (1, 0))
        cls = self.param("cls", nn.initializers.normal(0.02), (1, self.width)).astype(x_BTD.dtype)
        cls_B1D = jnp.broadcast_to(cls[None], (x_BTD.shape[0], 1, self.width))
        return Tokens(
            jnp.concatenate([cls_B1D, x_BTD], axis=1),
            jnp.concatenate([there(tokens)[:, None], tokens.mask], axis=1),  # of a row that has anything
            segments=jnp.pad(tokens.segments, first, constant_values=-1),
            virtual=tuple(place + 1 for place in tokens.virtual),
        )

    def _typed(self, modality: str, tokens: Tokens) -> Tokens:
        """Tokens [B * N, T, D] of one modality, with the vector of their type added."""
        types, last = self.types or (1,) * len(self.modalities), modality == self.modalities[-1]
        if len(types) != len(self.modalities) or types[-1] < self.parts > 1:
            raise UserError(
                f"types={types}: use one number for each of {self.modalities}, the last at least parts={self.parts}"
            )
        x, mask = tokens.embeddings, tokens.mask
        if self.project or x.shape[-1] != self.width:
            x = Linear(self.width, name=f"project_{modality}")(x)
        shape = (types[self.modalities.index(modality)], self.width)
        kinds = self.param(f"{modality}_type", nn.initializers.normal(0.02), shape) if shape[0] else jnp.zeros((1, self.width))
        kinds = kinds.astype(x.dtype)[:, None]
        if self.parts == 1:
            return Tokens(x + kinds[:1], mask, virtual=tokens.virtual)
        if last:
            own = split(Tokens(x, mask, virtual=tokens.virtual), self.parts)
            typed = own.embeddings + jnp.tile(kinds[: self.parts], (x.shape[0], 1, 1))
            return Tokens(typed, own.mask, virtual=own.virtual)
        x, mask = (jnp.repeat(own, self.parts, axis=0) for own in (x + kinds[:1], mask))
        return Tokens(x, mask, virtual=tokens.virtual)
