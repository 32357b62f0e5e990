"""What is given, made ready for the encoders: one row an input."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.audio import Hear
from mmjax.data.lacking import VALID
from mmjax.data.sound import Heard, Recording, recording
from mmjax.data.types import BadRecordError
from mmjax.predict import watched
from mmjax.predict.inputs import as_list, as_texts
from mmjax.predict.work import Work

logger = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Listened:
    """A sound as the run's column makes it.

    Attributes:
      waveform: [n] float32, without padding.
      heard: what of it that is.
      source: the whole of it.
    """

    waveform: np.ndarray
    heard: Heard
    source: Recording | None = None


def listened(work: Work, sound: Any) -> Listened:
    """A path, the bytes of a file, or `{"array", "sampling_rate"}`, from its start; what was listened to already stays.

    Raises:
      BadRecordError: a file that is no sound.
      UserError: something else; a run that says nothing of how sounds are made ready.
    """
    if isinstance(sound, Listened):
        return sound
    if work.hears is None:
        raise UserError(f"{work.path}: nothing in it says how a sound is made ready (preprocessor_config.json is not there)")
    given = os.fspath(sound) if isinstance(sound, os.PathLike) else sound
    source = recording(given, "a sound audio")
    record = Hear("audio", work.hears)({"audio": source}, None, "a sound")
    return Listened(record["audio"], record["audio_heard"], source)


def batch(work: Work, given: Mapping[str, Any], pairs: Any = None) -> dict[str, np.ndarray]:
    """Batch key -> [N, ...].

    Args:
      given: `image`, `text`, `audio`, `video` -> as many inputs of each, or one; None where none are given of it.
      pairs: second texts, as many.

    Raises:
      UserError: none of them, or not as many; one that cannot be read.
    """
    given, has = _without_none(work, given)
    images, sounds = as_list(given.get("image")), as_list(given.get("audio"))
    texts, pairs = as_texts(given.get("text")), as_texts(pairs)
    videos = as_list(given.get("video"))
    named = {"images": images, "texts": texts, "sounds": sounds, "videos": videos}
    counts = {name: len(own) for name, own in named.items() if own is not None}
    if not counts:
        raise UserError("give images, texts, sounds or videos, or several of them")
    if len(set(counts.values())) > 1 and not has:
        raise UserError(f"{' and '.join(f'{count} {name}' for name, count in counts.items())}: give as many of each")
    found: dict[str, np.ndarray] = {}
    try:
        found |= {} if images is None else {"image": _stacked(work, images)}
        found |= {} if sounds is None else _padded(work, sounds)
        found |= {} if videos is None else watched.batch_of(work, videos)
    except BadRecordError as error:
        raise UserError(str(error)) from None
    if texts is not None:
        own, cut = work.texts(texts, pairs)
        if any(cut):
            logger.warning("mmjax: %d of %d texts were cut to %d tokens", sum(cut), len(cut), own["ids"].shape[1])
        found |= {"text": own["ids"], "text_mask": own["mask"]}
        found |= {} if pairs is None else {"text_segments": own["segments"]}
    return _with_none(work, found, has)


def _without_none(work: Work, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Inputs without those that are None in a list, and of each modality that may be lacking which rows have it, bool [N].

    Raises:
      UserError: another number of each; a row without anything.
    """
    lists = {name: as_list(some) for name, some in given.items() if some is not None}
    if "text" in work.optional and "text" in lists:  # an empty text is a lacking one, as in the data
        lists["text"] = [one or None for one in lists["text"] or ()]
    if not any(name in work.model.encoders for name in work.optional) or not lists:
        return dict(given), {}
    sizes = {name: len(own or ()) for name, own in lists.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"{' and '.join(f'{size} {name}' for name, size in sizes.items())}: give as many of each, None for none"
        )
    for name, own in lists.items():
        if name not in work.optional and None in [one if one is None else 0 for one in own or ()]:
            raise UserError(f"{name}: one of them is None, and the run's data.optional names {', '.join(work.optional)} alone")
    size = next(iter(sizes.values()))
    has = {name: np.array([one is not None for one in lists.get(name) or [None] * size]) for name in work.optional}
    there = np.any([[one is not None for one in own or ()] for own in lists.values()], axis=0)
    if not there.all():
        raise UserError(f"input {int(np.flatnonzero(~there)[0])}: nothing is given of it")
    kept = {name: [one for one in own or () if one is not None] for name, own in lists.items()}
    return {name: own for name, own in kept.items() if own}, has


def _with_none(work: Work, found: dict[str, np.ndarray], has: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With zeros in the rows that lack a modality, and `MODALITY_valid`."""
    for name, has_B in has.items():
        own = {key: x for key, x in found.items() if key == name or key.startswith(f"{name}_")} or _shapes(work, name)
        for key, x in own.items():
            found[key] = np.zeros((len(has_B), *x.shape[1:]), x.dtype)
            if len(x):
                found[key][has_B] = x
        found |= {f"{name}_{VALID}": has_B} if own else {}
    return found


def _shapes(work: Work, modality: str) -> dict[str, np.ndarray]:
    """Batch key -> an array of no rows, of a modality that no input has; {} where nothing says its size."""
    if modality == "text":
        length = work.length()
        return {"text": np.zeros((0, length), np.int32), "text_mask": np.zeros((0, length), bool)}
    if modality == "audio" and work.hears is not None:
        return {"audio": np.zeros((0, work.hears.samples), np.float32), "audio_mask": np.zeros((0, work.hears.samples), bool)}
    if modality == "image" and work.shape is not None:
        return {"image": np.zeros((0, *work.shape), np.float32)}
    return {}


def _stacked(work: Work, images: list[Any]) -> np.ndarray:
    made = [work.pixels(image) for image in images]
    if len(sizes := {one.shape for one in made}) > 1:
        raise UserError(f"{work.path}: images of {len(sizes)} sizes after its transforms, which have no Resize: {sizes}")
    return np.stack(made)


def _padded(work: Work, sounds: list[Any]) -> dict[str, np.ndarray]:
    own = [listened(work, sound) for sound in sounds]
    assert work.hears is not None
    samples, rate = work.hears.samples, work.hears.rate
    if getattr(work.model.encoders["audio"], "any_length", False):  # to whole seconds, which are few shapes to compile
        samples = min(samples, -(-max(len(one.waveform) for one in own) // rate) * rate)
    x_BN = np.zeros((len(own), samples), np.float32)
    mask_BN = np.zeros(x_BN.shape, bool)
    for row, one in enumerate(own):
        x_BN[row, : len(one.waveform)], mask_BN[row, : len(one.waveform)] = one.waveform, True
    if cut := [one.heard for one in own if one.heard.cut]:
        logger.warning(
            "mmjax: of %d of %d sounds no more than the first %g s are heard; the longest has %.0f s",
            len(cut), len(own), work.hears.seconds, max(one.seconds for one in cut),
        )  # fmt: skip
    return {"audio": x_BN, "audio_mask": mask_BN}
