"""Which lines of a table are in a split, and what of them depends on each other: groups, images, the fingerprint."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data import splits
from mmjax.data.splits import SPLITS
from mmjax.data.tables import groups, json_text
from mmjax.data.tables.stored import FLOAT, INT, JSON, STRINGS, Stored, broken, read_sealed, whole, write_sealed

ARRAYS = ("places", "groups", "image_ids")
LARGE = 1 << 26  # bytes of an array that is laid into a file while it is worked on


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """The lines of one split.

    Attributes:
      size: how many they are.
      places: the number of each among all lines, rising; None for all lines.
      groups: of each, int32 or int64 [size].
      image_ids: of each, equal for equal images; None where each line has an image of its own, or none.
      present: the labels that they have, rising.
      digest: their fingerprint.
      folder: where the arrays lie; None for memory.
    """

    size: int
    places: np.ndarray | None
    groups: np.ndarray
    image_ids: np.ndarray | None
    present: tuple[int, ...]
    digest: str
    folder: Path | None = None

    def save(self, folder: Path) -> None:
        told: dict[str, Any] = {"size": self.size, "present": self.present, "digest": self.digest, "sums": {}}
        for name in ARRAYS:
            if (array := getattr(self, name)) is not None:
                np.save(folder / f"{name}.npy", array)
                told["sums"][name] = _sum(folder / f"{name}.npy")
        write_sealed(folder, told)

    @classmethod
    def at(cls, folder: Path, check: bool = False) -> Chosen:
        """What `save` has written. Raises `UserError` where it is damaged; `check`: also in the midst of an array."""
        try:
            told = read_sealed(folder)
            arrays: dict[str, Any] = dict.fromkeys(ARRAYS)
            for name, checksum in told["sums"].items():
                file = folder / f"{name}.npy"
                if check and _sum(file) != checksum:
                    raise broken(folder)
                arrays[name] = np.load(file, mmap_mode="r")
                if arrays[name].shape != (told["size"],):
                    raise broken(folder)
            return cls(told["size"], **arrays, present=tuple(told["present"]), digest=told["digest"], folder=folder)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise error if isinstance(error, UserError) else broken(folder) from None

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self.folder is not None:
            return Chosen.at, (self.folder,)
        return Chosen, tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def choose(
    table: Stored, split: str, fractions: Sequence[float], maps: Sequence[str], folder: Path | None = None
) -> Chosen | None:
    """The lines of a split, see `Manifest`; None where there is none.

    Args:
      maps: keys of the label maps.
      folder: for large arrays while they are worked on; None for memory.
    """
    work = _Choosing(table, folder)
    places = work.places(split, fractions)
    if places is not None and not len(places):
        return None
    size = table.about.rows if places is None else len(places)
    numbers_n, ids_n = work.related(places, size)
    present = work.present(places)
    digest = work.fingerprint(places, numbers_n, ids_n, maps)
    ids = None if ids_n is None else _narrow(ids_n)
    return Chosen(size, None if places is None else _narrow(places), _narrow(numbers_n), ids, present, digest)


class _Choosing:
    def __init__(self, table: Stored, folder: Path | None) -> None:
        self.table, self.about, self.folder = table, table.about, folder
        self.rank = np.array([*self.about.rank, -1], np.int64)  # of the code -1 too

    def places(self, split: str, fractions: Sequence[float]) -> np.ndarray | None:
        if split == "all":
            return None
        if "split" in self.about.keys:
            found = self._gathered("split", np.int8) == SPLITS.index(split)
        else:
            found = self._by_hash(split, fractions)
        return None if found.all() else np.flatnonzero(found)

    def _by_hash(self, split: str, fractions: Sequence[float]) -> np.ndarray:
        """Whether each line is in the split, bool [N], exactly as `splits.share_out` says."""
        halves_2N = self._room((2, self.about.rows), np.uint64)
        at = 0
        for _, batch in self.table.batches():
            at = groups.hashed(self._split_keys(batch), halves_2N, at)
        first_N = groups.firsts(halves_2N)
        del halves_2N
        own_N = first_N == np.arange(len(first_N))
        label_N = self.labels(None) if "label" in self.about.keys else np.full(len(first_N), -1)
        sizes = np.bincount(label_N[own_N] + 1, minlength=len(self.rank))
        large = sizes * min(share for share in fractions if share > 0) >= splits.SURE
        in_N = np.zeros(len(first_N), bool)
        small: dict[int, tuple[list[int], list[str]]] = {}
        for start, batch in self.table.batches():
            end = start + batch.num_rows
            keys = self._split_keys(batch)
            chance = own_N[start:end] & large[label_N[start:end] + 1]
            drawn = np.flatnonzero(chance)
            points_n = np.frombuffer(b"".join([sha256(keys[row]).digest()[:8] for row in drawn.tolist()]), ">u8").astype(
                np.uint64
            )
            in_N[start + drawn] = splits.in_split(points_n, split, fractions)
            for row in np.flatnonzero(own_N[start:end] & ~chance).tolist():
                rows, texts = small.setdefault(int(label_N[start + row]), ([], []))
                rows.append(start + row)
                texts.append(keys[row].decode("utf-8", "surrogatepass"))
        for label, (rows, texts) in small.items():
            shared = splits.share_out({label: texts}, fractions)
            in_N[rows] = [shared[text] == split for text in texts]
        return in_N[first_N]

    def related(self, places: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The group of each line of a split, as written, else by the label where there is no text, else by image, sound,
        video and text; and the number of its image."""
        keys = self.about.keys
        images = groups.firsts(self._keys(places, size, "image")[0]) if "image" in keys else None
        ids = None
        if images is not None and not np.array_equal(images, np.arange(size)):
            ids = groups.by_first(images)
        if "group" in keys:
            numbers_N = self._numbered()
            return numbers_N if places is None else numbers_N[places], ids
        if "label" in keys and "text" not in keys:  # what has no class is a group of its own
            label_n = self.labels(places)
            return np.where(label_n >= 0, label_n, len(self.about.labels) + np.arange(size)), ids
        pairs = [] if images is None else [(images, np.arange(size))]
        for key in ("audio", "video"):
            if key in keys:
                pairs.append((groups.firsts(self._keys(places, size, key)[0]), np.arange(size)))
        if "text" in keys:
            halves_2K, rows_K = self._keys(places, size, "text")
            pairs.append((rows_K[groups.firsts(halves_2K)], rows_K))
        return groups.by_relation(size, pairs), ids

    def _numbered(self) -> np.ndarray:
        """Whole numbers that fit int32 as they are, where all of them are such; else numbers in the order of first appearance:
        over the whole file, so that a group has one number in all splits."""
        if self.about.kinds["group"] == INT:
            numbers_N = self._gathered("group", np.int64)
            if numbers_N.min() >= 0 and numbers_N.max() < 2**31:
                return numbers_N
        return groups.by_first(groups.firsts(self._keys(None, self.about.rows, "group")[0]))

    def _keys(self, places: np.ndarray | None, size: int, key: str) -> tuple[np.ndarray, np.ndarray]:
        """128 bits for each image, group or text of some lines, uint64 [2, K], and the number of its line among them."""
        import pyarrow.compute as pc

        kind = self.about.kinds[key]
        rows_K = np.arange(size)
        if key == "text" and kind in (STRINGS, JSON):
            counts = [np.array(self._lengths(batch), np.int64) for _, batch in self.table.batches(places)]
            rows_K = np.repeat(rows_K, np.concatenate(counts))
        halves_2K = self._room((2, len(rows_K)), np.uint64)
        at = 0
        for _, batch in self.table.batches(places):
            column = self.table.column(batch, key)
            if kind == STRINGS:
                own = pc.cast(column.flatten(), "binary").to_pylist()
            elif kind == JSON or key == "group":
                values = self.table.values(batch, key)
                none = () if key == "text" else (None,)
                own = [one for value in values for one in (none if value is None else _spelled(value))]
            else:
                own = pc.cast(column, "binary").to_pylist()
            # What a line lacks is no other line's: a key of its own, which no text of UTF-8 is.
            own = [b"\xfe%d" % (at + n) if one is None else one for n, one in enumerate(own)] if None in own else own
            at = groups.hashed(own, halves_2K, at)
        return halves_2K, rows_K

    def _lengths(self, batch: Any) -> list[int]:
        values = self.table.values(batch, "text")
        return [1 if isinstance(value, str) else 0 if value is None else len(value) for value in values]

    def _split_keys(self, batch: Any) -> list[bytes]:
        """What the split of a line goes by: its image, without one its sound or video, without these its text, else all."""
        found: list[bytes | None] = [None] * batch.num_rows
        for key in ("image", "audio", "video", "text"):
            if key in self.about.keys and None in found:
                found = [one if one is not None else own for one, own in zip(found, self._told_by(batch, key), strict=True)]
        if None not in found:
            return found  # type: ignore[return-value]
        keys = self.about.keys
        names = [key for key in keys if key.startswith("fields.")]
        columns = [self.table.values(batch, key) for key in names]
        own = [key.partition(".")[2] for key in names]
        rest = [json.dumps(dict(zip(own, values, strict=True))).encode() for values in zip(*columns, strict=True)]
        return [one if one is not None else other for one, other in zip(found, rest, strict=True)]

    def _told_by(self, batch: Any, key: str) -> list[bytes | None]:
        """The values of an image, a sound or a text, as bytes; None where a line lacks it."""
        import pyarrow.compute as pc

        column = self.table.column(batch, key)
        if key == "text":
            told = pc.cast(self._json(batch, key), "binary").to_pylist()
            return [None if lacking else one for one, lacking in zip(told, column.is_null().to_pylist(), strict=True)]
        if self.about.kinds[key] != JSON:
            return list(pc.cast(column, "binary").to_pylist())
        values = self.table.values(batch, key)
        return [None if value is None else value.encode("utf-8", "surrogatepass") for value in values]

    def labels(self, places: np.ndarray | None) -> np.ndarray:
        """int64 [n], -1 for no class."""
        codes_N = self._gathered("label", np.int32)
        return self.rank[codes_N if places is None else codes_N[places]]

    def present(self, places: np.ndarray | None) -> tuple[int, ...]:
        if "label" not in self.about.keys:
            return ()
        counts = np.bincount(self.labels(places) + 1, minlength=len(self.rank))
        return tuple(np.flatnonzero(counts[1:]).tolist())

    def fingerprint(
        self, places: np.ndarray | None, groups_n: np.ndarray, ids_n: np.ndarray | None, maps: Sequence[str]
    ) -> str:
        """A hash of the names of the maps, and of each line as JSON with its keys in their order."""
        return splits.fingerprint_of(self._told(places, groups_n, ids_n, maps))

    def _told(
        self, places: np.ndarray | None, groups_n: np.ndarray, ids_n: np.ndarray | None, maps: Sequence[str]
    ) -> Iterator[bytes]:
        import pyarrow as pa

        yield from map(splits.framed, maps)
        keys = {key.partition(".")[2] or key: key for key in self.about.keys if key not in ("group", "split")}
        keys |= {"group": "", **({} if ids_n is None else {"image_id": ""}), **({"name": ""} if "label" in keys else {})}
        names = pa.array([*(f', "name": {json.dumps(name)}' for name in self.about.names), ""], pa.string())
        at = 0
        for _, batch in self.table.batches(places):
            end = at + batch.num_rows
            pieces: list[Any] = []
            for name, key in sorted(keys.items()):
                before = f"{', ' if pieces else '{'}{json.dumps(name)}: "
                if name == "name":
                    codes_n = self.rank[self.table.column(batch, "label").to_numpy()]
                    pieces.append(names.take(whole(np.where(codes_n < 0, len(names) - 1, codes_n))))
                    continue
                if key:
                    column = self._json(batch, key)
                else:
                    numbers_n = groups_n if name == "group" else ids_n
                    assert numbers_n is not None
                    column = whole(numbers_n[at:end]).cast(pa.string())
                pieces += [before, column]
            yield json_text.with_lengths(json_text.joined(*pieces, "}"))
            at = end

    def _json(self, batch: Any, key: str) -> Any:
        """What `json.dumps` writes of each value of a column."""
        import pyarrow as pa

        column, kind = self.table.column(batch, key), self.about.kinds.get(key)
        if key == "label":
            return whole(self.rank[column.to_numpy()]).cast(pa.string())
        if kind in (JSON, FLOAT) or key in self.about.numbers:
            if kind == INT and self.about.numbers[key] == "int":
                return column.cast(pa.string())
            try:
                return json_text.dumped(self.table.values(batch, key))
            except OverflowError:
                raise UserError(f"Manifest.{key}: a number of the file is too large for a float, as its others are") from None
        return (json_text.listed(column) if kind == STRINGS else json_text.quoted(column)).fill_null("null")

    def _gathered(self, key: str, dtype: Any) -> np.ndarray:
        """A column of whole numbers in memory."""
        found = np.empty(self.about.rows, dtype)
        for start, batch in self.table.batches():
            found[start : start + batch.num_rows] = self.table.column(batch, key).to_numpy()
        return found

    def _room(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if self.folder is None or np.prod(shape) * np.dtype(dtype).itemsize < LARGE:
            return np.empty(shape, dtype)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return np.memmap(file, dtype, "w+", shape=shape)


def _sum(file: Path) -> int:
    return zlib.crc32(np.memmap(file, np.uint8, "r").data)


def _spelled(value: Any) -> Sequence[bytes]:
    """Bytes for each text of a value that are those of no other one; of a whole number as well."""
    if isinstance(value, int):
        return [b"\xff%d" % value]  # no text of UTF-8 begins so
    return [text.encode("utf-8", "surrogatepass") for text in ((value,) if isinstance(value, str) else value)]


def _narrow(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.int32) if numbers.max(initial=0) < 2**31 else numbers
