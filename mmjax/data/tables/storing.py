"""From the lines of a table to Arrow's columns: each line checked, none kept as an object."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.splits import SPLITS, split_of
from mmjax.data.tables import rows as lines
from mmjax.data.tables.rows import Checking, Row
from mmjax.data.tables.stored import FLOAT, INT, JSON, ROWS, STRING, STRINGS, About
from mmjax.data.tables.table import Table, open_table

PLAIN = ("image", "audio", "video", "text", "text_pair", "group")  # stored as they are
TYPES = {str: STRING, int: INT, float: FLOAT, list: STRINGS, tuple: STRINGS}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is read of a table, see `Manifest`.

    Attributes:
      path: the file.
      fields: "image", "audio", "video", "text", "text_pair", "label", "group" -> the name in the file; what is not read
        is not there.
      further, maps: record key -> the name in the file.
      separator: of a table.
      optional: keys that a line may lack.
    """

    path: str
    fields: Mapping[str, str]
    further: Mapping[str, str]
    maps: Mapping[str, str]
    separator: str
    optional: tuple[str, ...] = ()

    @property
    def written(self) -> bool:
        """Whether the file has numbers as texts."""
        return not self.path.lower().endswith(".jsonl")


class WiderError(Exception):
    """A column cannot hold a value as it is stored: all of it is to be stored otherwise."""

    def __init__(self, key: str, kind: str) -> None:
        self.key, self.kind = key, kind


def store(asked: Asked, sink: BinaryIO) -> tuple[About, np.ndarray]:
    """Write the lines of a table; returns what is known of it, and its layout (see `Stored`).

    The file is read from its start again where a value turns up that its column cannot hold.

    Raises:
      UserError: what `open_table` and `Checking` raise, or no lines.
    """
    kinds: dict[str, str] = {}
    while True:
        sink.seek(0)
        sink.truncate()
        try:
            return _Storing(asked, sink, kinds).store()
        except WiderError as wider:
            kinds[wider.key] = wider.kind


class _Storing:
    def __init__(self, asked: Asked, sink: BinaryIO, kinds: dict[str, str]) -> None:
        self.asked, self.kinds = asked, kinds
        self.checking = Checking(asked.path, asked.fields, asked.further, asked.maps, asked.optional)
        self.sink, self.layout, self.rows = sink, [(0, 0, 0, 0)], 0
        self.codes: dict[str | int, int] = {}
        self.counts: list[int] = []
        self.further = {f"fields.{key}": field for key, field in asked.further.items()}
        self.maps = {f"maps.{key}": field for key, field in asked.maps.items()}
        self.seen: dict[str, set[str]] = {key: set() for key in self.further}

    def store(self) -> tuple[About, np.ndarray]:
        asked = self.asked
        wanted = {*asked.fields.values(), *asked.further.values(), *asked.maps.values()}
        with open_table(asked.path, asked.separator, wanted) as table:
            while table.more():
                if (quick := self._quick(table)) is None:
                    self._write(self._careful([self.checking.row(*line) for line in table.lines()]))
                else:
                    self._write(quick)
        if not self.rows:
            raise UserError(f"Manifest.path={asked.path!r}: it has no lines")
        return self._about(), np.array(self.layout[1:], np.int64)

    def _about(self) -> About:
        first = self.checking.first
        assert first is not None
        labels = lines.numbered(list(self.codes))
        order = sorted(range(len(labels)), key=labels.__getitem__)
        rank = np.empty(len(labels), np.int64)
        rank[order] = np.arange(len(labels))
        own = [key for key in (*PLAIN[:-1], "label", "group", "split") if key in first and (key != "label" or labels)]
        own = [key for key in own if key not in self.asked.optional or self.kinds.get(key)]
        return About(
            rows=self.rows,
            keys=(*own, *self.further, *self.maps),
            kinds={key: kind for key, kind in self.kinds.items() if kind},
            numbers={key: kind for key in self.further if (kind := self._numbers(key))},
            labels=tuple(labels[code] for code in order),
            rank=tuple(rank.tolist()),
            sizes=tuple(self.counts[code] for code in order),
            fields=first["fields"],
        )

    def _numbers(self, key: str) -> str:
        """Columns that hold nothing but numbers (in a table, written out) are numbers: floats where one is, or is missing."""
        there = self.seen[key] - {"none"}
        if not there or there - {"int", "float"}:
            return ""
        return "float" if "float" in self.seen[key] or "none" in self.seen[key] else "int"

    def _keys(self) -> list[str]:
        assert self.checking.first is not None
        own = [key for key in (*PLAIN[:-1], "label", "group", "split") if key in self.checking.first]
        return [*own, *self.further, *self.maps]

    def _careful(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The columns of lines that are read one by one."""
        import pyarrow as pa

        if not rows:
            return {}
        found = {}
        for key in self._keys():
            if key == "label":
                found[key] = pa.array([self._code(row["label"]) for row in rows], pa.int32())
            elif key == "split":
                found[key] = pa.array([SPLITS.index(row["split"]) for row in rows], pa.int8())
            else:
                room, _, name = key.partition(".")
                values = [row[{"fields": "further"}.get(room, room)][name] if name else row[key] for row in rows]
                found[key] = self._column(key, values)
        return found

    def _column(self, key: str, values: list[Any]) -> Any:
        """Raises `WiderError`."""
        import pyarrow as pa

        known = self.kinds.get(key, "")
        kind = known
        for value in values:
            if value is not None:
                kind = _both(kind, _kind_of(value))
        if key in self.seen:
            self._see(key, values)
        if kind != known:
            self.kinds[key] = kind
            if self.rows and (known or _type(kind) != _type(known)):
                raise WiderError(key, kind)
        if kind == JSON:
            values = [None if value is None else json.dumps(value) for value in values]
        elif kind == FLOAT:
            values = [None if value is None else float(value) for value in values]
        return pa.array(values, _type(kind))

    def _see(self, key: str, values: list[Any]) -> None:
        """Of which types the values of a further column are."""
        seen = self.seen[key]
        for value in values:
            if value is None:
                seen.add("none")
            elif self.asked.written:
                if "other" not in seen:
                    whole = lines.is_whole(value)
                    seen.add("int" if whole else "float" if lines.is_number(value) else "other")
            else:
                seen.add({int: "int", float: "float"}.get(type(value), "other"))

    def _code(self, label: str | int | None) -> int:
        if label is None:
            return -1
        code = self.codes.setdefault(label, len(self.codes))
        if code == len(self.counts):
            self.counts.append(0)
        self.counts[code] += 1
        return code

    def _quick(self, table: Table) -> dict[str, Any] | None:
        """The columns of a block, where it need not be read line by line."""
        first = self.checking.first
        if first is None or ("label" in first and self.checking.labelled is None) or self.asked.optional:
            return None
        types: dict[str, Any] = {}
        for key, field in {**self.asked.fields, "split": "split", **self.further, **self.maps}.items():
            kind = STRING
            if not self.asked.written:
                kind = self.kinds.get(key, "" if key in self.further or key in self.maps else STRING)
                if key == "label" and isinstance(self.checking.labelled, int):
                    kind = INT
            if kind in ("", JSON) or types.setdefault(field, _type(kind)) != _type(kind):
                return None
        read = table.columns(types)
        if read is None:
            return None
        count, columns = read
        try:
            return self._checked(count, columns)
        except _OddError:
            table.again()
            return None

    def _checked(self, count: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        """What `Checking` asks of each line, of whole columns. Raises `_OddError` where a line may not have what it should."""
        import pyarrow.compute as pc

        first = self.checking.first
        assert first is not None
        found: dict[str, Any] = {}
        names = {**self.asked.fields, "split": "split"}
        for key in (*PLAIN, "split"):
            column = columns.get(names[key]) if key in names else None
            if column is not None and (there := count - column.null_count - _empty(column)):
                if there < count or key not in first or not _whole_lists(column):
                    raise _OddError
                found[key] = _splits(column) if key == "split" else column
            elif key in first:
                raise _OddError
        column = columns.get(names["label"]) if "label" in names else None
        if (column is None) != ("label" not in first) or (column is not None and column.null_count):
            raise _OddError
        for key, field in {**self.further, **self.maps}.items():
            other = columns.get(field)
            if other is None or other.null_count or not _whole_lists(other, empty=True):
                raise _OddError
            found[key] = pc.if_else(pc.equal(other, ""), None, other) if _empty(other) else other
        if column is not None:
            found["label"] = self._labels(column)
        for key in self.further:  # when nothing else can be odd any more
            self._see_column(key, found[key])
        return found

    def _see_column(self, key: str, column: Any) -> None:
        if column.null_count:
            self.seen[key].add("none")
        if not self.asked.written:
            self.seen[key].add({INT: "int", FLOAT: "float"}.get(self.kinds[key], "other"))
        elif "other" not in self.seen[key]:
            self._see(key, column.drop_null().to_pylist())

    def _labels(self, column: Any) -> Any:
        import pyarrow as pa

        coded = column.dictionary_encode()
        indices_N = coded.indices.to_numpy(zero_copy_only=False)
        counts = np.bincount(indices_N, minlength=len(coded.dictionary)).tolist()
        codes = []
        for label, count in zip(coded.dictionary.to_pylist(), counts, strict=True):
            code = self._code(None if lines.no_class(label) else label)
            if code >= 0:
                self.counts[code] += count - 1
            codes.append(code)
        return pa.array(np.array(codes, np.int32)[indices_N])

    def _write(self, columns: dict[str, Any]) -> None:
        import pyarrow as pa

        if not columns:
            return
        keys = self._keys()
        batch = pa.RecordBatch.from_arrays([columns[key] for key in keys], keys)
        if not self.rows:
            self.schema = batch.schema
            self.sink.write(batch.schema.serialize())
        batch = batch.cast(self.schema) if batch.schema != self.schema else batch
        for start in range(0, batch.num_rows, ROWS):
            part = batch.slice(start, ROWS)
            data = part.serialize()
            self.rows += part.num_rows
            self.layout.append((self.sink.tell(), data.size, self.rows, zlib.crc32(data)))
            self.sink.write(data)


class _OddError(Exception):
    """A block is to be read line by line."""


def _kind_of(value: Any) -> str:
    kind = TYPES.get(type(value), JSON)
    if kind == INT:
        return INT if -(2**63) <= value < 2**63 else JSON
    texts = value if kind == STRINGS else (value,) if kind == STRING else ()
    return kind if all(isinstance(text, str) and _is_whole_text(text) for text in texts) else JSON


def _both(one: str, other: str) -> str:
    if one in ("", other):
        return other
    return FLOAT if {one, other} == {INT, FLOAT} else JSON


def _is_whole_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, as JSON may spell one
        return False
    return True


def _type(kind: str) -> Any:
    import pyarrow as pa

    return {INT: pa.int64(), FLOAT: pa.float64(), STRINGS: pa.list_(pa.string())}.get(kind, pa.string())


def _empty(column: Any) -> int:
    """How many values are the empty string."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return int(pc.sum(pc.equal(column, "")).as_py() or 0) if column.type == pa.string() else 0


def _whole_lists(column: Any, empty: bool = False) -> bool:
    """Whether lists have no null among their values and, unless they may be, none is empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_list(column.type):
        return True
    return not column.flatten().null_count and (empty or not pc.any(pc.equal(pc.list_value_length(column), 0)).as_py())


def _splits(column: Any) -> Any:
    import pyarrow as pa

    coded = column.dictionary_encode()
    names = [split_of(name) for name in coded.dictionary.to_pylist()]
    if any(name not in SPLITS for name in names):
        raise _OddError
    places = np.array([SPLITS.index(name) for name in names], np.int8)
    return pa.array(places[coded.indices.to_numpy(zero_copy_only=False)])
