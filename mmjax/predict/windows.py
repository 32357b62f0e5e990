"""What is said in sounds: those that one window holds are written at once, longer ones, and times, window by window."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmjax.core.errors import UserError
from mmjax.data.types import BadRecordError
from mmjax.generate import Settings, settings_of
from mmjax.predict import openings
from mmjax.predict.long_sounds import Passage
from mmjax.predict.made import Listened, listened
from mmjax.predict.sequential import Manner, manner_of, transcribed
from mmjax.predict.work import Work
from mmjax.predict.writing import Written

if TYPE_CHECKING:
    from mmjax.predict.writer import Writer

logger = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What is asked of sounds, see `Predictor.generate`."""

    language: str = ""
    task: str = ""
    timestamps: bool | None = None


def transcripts(
    ask: Writer,
    decoder: str,
    sounds: list[Any],
    spoken: Spoken,
    processor: Any,
    stream: bool,
    numbers: Sequence[int] | None,
    given: Mapping[str, Any],
) -> tuple[list[Written] | None, list[Any], dict[str, Any]]:
    """What is said in each sound, None where no more is asked than to write one window of each at once; the sounds, listened
    to; and the settings that are then left.

    Raises:
      UserError: times of a model that writes none; more than one text of a sound, or pieces of one, window by window; a sound
        that cannot be read.
    """
    work = ask.work
    if work.clock is None:
        if spoken.timestamps:
            raise UserError(f"{work.path}: timestamps=True: it writes no times: its vocabulary has no <|0.00|>")
        return None, sounds, dict(given)
    if any(sound is None for sound in sounds):  # rows that lack theirs (`Data.optional`), among which none is gone through
        if spoken.timestamps:
            raise UserError("timestamps=True: some of these have no sound; give those that have theirs apart")
        return None, sounds, dict(given)
    how, rest = manner_of({**work.clock.how, **given})
    try:
        heard = [listened(work, sound) for sound in sounds]
        long = [goes_on(work, one) for one in heard]
        timed = [one or bool(work.clock.always if spoken.timestamps is None else spoken.timestamps) for one in long]
        if not any(timed) and not how.said():
            return None, heard, rest
        if numbers is not None and len(numbers) != len(heard):
            raise UserError(f"{len(heard)} sounds and {len(numbers)} numbers: give one each")
        numbers = range(len(heard)) if numbers is None else numbers
        slow = [n for n in range(len(heard)) if timed[n] or how.said()]
        own = [_passage(work, heard[n], numbers[n], timed[n]) for n in slow]
        found = dict(zip(slow, _slowly(ask, decoder, own, spoken, how, processor, stream, rest), strict=True))
    except BadRecordError as error:
        raise UserError(str(error)) from None
    if quick := [n for n in range(len(heard)) if n not in found]:
        some: dict[str, Any] = {"sounds": [heard[n] for n in quick], "numbers": [numbers[n] for n in quick]}
        words: dict[str, Any] = {
            "language": spoken.language,
            "task": spoken.task,
            "timestamps": False,
            "decoder": decoder,
            "details": True,
        }
        found |= dict(zip(quick, ask.generate(logits_processor=processor, **some, **words, **rest), strict=True))
    return [found[n] for n in range(len(heard))], heard, rest


def goes_on(work: Work, sound: Listened) -> bool:
    """Whether a sound has more frames than one window."""
    front: Any = work.model.encoders["audio"].spectrogram
    assert work.hears is not None
    return sound.heard.cut and round(sound.heard.seconds * front.rate) // front.hop > work.hears.samples // front.hop


def _passage(work: Work, sound: Listened, number: int, timed: bool) -> Passage:
    assert work.hears is not None
    front: Any = work.model.encoders["audio"].spectrogram
    return Passage(sound, int(number), front, work.hears.samples // front.hop, timed)


def _slowly(
    ask: Writer,
    decoder: str,
    passages: list[Passage],
    spoken: Spoken,
    how: Manner,
    processor: Any,
    stream: bool,
    given: Mapping[str, Any],
) -> list[Written]:
    """Window by window."""
    work = ask.work
    openings.check(work, spoken.language, spoken.task)
    settings_of(given)
    known = work.settings(decoder)
    s = settings_of({**known, **{name: value for name, value in given.items() if value is not None}})
    if stream or s.num_return_sequences > 1:
        what = "stream=True" if stream else f"num_return_sequences={s.num_return_sequences}"
        raise UserError(f"{what}: a sound longer than a window, and one with times, is written window by window: leave it out")
    if s.do_sample and how.temperature == (0.0,):
        how = dataclasses.replace(how, temperature=(s.temperature,))
    if s.do_sample and s.num_beams > 1:
        raise UserError(f"do_sample=True and num_beams={s.num_beams}: windows of a sound are drawn one text at a time")
    room = int(work.model.decoders[decoder].max_length)
    said = any(own.get("max_new_tokens") is not None for own in (known, given))
    s = s if said else dataclasses.replace(s, max_new_tokens=_room(work, s, room))
    if said and s.max_new_tokens + len(work.prompt(None)) > room:
        raise UserError(
            f"max_new_tokens={s.max_new_tokens} and the {len(work.prompt(None))} tokens by which a text begins do not fit into "
            f"decoders.{decoder}.max_length={room}"
        )
    ask.tell_unwritten()
    words = (spoken.language, spoken.task)
    return transcribed(work, decoder, passages, s, how, words, room, processor, ask.batch_size, ask._rows)


def _room(work: Work, s: Settings, room: int) -> int:
    """As many new tokens as the weights came with; with what a text begins with never more than there is room for."""
    return min(work.new_tokens(1) or s.max_new_tokens, room - 1)
