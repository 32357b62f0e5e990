"""The compiled program that writes texts: prompts are read at once, then one token a turn of one loop, with a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.stacked import apart
from mmjax.core.types import Array, Batch, Params, Tokens
from mmjax.generate.filters import filtered
from mmjax.generate.processors import Processor, Written, processors
from mmjax.generate.settings import Settings
from mmjax.models import Multimodal
from mmjax.models.forward import BoundForward, cast_params, compute_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Texts:
    """What was written.

    Attributes:
      ids: [B, N] int32, N = max_new_tokens; padding after a text's end.
      lengths: [B] int32, tokens of each text, its end among them.
      scores: [B] float32, the sum of the log-likelihoods of its tokens, as they were taken.
    """

    ids: Array
    lengths: Array
    scores: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turn:
    """What a turn of the loop starts from."""

    written: Written
    logits: Array
    cache: Any
    done: Array
    lengths: Array
    scores: Array


def decode(
    model: Multimodal,
    params: Params,
    decoder: str,
    batch: Batch,
    ids_BT: Array,
    mask_BT: Array,
    settings: Settings,
    ends: Sequence[int],
    pad: int,
    index_B: Array | None = None,
) -> Texts:
    """Write a text after each prompt. Traced: wrap it in `jax.jit`.

    Args:
      batch: what the decoder's context is encoded from; {} where it has none.
      ids_BT, mask_BT: int32 and bool, prompts that end together, padded on the left.
      ends: ids that end a text.
      pad: the id that follows an end.
      index_B: int32, the number of each row among all that are asked for, on which its draws depend; None: its place here.
    """
    spec, forward = model.decoders[decoder], BoundForward(model, params, batch)
    context = {name: forward.tokens(name) for name in spec.context if batch} or None
    own = cast_params({f"decoders_{decoder}": params[f"decoders_{decoder}"]}, compute_dtype(model.dtype))
    places_BT = jnp.maximum(jnp.cumsum(mask_BT, axis=1, dtype=jnp.int32) - 1, 0)
    logits_BV, cache = model.apply({"params": own}, decoder, ids_BT, mask_BT, places_BT, context, method="begin")
    seen_BS, layered = _context_mask(spec, context), _layers_apart(own, decoder)
    (B, T), new = ids_BT.shape, settings.max_new_tokens
    rows_B = jnp.arange(B, dtype=jnp.int32) if index_B is None else index_B
    rules = processors(settings, ends)

    def turn(state: Turn) -> Turn:
        token_B, likely_B = _taken(_processed(state.logits, state.written, rules), settings, state.written.count, rows_B)
        token_B = jnp.where(state.done, pad, token_B)
        now = _with(state.written, token_B)
        places_B = jnp.sum(now.real, axis=1, dtype=jnp.int32) - 1
        given = (decoder, token_B, now.real, places_B, seen_BS, state.cache, state.written.slot)
        logits_BV, cache = model.apply({"params": layered}, *given, method="step")
        ended_B = jnp.isin(token_B, jnp.asarray(list(ends), jnp.int32)) if ends else jnp.zeros(B, bool)
        return Turn(
            now,
            logits_BV.astype(jnp.float32),
            cache,
            state.done | ended_B,
            state.lengths + (~state.done).astype(jnp.int32),
            state.scores + jnp.where(state.done, 0.0, likely_B),
        )

    first = Turn(
        _room(ids_BT, mask_BT, new, pad),
        logits_BV.astype(jnp.float32),
        _roomy(cache, T + new),
        jnp.zeros(B, bool),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, jnp.float32),
    )
    last = jax.lax.while_loop(lambda state: (state.written.count < new) & ~jnp.all(state.done), turn, first)
    return Texts(last.written.ids[:, T:], last.lengths, last.scores)


def _room(ids_BT: Array, mask_BT: Array, new: int, pad: int) -> Written:
    """Prompts, with slots after them for so many tokens."""
    more = ((0, 0), (0, new))
    ids, real = jnp.pad(ids_BT, more, constant_values=pad), jnp.pad(mask_BT, more)
    return Written(ids, real, jnp.asarray(ids_BT.shape[1], jnp.int32), jnp.zeros((), jnp.int32))


def _with(written: Written, token_B: Array) -> Written:
    """One token more in each row."""
    at = (0, written.slot)
    ids = jax.lax.dynamic_update_slice(written.ids, token_B[:, None], at)
    real = jax.lax.dynamic_update_slice(written.real, jnp.ones((len(token_B), 1), bool), at)
    return Written(ids, real, written.slot + 1, written.count + 1)


def _processed(logits_BV: Array, written: Written, rules: Sequence[Processor]) -> Array:
    for rule in rules:
        logits_BV = rule(logits_BV, written)
    return logits_BV


def _taken(scores_BV: Array, settings: Settings, count: Array, rows_B: Array) -> tuple[Array, Array]:
    """[B] int32 the likeliest token, or one drawn with a key of the row's and the turn's own; and its log-likelihood."""
    if settings.do_sample:
        key = jax.random.fold_in(jax.random.key(settings.seed), count)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows_B)
        token_B = jax.vmap(jax.random.categorical)(keys, filtered(scores_BV, settings)).astype(jnp.int32)
    else:
        token_B = jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    return token_B, jnp.take_along_axis(jax.nn.log_softmax(scores_BV, axis=-1), token_B[:, None], axis=1)[:, 0]


def _context_mask(spec: Any, context: Mapping[str, Tokens] | None) -> Array | None:
    """[B, S] bool of what the layers attend to beside the text; None where they attend to nothing."""
    attended = spec.attended(context) if context else None
    return None if attended is None else attended[1]


def _layers_apart(params: Params, decoder: str) -> Params:
    """The decoder's parameters, each layer's an array of its own: sliced out of the stack once, not in every turn."""
    name = f"decoders_{decoder}"
    own = dict(params[name])
    if "stack" in own and "layers" in own["stack"]:
        own["stack"] = {**own["stack"], "layers": apart(own["stack"]["layers"])}
    return {name: own}


def _roomy(cache: Any, room: int) -> Any:
    """The cache, a layer an array, with room for so many tokens of the text."""

    def longer(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, room - x.shape[2]), (0, 0), (0, 0)))

    return apart({name: jax.tree.map(longer, kept) if name == "attention" else kept for name, kept in cache.items()})
