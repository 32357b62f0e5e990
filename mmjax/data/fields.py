"""What sources whose examples are tables or files by name share: which field is what of a record."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import children, has_children, is_spec, replace, setting
from mmjax.core.errors import UserError
from mmjax.core.spatial import over
from mmjax.data import splits
from mmjax.data.clip import clip
from mmjax.data.files.kept import made_once
from mmjax.data.files.remote import file_bytes, inside, is_address, joined
from mmjax.data.images import MAX_PIXELS, decode_image, read_image
from mmjax.data.lacking import is_nothing
from mmjax.data.levels import Window
from mmjax.data.sound import recording
from mmjax.data.spelling import nearest
from mmjax.data.splits import SPLITS
from mmjax.data.types import BadRecordError, Record

# What a record or a batch holds already.
TAKEN = (
    *("image", "audio", "video", "image_id", "text", "text_pair", "label", "group", "name"),
    *("text_mask", "text_segments", "index", "valid"),
)
KINDS = ("image", "audio", "video", "text", "text_pair", "label", "group")
CHUNK = 1 << 20  # keys that are looked at together
GROUPS = 2**31  # the numbers that groups have are below it
Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """The settings of a source whose examples have fields by name; inherited, so that a config writes them flat.

    A field that is named here must be there; one that has its default name is left out where the data has none, and "" leaves
    it out whatever the data has.

    Attributes:
      split: "all", or "train", "validation" or "test" by a hash of each example's key: adding examples moves no other.
      fractions: shares of train, validation and test.
      image_field: of the image: bytes of a file, HuggingFace's {"bytes", "path"}, or a path below `root`.
      audio_field: of the sound, as `image_field`; the column `Audio` reads it.
      video_field: of the video, as `image_field`; the column `Video` reads it.
      text_field: of the caption, or of a list of captions, of which the pipeline draws one each time.
      pair_field: of the second of two texts.
      label_field: of the class: a whole number, or one of `names`. Empty, NaN or negative is no class: -1.
      names: of the classes in label order, for data that does not say them itself.
      group_field: whose equal values make examples each other's positives.
      fields: record key -> a further field, whose value is passed on as it is: a string, a number, a list or an array.
      root: folder that paths of images, sounds and videos are relative to; default: that of the data.
      window: (low, high), the values that become black and white in images of more than 8 bits; None for a scale that the file
        itself gives, see `levels.to_bytes`.
      max_pixels: an image of more pixels counts as unreadable.
      optional: keys of a record that an example may lack: its field is missing, null or empty; `Data.optional` comes to them.
    """

    split: str = "all"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    image_field: str = "image"
    audio_field: str = "audio"
    video_field: str = "video"
    text_field: str = "text"
    pair_field: str = "text_pair"
    label_field: str = "label"
    names: tuple[str, ...] = ()
    group_field: str = "group"
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    root: str | None = setting(path=True, default=None)
    window: tuple[float, float] | None = None
    max_pixels: int = setting(least=1, default=MAX_PIXELS)
    optional: tuple[str, ...] = ()

    def check_fields(self, own: Sequence[str] = ()) -> None:
        """`own`: the splits that the data has itself, instead of those by a hash.

        Raises `UserError` for an unknown split, shares that do not sum to 1, a window that is none, names given twice, or a
        key of `fields` that a record has already."""
        name = type(self).__name__
        splits.check_split(name, self.split, own or (*SPLITS, "all"))
        splits.check_fractions(name, self.fractions)
        splits.check_images(name, self.window, self.max_pixels)
        for key in self.fields:
            if key in TAKEN:
                raise UserError(f"{name}.fields.{key}: a record has a {key!r} already; give it another name")
        twice = [one for one in self.names if self.names.count(one) > 1]
        if twice:
            raise UserError(f"{name}.names has {twice[0]!r} more than once")

    def found(self, there: Collection[str]) -> dict[str, str]:
        """Kind -> the field it comes from, of those of `KINDS` that the data has, whose fields are `there`.

        `there` is asked with `in`, so that it may know more names than those it lists.

        Raises:
          UserError: a field named here that is not there, or no image, sound, video, text or further field.
        """
        name = type(self).__name__
        found = {}
        for kind in KINDS:
            option = "pair_field" if kind == "text_pair" else f"{kind}_field"
            field = getattr(self, option)
            if field and field in there:
                found[kind] = field
            elif field and field != type(self).__dataclass_fields__[option].default:
                raise UserError(f"{name}.{option}={field!r} is no field of the data{nearest(field, there)}")
        for key, field in self.fields.items():
            if field not in there:
                raise UserError(f"{name}.fields.{key}={field!r} is no field of the data{nearest(field, there)}")
        if not found.keys() & {"image", "audio", "video", "text"} and not self.fields:
            raise UserError(
                f"{name}: the data has neither {self.image_field!r} nor {self.text_field!r}; it has {', '.join(there)}"
            )
        return found

    def reading(self, found: Mapping[str, str], names: tuple[str, ...] = (), root: str = "") -> Reading:
        """What makes records of examples.

        Args:
          found: what `found` gave.
          names: of the classes, where the data says them; the settings' own come first.
          root: the folder of the data.
        """
        own = self.names or names
        source = type(self).__name__
        rest = (own, self.root or root, self.window, self.max_pixels, frozenset(self.optional))
        return Reading(source, dict(found), dict(self.fields), *rest)

    def kept(self, keys: Iterable[str] | np.ndarray) -> np.ndarray | None:
        """Places of the examples that are in the split, int64; None for all.

        Args:
          keys: a text for each; or, where they are too many for texts, what `splits.place_of` gives of it, uint64.
        """
        if self.split == "all":
            return None
        if isinstance(keys, np.ndarray):
            chunks = range(0, len(keys), CHUNK)
            found = [np.flatnonzero(splits.in_split(keys[at : at + CHUNK], self.split, self.fractions)) + at for at in chunks]
            return np.concatenate(found) if found else np.zeros(0, np.int64)
        return np.array([i for i, key in enumerate(keys) if splits.hash_split(key, self.fractions) == self.split], np.int64)

    def split_file(self, of: Iterable[str], keys: Callable[[], np.ndarray]) -> Path | None:
        """The file of what `kept` gives, made once in the cache folder, for `load_places`; None for all.

        Args:
          of: texts that say which data it is.
          keys: gives `splits.place_of` the key of each example, uint64.

        Raises:
          UserError: the cache folder cannot be written.
        """
        if self.split == "all":
            return None

        def make(folder: Path) -> None:
            kept = self.kept(keys())
            assert kept is not None
            np.save(folder / "places.npy", kept)

        return made_once("split-1", [*of, self.split, repr(tuple(self.fractions))], make) / "places.npy"


def far(spec: Any) -> Iterator[str]:
    """The addresses of the files that a source, or those within it, fetches whole to read a record."""
    if isinstance(spec, Fields) and is_address(path := getattr(spec, "path", "")):
        yield path
    for child in children(spec).values():
        yield from far(child) if has_children(child) else ()


def with_optional(source: Any, keys: Sequence[str]) -> Any:
    """A source that leaves out what an example lacks of these keys; so do those within it."""
    if not keys or not has_children(source):
        return source
    for name, child in children(source).items():
        if has_children(child) and (changed := with_optional(child, keys)) is not child:
            source = replace(source, name, changed)
    if is_spec(source) and "optional" in children(source):
        source = replace(source, "optional", tuple(dict.fromkeys((*source.optional, *keys))))
    return source


def load_places(split: Path | None) -> np.ndarray | None:
    """The places of the examples in a split, mapped into memory. Raises `UserError` where the file is gone."""
    try:
        return None if split is None else np.load(split, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{split}: what the run keeps of its split is gone or broken ({error}): start again") from None


def strings_of(value: Any) -> tuple[str, ...]:
    """The strings in a text of a record, or in a list of texts."""
    found = value if isinstance(value, list | tuple) else (value,)
    return tuple(one for one in found if isinstance(one, str))


@dataclasses.dataclass(frozen=True)
class Reading:
    """An example, field -> value, to a record.

    Attributes:
      source: its name, for complaints.
      found: kind -> field.
      fields: record key -> further field.
      names: of the classes.
      root: the folder that paths of images, sounds and videos are relative to.
      window, max_pixels, optional: as `Fields` has them.
    """

    source: str
    found: dict[str, str]
    fields: dict[str, str]
    names: tuple[str, ...]
    root: str
    window: Window | None
    max_pixels: int
    optional: frozenset[str] = frozenset()

    def has(self, key: str) -> bool:
        """Whether records have a key."""
        return key in self.found or key in self.fields

    def encoded(self, example: Example) -> bytes | None:
        """The file of an example's image as it lies there; None where there is none, or it is no file. Raises OSError."""
        value = example.get(self.found.get("image", ""))
        value = inside(value)
        if isinstance(value, str) and value:
            return file_bytes(self.root, value)
        return value if isinstance(value, bytes) else None

    def only(self, keys: Collection[str]) -> Reading:
        """The same for some keys of a record."""
        found = {key: field for key, field in self.found.items() if key in keys}
        return dataclasses.replace(self, found=found, fields={k: field for k, field in self.fields.items() if k in keys})

    def __call__(self, example: Example, where: str) -> Record:
        """The record. `where` names the example, for complaints.

        Raises:
          BadRecordError: a field that is not there, or a value that is not what it should be.
        """
        record: Record = {}
        for key, field in (*self.found.items(), *self.fields.items()):
            if key in self.optional and is_nothing(example.get(field)):
                continue
            if field not in example:
                raise BadRecordError(where, f"it has no {field!r}")
            record[key] = self._value(key, example[field], f"{where} {field}")
        if record.get("label", -1) >= 0 and self.names:
            record["name"] = self.names[record["label"]]
        return record

    def told(self, example: Example, where: str) -> tuple[int, tuple[str, ...]]:
        """The class of an example, -1 where it has none or one that cannot be read, and its captions."""
        try:
            label = self._label(example.get(self.found.get("label", "")), where)
        except BadRecordError:
            label = -1
        return label, tuple(self.texts(example))

    def texts(self, example: Example) -> Iterator[str]:
        """The captions of an example; those that are no texts are passed over."""
        for kind in ("text", "text_pair"):
            value = example.get(self.found.get(kind, ""))
            for one in value if isinstance(value, list | tuple | np.ndarray) else (value,):
                if isinstance(one, bytes | str):
                    yield one.decode("utf-8", "replace") if isinstance(one, bytes) else one

    def _value(self, key: str, value: Any, where: str) -> Any:
        if key in self.fields:
            return _laid_over(key, _passed_on(value, where))
        if key == "image":
            return self._image(value, where)
        if key == "audio":
            return recording(value, where, self.root)
        if key == "video":
            return clip(value, where, self.root)
        if key == "label":
            return self._label(value, where)
        if key == "group":
            return group_of(value, where)
        return _text(value, where, several=key == "text")

    def _image(self, value: Any, where: str) -> np.ndarray:
        value = inside(value)
        if isinstance(value, bytes):
            return decode_image(value, where, self.window, self.max_pixels)
        if isinstance(value, str) and value:
            return read_image(joined(self.root, value), self.window, self.max_pixels)
        raise BadRecordError(where, f"an image is the bytes of a file or a path, not {_said(value)}")

    def _label(self, value: Any, where: str) -> int:
        if isinstance(value, bytes):
            value = _decoded(value, where)
        if value is None or (isinstance(value, str) and not value.strip()):
            return -1
        if isinstance(value, str) and value.strip() in self.names:
            return self.names.index(value.strip())
        if isinstance(value, float | np.floating):  # what pandas makes of whole numbers where some are missing
            if np.isnan(value):
                return -1
            value = int(value) if float(value).is_integer() else value
        try:
            number = int(value) if isinstance(value, str | int | np.integer) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None:
            known = ", ".join(self.names[:8]) or f"none: give {self.source}.names"
            raise BadRecordError(where, f"{_said(value)} is no class; the names of the classes are {known}")
        if self.names and number >= len(self.names):
            raise BadRecordError(where, f"the class {number} is none of the {len(self.names)} that have names")
        return max(-1, number)


def group_of(value: Any, where: str) -> int:
    """A number below `GROUPS`: a whole number as it is, 31 bits of a hash of a text."""
    if isinstance(value, bytes):
        value = _decoded(value, where)
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < GROUPS:
        return int(value)
    if not isinstance(value, str | int | np.integer) or isinstance(value, bool):
        raise BadRecordError(where, f"a group is a string or a whole number, not {_said(value)}")
    return int.from_bytes(hashlib.blake2b(splits.encoded(str(value)), digest_size=4).digest(), "little") % GROUPS


def _text(value: Any, where: str, several: bool) -> Any:
    if isinstance(value, bytes):
        return _decoded(value, where)
    if isinstance(value, str):
        return value
    if several and isinstance(value, list | tuple | np.ndarray) and len(value):
        return tuple(_text(one, where, several=False) for one in value)
    raise BadRecordError(where, f"a text is a string{', or a list of one or more' * several}, not {_said(value)}")


def _passed_on(value: Any, where: str) -> Any:
    if isinstance(value, bytes):
        return _decoded(value, where)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float | list | tuple | np.ndarray):
        return value
    raise BadRecordError(where, f"{_said(value)} is no string, number, list or array")


def _laid_over(key: str, value: Any) -> Any:
    """Boxes and points of an image that has none have their width all the same, which an empty list does not tell."""
    kind = over("image", [key]).get(key)
    if kind in ("boxes", "points") and isinstance(value, list | tuple | np.ndarray) and len(value) == 0:
        return np.zeros((0, 4 if kind == "boxes" else 2), np.float32)
    return value


def _decoded(value: bytes, where: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecordError(where, f"not UTF-8 text ({error})") from None


def _said(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}... ({type(value).__name__})"
