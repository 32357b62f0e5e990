"""The rule by which Whisper writes times among its words (Radford 2022, section 2.3; `WhisperTimeStampLogitsProcessor`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.core.types import Array
from mmjax.generate.processors import NEVER
from mmjax.generate.written import Written


@dataclasses.dataclass(frozen=True)
class Times:
    """A text is pairs of times with words between them, `<|0.00|> Hello.<|1.20|><|1.20|> Yes.<|2.00|>`, and times do not fall.

    The first token is a time. After a time that begins something comes a word, after one that ends something another time or
    the text's end; a time is later than the one before, unless it begins where that ended. Where all times together are
    likelier than the likeliest word, it is a time.

    Attributes:
      untimed: the token that says that there are no times; those after it are times, `TICK` seconds each.
      end: the token that ends a text; those before it are words.
      latest: the first time is no later than so many ticks; None for any.
    """

    untimed: int
    end: int
    latest: int | None = None

    @property
    def begin(self) -> int:
        """The token of 0.00 s."""
        return self.untimed + 1

    def __call__(self, logits_RV: Array, written: Written) -> Array:
        """Logits [R, V] float32 with -inf for what cannot come now."""
        out_RV = self._out(jnp.arange(logits_RV.shape[-1], dtype=jnp.int32)[None], written)
        logits_RV = jnp.where(out_RV, NEVER, logits_RV)
        word_RW, time_RC = logits_RV[:, : self.begin], logits_RV[:, self.begin :]
        timed_R = jax.nn.logsumexp(time_RC, axis=-1) > jnp.max(word_RW, axis=-1)
        return jnp.concatenate([jnp.where(timed_R[:, None], NEVER, word_RW), time_RC], axis=-1)

    def _out(self, token_1V: Array, written: Written) -> Array:
        """[R, V] bool: the tokens that break the order."""
        first, count, begin = written.slot - written.count, written.count, self.begin
        slot_1S = jnp.arange(written.ids.shape[1], dtype=jnp.int32)[None]
        time_RS = (slot_1S >= first) & (slot_1S < written.slot) & (written.ids >= begin)
        last_R = (count >= 1) & (written.last() >= begin)
        before_R = (count < 2) | (jnp.take(written.ids, jnp.maximum(written.slot - 2, 0), axis=1) >= begin)
        place_R = jnp.max(jnp.where(time_RS, slot_1S, -1), axis=1)
        time_R = jnp.take_along_axis(written.ids, jnp.maximum(place_R, 0)[:, None], axis=1)[:, 0]
        ends_R = last_R & ~before_R
        least_R = jnp.where(place_R >= 0, time_R + 1 - ends_R.astype(jnp.int32), begin)
        is_time_1V = token_1V >= begin
        out_RV = (token_1V == self.untimed) | (is_time_1V & (token_1V < least_R[:, None]))
        out_RV |= (last_R & before_R)[:, None] & is_time_1V
        out_RV |= ends_R[:, None] & (token_1V < self.end)
        late_1V = jnp.zeros_like(is_time_1V) if self.latest is None else token_1V > begin + self.latest
        return out_RV | ((count == 0) & (~is_time_1V | late_1V))
