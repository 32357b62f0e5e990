"""Whole records in `tf.train.Example`: what `mmjax data prepare` writes, and `ArrayRecord` gives back equal."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data.clip import Clip, clip
from mmjax.data.files import remote
from mmjax.data.images import MAX_PIXELS, decode_image, printable
from mmjax.data.sound import Recording, recording
from mmjax.data.splits import fingerprint
from mmjax.data.types import BadRecordError, Record

ABOUT = "prepared.json"  # of a folder: what it holds
OWN = "mmjax"  # the feature that says what the others are
VERSION = 1
TOLD = ("label", "text")  # what may be known of a record that cannot be read
NAMED = 3  # missing files in a complaint
CASES = {"tuple": tuple, "list": list}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a prepared folder holds, a function of the source alone: every process that writes a part of it says the same.

    Attributes:
      fingerprint: of the source's records.
      spec: JSON of the source but for its paths, which may be others on another machine.
      size: how many records.
      shards: in how many files.
      classes: names in label order.
    """

    fingerprint: str
    spec: str
    size: int
    shards: int
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all of it, and of how it is written; each file bears it in its name."""
        parts = (str(VERSION), self.fingerprint, self.spec, str(self.size), str(self.shards), *self.classes)
        return fingerprint(parts)

    def name(self, shard: int) -> str:
        """The name of a file; sorted by name they are in the order of the records."""
        return f"{self.digest[:8]}-{shard:05}-of-{self.shards:05}.array_record"

    def places(self, shard: int) -> range:
        """The records of a file."""
        return range(shard * self.size // self.shards, (shard + 1) * self.size // self.shards)

    def json(self) -> str:
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def at(cls, folder: str | Path) -> Prepared | None:
        """What a folder says that it holds; None for one that `prepare` has not written.

        Raises:
          UserError: what it says cannot be read, or is of another version.
        """
        file = remote.joined(str(folder), ABOUT)
        try:
            found = json.loads(remote.file_bytes(str(folder), ABOUT))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{printable(file)}: {error.strerror}") from None
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{printable(file)}: not what mmjax data prepare writes ({error}): prepare it again") from None
        try:
            version = found.pop("version")
            if version != VERSION:
                raise UserError(f"{printable(file)}: version {version}, and this mmjax reads {VERSION}: prepare it again")
            return cls(**{**found, "classes": tuple(found["classes"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{printable(file)}: not what mmjax data prepare writes ({error}): prepare it again") from None

    def missing(self, folder: str | Path) -> list[int]:
        """The shards that are not there."""
        if remote.is_address(str(folder)):
            there = {one.rpartition("/")[2] for one in remote.below(str(folder), ".array_record")}
            return [shard for shard in range(self.shards) if self.name(shard) not in there]
        return [shard for shard in range(self.shards) if not (Path(folder) / self.name(shard)).is_file()]

    def files(self, folder: str) -> tuple[str, ...]:
        """The paths of all files. Raises `UserError` where one is missing."""
        if gone := self.missing(folder):
            named = ", ".join(self.name(shard) for shard in gone[:NAMED]) + (", ..." if len(gone) > NAMED else "")
            how = f"--shard {gone[0]}/{self.shards}" if len(gone) == 1 else "the same words again"
            raise UserError(
                f"ArrayRecord.path={folder!r}: {len(gone)} of its {self.shards} shards are missing, {named}; "
                f"mmjax data prepare with {how} writes what is not there"
            )
        return tuple(remote.joined(folder, self.name(shard)) for shard in range(self.shards))

    def check(self, counts: np.ndarray) -> None:
        """Raise `UserError` for a file that has not as many records as it should."""
        for shard, count in enumerate(counts.tolist()):
            if count != len(self.places(shard)):
                wanted = len(self.places(shard))
                raise UserError(f"{self.name(shard)}: it has {count} records and should have {wanted}: prepare it again")


def example_of(record: Record, encoded: bytes | None = None) -> tuple[dict[str, Any], str]:
    """A record as values for `tf_example.example_bytes`, and how its image is held: "file", "png" or "" for none.

    Texts, whole numbers, images, sounds and videos, as their files, are features that any reader of such files knows; other
    arrays are `.npy` files, and the rest is JSON. The feature `mmjax` says which is which.

    Args:
      encoded: the file of the record's `image`, if it is at hand. It is kept where decoding it gives the very pixels of the
        record; else, as with every other image, the pixels are written as PNG.

    Raises:
      ValueError: a value that cannot be held, or a key `mmjax`.
    """
    if OWN in record:
        raise ValueError(f"a record has {OWN!r}, which says how it is held; call it otherwise")
    values: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    image = ""
    for key, value in record.items():
        if _is_image(value):
            kept = encoded if key == "image" and encoded is not None and _same(encoded, value) else None
            image = ("png" if kept is None else "file") if key == "image" else image
            kinds[key], values[key] = "image", _png(value) if kept is None else kept
        elif isinstance(value, Recording):
            kinds[key], values[key] = "sound", value.encoded()
        elif isinstance(value, Clip):
            kinds[key], values[key] = "video", value.encoded()
        elif isinstance(value, np.ndarray | np.generic):
            kinds[key], values[key] = "array" if isinstance(value, np.ndarray) else "scalar", _npy(key, value)
        elif isinstance(value, str):
            kinds[key], values[key] = "text", _bytes(value)
        elif type(value) in (tuple, list) and value and all(isinstance(one, str) for one in value):
            kinds[key], values[key] = type(value).__name__, [_bytes(one) for one in value]
        elif type(value) is int and -(2**63) <= value < 2**63:
            kinds[key], values[key] = "int", value
        else:
            kinds[key] = {"json": _plain(key, value)}
    return {**values, OWN: json.dumps({"keys": kinds})}, image


def unreadable_of(error: BadRecordError, label: int = -1, texts: Collection[str] = ()) -> dict[str, Any]:
    """A record that cannot be read, in its place: it cannot be read there either, by the same name and for the same reason.

    `label` and `texts` are what is known of it all the same.
    """
    told = {"unreadable": [error.path, error.reason], "keys": {"label": "int"} | ({"text": "tuple"} if texts else {})}
    return {"label": label, "text": [_bytes(one) for one in texts] or None, OWN: json.dumps(told)}


@dataclasses.dataclass(frozen=True)
class Kept:
    """An example to the record that it was made of; stands where other files have a `fields.Reading`.

    Attributes:
      names: of the classes.
      max_pixels: as `Fields` has it; its default sets no limit beyond that of the source.
      keys: those that are wanted; None for all.
    """

    names: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    keys: frozenset[str] | None = None

    def has(self, key: str) -> bool:
        """Whether a record may have a key: which ones do is known when they are read."""
        return True

    def encoded(self, example: Mapping[str, Any]) -> bytes | None:
        """The file of an example's image."""
        value = example.get("image")
        return value if isinstance(value, bytes) else None

    def only(self, keys: Collection[str]) -> Kept:
        """The same for some keys of a record; of one that cannot be read, those that are known."""
        return dataclasses.replace(self, keys=frozenset(keys))

    def __call__(self, example: Mapping[str, Any], where: str) -> Record:
        """The record. Raises `BadRecordError` for one that could not be read when it was written, and for what is none."""
        try:
            about = json.loads(example[OWN])
            if "unreadable" in about and self.keys is None:
                path, reason = about["unreadable"]
                raise BadRecordError(str(path), str(reason))
            wanted = [key for key in about["keys"] if self.keys is None or key in self.keys]
            return {key: self._value(about["keys"][key], example.get(key), f"{where} {key}") for key in wanted}
        except (KeyError, ValueError, TypeError, AttributeError, EOFError, RecursionError) as error:
            raise BadRecordError(where, f"not what mmjax data prepare writes ({type(error).__name__}: {error})") from None

    def _value(self, kind: Any, value: Any, where: str) -> Any:
        if isinstance(kind, dict):
            return _lively(kind["json"])
        if kind == "image":
            limit = sys.maxsize if self.max_pixels == MAX_PIXELS else self.max_pixels
            return decode_image(value, where, None, limit)
        if kind == "sound":
            return recording(value, where)
        if kind == "video":
            return clip(value, where)
        if kind in ("array", "scalar"):
            array = np.load(io.BytesIO(value), allow_pickle=False)
            return array if kind == "array" else array[()]
        if kind in CASES:
            return CASES[kind](_text(one) for one in (value if isinstance(value, list) else [value]))
        return _text(value) if kind == "text" else int(value)


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape[2:] == (3,) and value.size > 0


def _same(encoded: bytes, image_HW3: np.ndarray) -> bool:
    """Whether a file decodes to these pixels, without the window that the source may have."""
    try:
        return np.array_equal(decode_image(encoded, "", None, sys.maxsize), image_HW3)
    except BadRecordError:
        return False


def _png(image_HW3: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_HW3).save(file, "PNG")
    return file.getvalue()


def _npy(key: str, value: np.ndarray | np.generic) -> bytes:
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise ValueError(f"{key!r} is an array of objects: give numbers, or a list")
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _plain(key: str, value: Any) -> Any:
    """Data for JSON, in which tuples and mappings are told from lists."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_plain(key, one) for one in value]
    if type(value) is tuple:
        return {"tuple": [_plain(key, one) for one in value]}
    if type(value) is dict and all(type(name) is str for name in value):
        return {"dict": {name: _plain(key, one) for name, one in value.items()}}
    raise ValueError(f"{key!r} holds {type(value).__name__}: texts, numbers, None, arrays, and lists of these can be kept")


def _lively(value: Any) -> Any:
    """What `_plain` was given."""
    if isinstance(value, list):
        return [_lively(one) for one in value]
    if isinstance(value, dict):
        ((kind, inside),) = value.items()
        return tuple(map(_lively, inside)) if kind == "tuple" else {name: _lively(one) for name, one in inside.items()}
    return value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # half a character, as JSON may spell one


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
