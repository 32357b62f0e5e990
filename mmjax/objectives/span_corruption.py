"""Span corruption, T5's pretraining: runs of a text are replaced by sentinels, and written after them by the decoder."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import random

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.random import example_uniform
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives.causal_lm import asked_of
from mmjax.objectives.losses import correct, counted, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Write what is hidden of a text (Raffel 2019, section 3.1.4; lengths and draws are its `random_spans_noise_mask`'s).

    Of n tokens round(`density` n) are hidden, at least 1 and at most n - 1, in round(hidden / `mean_span`) spans, at least 1.
    The text begins with what is seen, and ends with what is hidden. How long each span is, and each stretch before one, is
    drawn evenly among all ways to part so many tokens. The encoder reads the text with a sentinel for each span, the decoder
    writes each sentinel and what it stands for, then `end_id`. A text of fewer than two tokens counts nothing.

    What is drawn is an example's own. The loss is summed over the tokens written.

    Attributes:
      sentinel_ids: the ids of the sentinels, in their order: T5's `<extra_id_0>` is 32099, the next 32098.
      end_id: ends what is written.
      special_ids: ids before and after a text that are not hidden (padding, first and last tokens).
      density: the share that is hidden.
      mean_span: tokens of a span, on average.
      modality: whose tokens they are, which an encoder of the decoder's context reads.
      decoder: which writes; it has a `start_token`.

    Raises:
      UserError: when called: fewer sentinels than a text may have spans, a decoder without a `start_token` or that does not
        read the text, rows of several texts.
    """

    sentinel_ids: tuple[int, ...] = setting(least=0)
    end_id: int = setting(least=0, default=1)
    special_ids: tuple[int, ...] = setting(least=0, default=(0, 1))
    density: float = setting(above=0, below=1, default=0.15)
    mean_span: float = setting(least=1, default=3.0)
    modality: str = "text"
    decoder: str = "target"

    in_batch: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.modality, f"{self.modality}_mask", "index")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        text, decoder = self.modality, forward.spec(f"decoders.{self.decoder}")
        start = getattr(decoder, "start_token", None)
        if start is None or text not in decoder.context:
            raise UserError(
                f"decoder={self.decoder!r} has start_token={start} and context={decoder.context}: what it writes "
                f"begins with a sentinel, after a token of its own, and is hidden in {text!r}; give it both"
            )
        if f"{text}_lengths" in batch:
            raise UserError(f"the rows of {text!r} hold several texts, and data.packing puts them there; leave it away")
        shown_BT, seen_BT, written_BS, said_BS = self.corrupt(batch[text], batch[f"{text}_mask"], batch["index"], rng)
        key = f"span_corruption/{self.decoder}/{text}/{self.density}/{self.mean_span}"
        read = forward.encode(text, {text: shown_BT, f"{text}_mask": seen_BT}, key=key)
        context = {name: read if name == text else forward.tokens(name) for name in decoder.context}
        own = {decoder.writes: written_BS, f"{decoder.writes}_mask": said_BS}
        valid = {"valid": batch["valid"]} if "valid" in batch else {}
        inputs, labels_BS, counts_BS = asked_of(decoder, {**own, **valid}, decoder.writes)
        logits_BSV = forward.decode(self.decoder, inputs, context, key=key)
        accuracy = counted(correct(logits_BSV, labels_BS), counts_BS)
        return Loss(*counted(cross_entropy(logits_BSV, labels_BS), counts_BS), {"accuracy": accuracy})

    def corrupt(self, ids_BT: Array, real_BT: Array, index_B: Array, rng: Array) -> tuple[Array, Array, Array, Array]:
        """What is read, ids [B, T] and which of them are real; and what is written, [B, S] and which are, S the longest of any
        text of at most T tokens. Of a text that is too short nothing is written."""
        T = ids_BT.shape[1]
        most = counts_of(T, self.density, self.mean_span)
        counts, spans = [jnp.asarray(x) for x in most], int(most[1].max())
        if spans > len(self.sentinel_ids):
            raise UserError(f"sentinel_ids: {len(self.sentinel_ids)} sentinels, and a text of {T} tokens has {spans} spans")
        own_BT = real_BT & ~jnp.isin(ids_BT, jnp.asarray(self.special_ids, ids_BT.dtype))
        place_1T = jnp.arange(T, dtype=jnp.int32)[None]
        first_B1 = jnp.argmax(own_BT, axis=1)[:, None]
        last_B1 = jnp.max(jnp.where(own_BT, place_1T, -1), axis=1, keepdims=True)
        n_B1 = jnp.maximum(last_B1 + 1 - first_B1, 0)
        hidden_B1, spans_B1 = (count[n_B1] for count in counts)
        keys = random.split(rng)
        noise_BT = _segments(example_uniform(keys[0], index_B, (T,)), hidden_B1, spans_B1)
        rest_BT = _segments(example_uniform(keys[1], index_B, (T,)), n_B1 - hidden_B1, spans_B1)
        before_BS = _ends(rest_BT, n_B1 - hidden_B1, spans)  # what is seen up to the end of each stretch
        past_BS = jnp.pad(_ends(noise_BT, hidden_B1, spans), ((0, 0), (1, 0)))[:, :-1]  # what is hidden before each span

        def of_text(places_BT: Array) -> Array:
            return jnp.take_along_axis(ids_BT, jnp.clip(first_B1 + places_BT, 0, T - 1), axis=1)

        sentinel_1S = jnp.asarray(self.sentinel_ids[:spans], ids_BT.dtype)[None]
        number_1S = jnp.arange(spans, dtype=jnp.int32)[None]
        there_BS = number_1S < spans_B1
        seen_BT, gone_BT = place_1T < n_B1 - hidden_B1, place_1T < hidden_B1
        pad = jnp.zeros((), ids_BT.dtype)
        # Places in what is read: specials before, what is seen, the sentinels, specials after.
        shift_B1 = jnp.where(n_B1 > 0, hidden_B1 - spans_B1, 0)
        ids = of_text(place_1T + jnp.take_along_axis(past_BS, rest_BT, axis=1))
        shown = _put(jnp.full((len(ids_BT), T), pad), place_1T, ids_BT, real_BT & (place_1T < first_B1))
        shown = _put(shown, place_1T - shift_B1, ids_BT, real_BT & (place_1T > last_B1))
        shown = _put(shown, first_B1 + place_1T + rest_BT, ids, seen_BT)
        shown = _put(shown, first_B1 + before_BS + number_1S, jnp.broadcast_to(sentinel_1S, there_BS.shape), there_BS)
        total_B1 = jnp.sum(real_BT, axis=1, keepdims=True) - shift_B1
        # Places in what is written: each sentinel, what it stands for, the end.
        ids = of_text(place_1T + jnp.take_along_axis(before_BS, noise_BT, axis=1))
        S = int(most[0].max()) + spans + 1
        written = _put(jnp.full((len(ids_BT), S), pad), place_1T + noise_BT + 1, ids, gone_BT)
        written = _put(written, past_BS + number_1S, jnp.broadcast_to(sentinel_1S, there_BS.shape), there_BS)
        length_B1 = hidden_B1 + spans_B1
        written = jnp.where(jnp.arange(S)[None] == length_B1, jnp.asarray(self.end_id, ids_BT.dtype), written)
        said_BS = (jnp.arange(S)[None] <= length_B1) & (hidden_B1 > 0)
        return shown, place_1T < total_B1, written, said_BS


@functools.lru_cache(maxsize=64)
def counts_of(length: int, density: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Of texts of 0 to `length` tokens, how many are hidden and in how many spans: two of int32 [length + 1]."""
    n = np.arange(length + 1)
    hidden = np.clip(np.rint(n * density), 1, np.maximum(n - 1, 1))
    spans = np.maximum(np.rint(hidden / mean_span), 1)
    spans = np.minimum(spans, np.minimum(hidden, np.maximum(n - hidden, 1)))  # no span and no stretch is empty
    return tuple(np.where(n < 2, 0, x).astype(np.int32) for x in (hidden, spans))  # type: ignore[return-value]


def _segments(draw_BT: Array, items_B1: Array, parts_B1: Array) -> Array:
    """[B, T] int32: in which of its parts each of a row's items is, where every way to part them is as likely as another."""
    T = draw_BT.shape[1]
    may_BT = jnp.arange(1, T + 1)[None] < items_B1  # whether a part may end after the item
    draw_BT = jnp.where(may_BT, draw_BT, 2.0)
    rank_BT = jnp.argsort(jnp.argsort(draw_BT, axis=1), axis=1)
    ends_BT = may_BT & (rank_BT < parts_B1 - 1)
    return jnp.cumsum(jnp.pad(ends_BT, ((0, 0), (1, 0)))[:, :-1], axis=1, dtype=jnp.int32)


def _ends(part_BT: Array, items_B1: Array, parts: int) -> Array:
    """[B, parts] int32: how many items a row has up to the end of each part."""
    there_BT = jnp.arange(part_BT.shape[1])[None] < items_B1
    upto_BTS = part_BT[:, :, None] <= jnp.arange(parts)[None, None]
    return jnp.sum((upto_BTS & there_BT[:, :, None]).astype(jnp.int32), axis=1)


def _put(x_BT: Array, places_BN: Array, values_BN: Array, where_BN: Array) -> Array:
    """x with values at these places of its rows, of those that count."""
    rows_B1 = jnp.arange(len(x_BT))[:, None]
    places_BN = jnp.where(where_BN, places_BN, x_BT.shape[1])
    return x_BT.at[rows_B1, places_BN].set(values_BN, mode="drop")
