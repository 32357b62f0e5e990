"""A decoder that reads: prompts at once, then one token a time, with what it has read in a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.stacked import apart
from mmjax.core.types import Array, Batch, Params, Tokens
from mmjax.generate.written import Written
from mmjax.models import Multimodal
from mmjax.models.casting import cast_params, compute_dtype
from mmjax.models.encoders.text import slots_before
from mmjax.models.forward import BoundForward
from mmjax.nn.cache import write


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """What every turn reads and none changes.

    Attributes:
      params: the decoder's, each layer's an array of its own: sliced out of the stack once, not in every turn.
      context: [B, S] bool, of what the layers attend to beside the text; None where they attend to nothing.
    """

    params: Any
    context: Array | None


@dataclasses.dataclass(frozen=True)
class Reader:
    """What a turn needs of the decoder.

    Attributes:
      model, decoder: which reads.
      held: what it reads beside the cache.
      room: slots of the cache for the text; those of virtual tokens come before.
    """

    model: Multimodal
    decoder: str
    held: Held
    room: int

    def step(self, written: Written, cache: Any) -> tuple[Array, Any]:
        """The logits [R, V] float32 of the token after the last one, and what is new for the cache."""
        before = self._before
        places_R = jnp.sum(written.real, axis=1, dtype=jnp.int32) - 1 + before
        real_RS = jnp.pad(written.real[:, : self.room], ((0, 0), (before, 0)), constant_values=True)
        given = (self.decoder, written.last(), real_RS, places_R, self.held.context, cache, written.slot - 1 + before)
        logits_RV, new = self.model.apply({"params": self.held.params}, *given, method="step")
        return logits_RV.astype(jnp.float32), new

    def keep(self, cache: Any, new: Any, slot: Array, over: Array) -> Any:
        """The cache with what is new in a slot.

        Args:
          over: [] bool, whether all texts have ended, after which nobody reads the cache. That the slot depends on it, and it
            on the logits, tells XLA that every layer has read before one is written; it copies the cache in each turn else.
        """
        return write(cache, new, self._before + jnp.where(over, self.room - 1, slot))

    @property
    def _before(self) -> int:
        return slots_before(self.held.params[f"decoders_{self.decoder}"])


def prefill(
    model: Multimodal, params: Params, decoder: str, batch: Batch, ids_BT: Array, mask_BT: Array, new: int, each: int
) -> tuple[Array, Any, Reader]:
    """Read prompts: the logits [B * each, V] float32 of the token that follows, the cache, and what reads on.

    Args:
      batch: what the decoder's context is encoded from; {} where it has none.
      new: how many tokens will follow.
      each: how many texts will follow a prompt; their rows stand together. Keys and values of a context are kept once for them.
    """
    spec, forward = model.decoders[decoder], BoundForward(model, params, batch)
    context = {name: forward.tokens(name) for name in spec.context if batch} or None
    read = {f"decoders_{decoder}": params[f"decoders_{decoder}"]}
    if spec.words_of:
        read |= {f"encoders_{spec.words_of}": {"words": params[f"encoders_{spec.words_of}"]["words"]}}
    own = cast_params(read, compute_dtype(model.dtype))
    places_BT = jnp.maximum(jnp.cumsum(mask_BT, axis=1, dtype=jnp.int32) - 1, 0)
    logits_BV, cache = model.apply({"params": own}, decoder, ids_BT, mask_BT, places_BT, context, method="begin")
    held = Held(_layers_apart(own, decoder), _context_mask(spec, context))
    slots = room(ids_BT.shape[1], new)
    logits_RV = jnp.repeat(logits_BV.astype(jnp.float32), each, axis=0)
    before = slots_before(own[f"decoders_{decoder}"])
    return logits_RV, _roomy(cache, before + slots, each), Reader(model, decoder, held, slots)


def room(prompt: int, new: int) -> int:
    """Slots of a cache for a prompt and so many tokens after it, of which the last is written and not read."""
    return prompt + max(new - 1, 1)


def _context_mask(spec: Any, context: Mapping[str, Tokens] | None) -> Array | None:
    """[B, S] bool of what the layers attend to beside the text; None where they attend to nothing."""
    attended = spec.attended(context) if context else None
    return None if attended is None else attended[1]


def _layers_apart(params: Params, decoder: str) -> Params:
    """See `Held.params`."""
    name = f"decoders_{decoder}"
    own = dict(params[name])
    if "stack" in own and "layers" in own["stack"]:
        own["stack"] = {**own["stack"], "layers": apart(own["stack"]["layers"])}
    return {**params, name: own}


def _roomy(cache: Any, room: int, each: int) -> Any:
    """The cache, a layer an array, with room for so many tokens of the texts, and a row for each of them."""

    def longer(x: Array) -> Array:
        return jnp.repeat(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, room - x.shape[3]), (0, 0))), each, axis=1)

    return apart({name: jax.tree.map(longer, kept) if name == "attention" else kept for name, kept in cache.items()})
