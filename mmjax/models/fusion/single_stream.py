"""One Transformer over all modalities at once (ViLT, Kim 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn

from mmjax.core.types import Tokens
from mmjax.models.fusion.cross import join
from mmjax.nn.linear import Linear
from mmjax.nn.stack import StackFields


class SingleStream(StackFields):
    """{modality: Tokens} -> Tokens of all, in the order of `modalities`, each with a learned vector of its type added."""

    modalities: tuple[str, ...] = ("text", "image")

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        parts = []
        for modality in self.modalities:
            x = tokens[modality].embeddings
            if x.shape[-1] != self.width:
                x = Linear(self.width, name=f"project_{modality}")(x)
            kind = self.param(f"{modality}_type", nn.initializers.normal(0.02), (1, self.width))
            parts.append(Tokens(x + kind.astype(x.dtype)[None], tokens[modality].mask))
        joined = join(parts)
        fused = self.stack(name="stack")(joined.embeddings, joined.mask)
        return Tokens(fused, joined.mask, segments=joined.segments)
