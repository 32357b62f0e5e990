"""What a run says of each of many sounds, for `mmjax predict`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmjax.core.errors import UserError
from mmjax.data.sound import Listening
from mmjax.predict.made import Listened, listened
from mmjax.predict.predictor import Predictor
from mmjax.predict.windows import goes_on
from mmjax.predict.work import Work
from mmjax.predict.writing import Written

if TYPE_CHECKING:
    from mmjax.predict.answers import Asked, Input

BLOCK = 60  # seconds that are looked at together


def heard_through(work: Work, sound: Any) -> Listened:
    """The beginning of a sound; of one that is gone through window by window all of it was read, and is known to be good.

    Raises:
      BadRecordError: it cannot be read to its end.
    """
    found = listened(work, sound)
    if work.clock is None or found.source is None or work.hears is None or not goes_on(work, found):
        return found
    silent, clipped = found.heard.silent, found.heard.clipped
    with Listening(found.source, work.hears.rate, work.hears.channel) as file:
        for start in range(0, file.samples, BLOCK * file.rate):
            x_N, too_loud = file.read(start, BLOCK * file.rate)
            silent, clipped = silent and bool((x_N == found.waveform[0]).all()), clipped or too_loud
    return dataclasses.replace(found, heard=dataclasses.replace(found.heard, silent=silent, clipped=clipped))


def said_in(ask: Predictor, some: list[Input], given: list[Listened], asked: Asked) -> list[dict[str, Any]]:
    """Classes of sounds, or what is said in them; of one of which only the beginning is heard, `seconds` and how many were
    `heard`; `silent` where all samples are the same."""
    work = ask.work
    if any(one.question for one in some) or asked.question or asked.classes or asked.pair:
        raise UserError(f"{work.path} reads sounds: --question, --classes and --pair are of images and texts")
    silent: list[dict[str, Any]] = [{"silent": True} if one.heard.silent else {} for one in given]
    if ask.classifies() and not asked.decoder:
        if asked.spoken:
            raise UserError(
                f"{work.path} says classes of sounds, and writes no texts: leave --{' and --'.join(asked.spoken)} out"
            )
        rows = ask.classify(sounds=given, top_k=asked.top_k, threshold=asked.threshold)
        return [{"classes": row, **_length(one), **mute} for row, one, mute in zip(rows, given, silent, strict=True)]
    if ask.transcribes() and not asked.decoder:
        if asked.spoken or asked.new_tokens:
            said = " and --".join([*asked.spoken, *["max_new_tokens"] * bool(asked.new_tokens)])
            raise UserError(f"{work.path} says a letter a frame, and --{said} are of decoders: leave them out")
        texts = ask.transcribe(given)
        return [{"transcript": text, **_length(one), **mute} for text, one, mute in zip(texts, given, silent, strict=True)]
    settings: dict[str, Any] = {**asked.spoken, **({"max_new_tokens": asked.new_tokens} if asked.new_tokens else {})}
    numbers = [one.number for one in some]
    own = ask.generate(sounds=given, decoder=asked.decoder, numbers=numbers, num_return_sequences=1, details=True, **settings)
    lengths = [{} if work.clock is not None else _length(one) for one in given]
    return [
        {"transcript": one.text.strip(), **_segments(one, asked), **({} if one.ended else {"cut": True}), **length, **mute}
        for one, length, mute in zip(own, lengths, silent, strict=True)
    ]


def _segments(one: Written, asked: Asked) -> dict[str, Any]:
    """What was said from when to when, without what has no words, where times were asked for."""
    if not asked.spoken.get("timestamps"):
        return {}
    kept = [own for own in one.segments if own.text.strip()]
    return {"segments": [{"start": round(s.start, 2), "end": round(s.end, 2), "text": s.text.strip()} for s in kept]}


def _length(one: Listened) -> dict[str, Any]:
    heard = one.heard
    return {"seconds": round(heard.seconds, 3), "heard": len(one.waveform) / heard.rate} if heard.cut else {}
