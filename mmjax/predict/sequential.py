"""Whisper's own way through a sound of any length: window after window, each where the last time of the one before stands.

Radford 2022, section 3.8, as `transformers` has it: what comes out are its tokens, of each sound as if it were alone.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.generate import Settings
from mmjax.generate.times import Times
from mmjax.predict.long_sounds import Passage, Rows, window_features
from mmjax.predict.segments import Segment, parted
from mmjax.predict.speech import Clock
from mmjax.predict.work import Work
from mmjax.predict.writing import BUCKETS, Writing, Written, written

WARM = 0.5  # from this temperature on what was written is not told to the next window


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a window is written, and when anew; names and defaults of `transformers`.

    Attributes:
      temperature: of the first try and of those after it; at 0 the likeliest tokens or beams, above it drawn ones.
      compression_ratio_threshold: a text of which zlib makes less than its length by this is tried anew; None for no such rule.
      logprob_threshold: one whose tokens have a smaller mean log-likelihood is; None for no such rule.
      no_speech_threshold: such a text is left out where silence is likelier than this; None for no such rule.
      condition_on_prev_tokens: whether a window is told what was said before it.
    """

    temperature: tuple[float, ...] = (0.0,)
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    condition_on_prev_tokens: bool = False

    def __post_init__(self) -> None:
        if not self.temperature or min(self.temperature) < 0:
            raise UserError(f"temperature={self.temperature}: use numbers from 0 up")
        if self.no_speech_threshold is not None and self.logprob_threshold is None:
            raise UserError(
                f"no_speech_threshold={self.no_speech_threshold} is looked at where logprob_threshold is missed: give that too"
            )
        if len(self.temperature) > 1 and self.compression_ratio_threshold is None and self.logprob_threshold is None:
            raise UserError(
                f"temperature={self.temperature}: nothing says when the next is tried; give compression_ratio_threshold "
                "or logprob_threshold"
            )

    def said(self) -> list[str]:
        """The names of what is asked for that a text written at once has not."""
        names = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return [name for name in names if name != "temperature" or len(self.temperature) > 1]


def manner_of(given: Mapping[str, Any]) -> tuple[Manner, dict[str, Any]]:
    """What of settings is a manner, and the others. Raises `UserError` for a value of another kind."""
    own = {name: value for name, value in given.items() if name in _KINDS and value is not None}
    rest = {name: value for name, value in given.items() if name not in _KINDS}
    warm = own.pop("temperature", None)
    for name, value in own.items():
        kind = bool if name == "condition_on_prev_tokens" else float
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{name}={value!r}: use {'True or False' if kind is bool else 'a number'}")
    several = isinstance(warm, list | tuple)
    if warm is not None:
        for one in warm if several else (warm,):
            if isinstance(one, bool) or not isinstance(one, int | float):
                raise UserError(f"temperature={warm!r}: use a number, or several")
        own["temperature"] = tuple(float(one) for one in (warm if several else (warm,)))
    if warm is not None and not several and warm > 0:  # which draws, of sounds, whatever else is said
        rest |= {"temperature": warm, "do_sample": True}
    return Manner(**own), rest


_KINDS = frozenset(field.name for field in dataclasses.fields(Manner))


def transcribed(
    work: Work,
    decoder: str,
    passages: Sequence[Passage],
    settings: Settings,
    manner: Manner,
    spoken: tuple[str, str],
    most: int,
    processor: Any,
    at_once: int,
    rows_of: Rows,
) -> list[Written]:
    """What is said in each sound, with its `segments`.

    Args:
      settings: of each window; `max_new_tokens` is at most what there is room for beside what was said before.
      spoken: the language, "" for the one that each sound is heard to be in, and the task.
      most: tokens of a window's text with its opening, and of what it is told.
      processor: a function of the user's; None for none.
      at_once: so many windows are computed at once.
      rows_of: `Predictor._rows`.

    Raises:
      BadRecordError: a sound that cannot be read to its end.
    """
    assert work.clock is not None and work.tokenizer is not None
    ends = settings.eos_token_id or (work.tokenizer.eos_id,)
    windows = Windows(
        work, decoder, settings, manner, Times(work.clock.untimed, ends[0], work.clock.latest), most, processor, rows_of
    )
    waiting, active = list(passages), list[Passage]()
    try:
        while waiting or active:
            while waiting and len(active) < at_once:
                active.append(waiting.pop(0))
                active[-1].open(work, rows_of)
                active[-1].goes_on = manner.condition_on_prev_tokens
            features = window_features(active, rows_of)
            _open_texts(work, decoder, active, features, spoken, rows_of)
            windows.written(active, features)
            for one in active:
                if not one.left:
                    one.close()
            active = [one for one in active if one.left]
    finally:
        for one in active:
            one.close()
    return [_whole(work, one) for one in passages]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Writes the windows of several sounds at once; see `transcribed`."""

    work: Work
    decoder: str
    settings: Settings
    manner: Manner
    times: Times
    most: int
    processor: Any
    rows_of: Rows

    def written(self, passages: Sequence[Passage], features: Mapping[str, np.ndarray]) -> None:
        """One window of each: what it says is added to the sound's segments, and the next begins where it ends."""
        prompts = [[*self._before(one), *one.opening] for one in passages]
        silent = self._no_speech(passages, prompts, features)
        left = list(range(len(passages)))
        for number, temperature in enumerate(self.manner.temperature):
            found = self._tried(temperature, left, passages, prompts, features)
            again = []
            for n, text in zip(left, found, strict=True):
                poor, mute = self._judged(text, silent[n])
                if poor and not mute and number + 1 < len(self.manner.temperature):
                    again.append(n)
                else:
                    self._taken(passages[n], text, mute, temperature)
            left = again
            if not left:
                return

    def _before(self, one: Passage) -> list[int]:
        """What a window is told of what was said before."""
        if not one.goes_on or not one.segments:
            return []
        begin, clock = self.times.begin, self.work.clock
        runs = [own.ids[:-1] if len(own.ids) > 2 and own.ids[-2] >= begin else own.ids for own in one.segments]
        room = self.work.model.decoders[self.decoder].max_length // 2 - 1
        kept = [token for run in runs for token in run][-room:]
        return [*([] if clock is None or clock.previous is None else [clock.previous]), *kept]

    def _tried(
        self,
        temperature: float,
        some: Sequence[int],
        passages: Sequence[Passage],
        prompts: Sequence[list[int]],
        features: Mapping[str, np.ndarray],
    ) -> list[Written]:
        """A text of each of those windows; prompts of about a length together, each with as many tokens as it has room for."""
        s = self.settings
        warm = {"do_sample": True, "temperature": temperature, "num_beams": 1} if temperature else {"do_sample": False}
        found: dict[int, Written] = {}
        lengths = {n: next((size for size in BUCKETS if size >= len(prompts[n])), len(prompts[n])) for n in some}
        for size, timed in sorted({(lengths[n], passages[n].timed) for n in some}):
            own = [n for n in some if (lengths[n], passages[n].timed) == (size, timed)]
            least = max((other + 1 for other in BUCKETS if other < size), default=1)
            new = min(s.max_new_tokens, self.most - max(least, min(len(one.opening) for one in passages)))
            batch = {name: x[own] for name, x in features.items()}
            times = self.times if timed else None
            writing = Writing(self.work, self.decoder, [prompts[n] for n in own], batch, times, self.most)
            keys = [(passages[n].number * 100_003 + passages[n].seek) % 2**31 for n in own]
            texts = written(writing, dataclasses.replace(s, **warm, max_new_tokens=new), self.processor, keys, self.rows_of)
            found |= dict(zip(own, (one[0] for one in texts), strict=True))
        return [found[n] for n in some]

    def _judged(self, text: Written, silent: float) -> tuple[bool, bool]:
        """Whether a text is poor, and whether nothing is said in its window."""
        how, poor = self.manner, False
        if how.compression_ratio_threshold is not None:
            poor = (
                _squeezed(text.ids, self.times, self.work.model.decoders[self.decoder].vocab_size)
                > how.compression_ratio_threshold
            )
        if how.logprob_threshold is None:
            return poor, False
        beams = self.settings.num_beams > 1  # whose scores are divided by their lengths already
        unlikely = text.score / (1 if beams else max(1, len(text.ids))) < how.logprob_threshold
        return poor or unlikely, unlikely and how.no_speech_threshold is not None and silent > how.no_speech_threshold

    def _taken(self, one: Passage, text: Written, mute: bool, temperature: float) -> None:
        one.goes_on = self.manner.condition_on_prev_tokens and temperature < WARM
        if mute:
            one.seek += one.left
            return
        ids = text.ids[:-1] if text.ids and text.ids[-1] == self.times.end else text.ids
        segments, on = parted(ids, self.times.begin, one.seek, one.left)
        one.segments += segments
        one.score, one.ended = one.score + text.score, one.ended and text.ended
        one.seek += on if on > 0 else one.left  # a rule of the user's may write times that go nowhere

    def _no_speech(
        self, passages: Sequence[Passage], prompts: Sequence[list[int]], features: Mapping[str, np.ndarray]
    ) -> list[float]:
        """How likely each window is silence: the token before `untimed`, after the one that begins its text."""
        if self.manner.no_speech_threshold is None:
            return [0.0] * len(passages)
        decoder, token = self.decoder, self.times.untimed - 1

        def ask(forward: Any) -> Any:
            spec = forward.spec(f"decoders.{decoder}")
            ids_BT, mask_BT = forward.batch["begun"], forward.batch["begun_mask"]
            context = {name: forward.tokens(name) for name in spec.context}
            logits_BTV = forward.decode(decoder, {spec.writes: ids_BT, f"{spec.writes}_mask": mask_BT}, context, key="silence")
            last_B = jnp.sum(mask_BT, axis=1) - 1
            logits_BV = jnp.take_along_axis(logits_BTV, last_B[:, None, None], axis=1)[:, 0]
            return jax.nn.softmax(logits_BV.astype(jnp.float32), axis=-1)[:, token]

        begun = [row[: len(row) - len(one.opening) + 1] for row, one in zip(prompts, passages, strict=True)]
        length = next(size for size in (*BUCKETS, max(map(len, begun))) if size >= max(map(len, begun)))
        length = min(length, self.work.model.decoders[decoder].max_length)
        ids, mask = np.zeros((len(begun), length), np.int32), np.zeros((len(begun), length), bool)
        for n, row in enumerate(begun):
            ids[n, : len(row)], mask[n, : len(row)] = row, True
        found: np.ndarray = self.rows_of(("silence", decoder), ask, {**features, "begun": ids, "begun_mask": mask})
        return [float(one) for one in found]


def _open_texts(
    work: Work,
    decoder: str,
    passages: Sequence[Passage],
    features: Mapping[str, np.ndarray],
    spoken: tuple[str, str],
    rows_of: Rows,
) -> None:
    """Give those that have none yet the tokens by which their texts begin."""
    some = [n for n, one in enumerate(passages) if not one.opening]
    if not some:
        return
    language, task = spoken
    start = work.prompt(None)
    clock: Clock | None = work.clock
    assert clock is not None
    begun = [start] * len(some)
    if work.speech is not None:
        own = {name: x[some] for name, x in features.items()}
        said = [language] * len(some) if language else work.speech.heard(decoder, start[0], own, rows_of)
        begun = [work.speech.opening(start[0], one, task) for one in said]
    for n, row in zip(some, begun, strict=True):
        passages[n].opening = tuple(token for token in row if token != clock.untimed or not passages[n].timed)


def _squeezed(ids: Sequence[int], times: Times, words: int) -> float:
    """By how much zlib makes a text's tokens smaller; its end is one of them."""
    size = int(math.log2(words) / 8) + 1
    data = b"".join(int(token).to_bytes(size, "little") for token in ids)
    return len(data) / len(zlib.compress(data))


def _whole(work: Work, one: Passage) -> Written:
    assert work.tokenizer is not None and work.clock is not None
    words, segments = list[int](), []
    for own in one.segments:
        said = [token for token in own.ids if token < work.clock.untimed]
        segments.append(Segment(own.start, own.end, own.ids, work.tokenizer.decode(said)))
        words += said
    ids = [token for own in one.segments for token in own.ids]
    return Written(work.tokenizer.decode(words), ids, one.score, one.ended, tuple(segments))
