"""What columns of Arrow's types hold, as far as records can: which fit which kind of field, and a value of one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.types import BadRecordError

WHOLE, NUMBER, YES_NO, STRING, BYTES, NULL = "whole number", "number", "yes or no", "string", "bytes", "null"
ALLOWED = {
    "image": {BYTES, STRING},  # and a struct of bytes and path
    "audio": {BYTES, STRING},  # as an image
    "video": {BYTES, STRING},
    "text": {STRING, BYTES, f"list of {STRING}", f"list of {BYTES}"},
    "text_pair": {STRING, BYTES},
    "label": {WHOLE, NUMBER, YES_NO, STRING},
    "group": {WHOLE, STRING, BYTES},
}
SCALARS = {WHOLE, NUMBER, YES_NO, STRING, BYTES}


@dataclasses.dataclass(frozen=True)
class Column:
    """One field of a table.

    Attributes:
      field: its name, with dots into structs: "objects.bbox".
      root: the column of the table that it lies in.
      parts: the way from there.
      said: its type in words.
      dtype: of the numbers, where it is a list (of lists) of numbers; else "".
    """

    field: str
    root: str
    parts: tuple[str, ...]
    said: str
    dtype: str = ""

    def value(self, cell: Any, where: str) -> Any:
        """The value of a pyarrow scalar: of Python, or an array for a list of numbers.

        Raises:
          BadRecordError: text that is not UTF-8, lists of different lengths, a null among whole numbers.
        """
        try:
            if self.dtype and not self.parts and self.said.count("list") == 1 and cell.is_valid:
                if cell.values.null_count and self.dtype[:5] != "float":
                    raise BadRecordError(where, f"{self.field} has a null among its {self.dtype}")
                return cell.values.to_numpy(zero_copy_only=False).astype(self.dtype, copy=True)
            value = _reached(cell.as_py(), self.parts)
            if self.dtype and value is not None:
                return np.array(value, self.dtype)
        except (ValueError, TypeError, OverflowError) as error:  # text that is not UTF-8 among them
            raise BadRecordError(where, f"{self.field}: {error}") from None
        if self.said == NUMBER and value is None:
            return math.nan
        return int(value) if self.said == YES_NO and value is not None else value


def _reached(value: Any, parts: tuple[str, ...]) -> Any:
    for depth, part in enumerate(parts):
        if value is None:
            return None
        if isinstance(value, list):
            return [_reached(one, parts[depth:]) for one in value]
        value = value.get(part)
    return value


def fields_of(path: str, schema: Any) -> dict[str, Column]:
    """Field -> its column, for all of a file's pyarrow schema, those inside of structs too; in its order.

    Raises:
      UserError: two columns of one name.
    """
    found: dict[str, Column] = {}
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has two columns {twice[0]!r}: which is meant cannot be told")
    for field in schema:
        for parts, kind in _inside(field.type):
            name = ".".join((field.name, *parts))
            if name not in found:
                found[name] = Column(name, field.name, parts, _said(kind), _dtype(kind))
    return found


def _inside(kind: Any, parts: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    import pyarrow as pa

    yield parts, kind
    inner, lists = _plain(kind), 0
    while _is_list(inner):
        inner, lists = _plain(inner.value_type), lists + 1
    if pa.types.is_struct(inner):
        for place in range(inner.num_fields):
            field = inner.field(place)
            for below, its in _inside(field.type):
                for _ in range(lists):
                    its = pa.list_(its)
                yield (*parts, field.name, *below), its


def _plain(kind: Any) -> Any:
    """Without dictionaries and extensions around it."""
    import pyarrow as pa

    while isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _said(kind: Any) -> str:
    import pyarrow as pa

    kind, types = _plain(kind), pa.types
    if _is_list(kind):
        return f"list of {_said(kind.value_type)}"
    if types.is_struct(kind):
        return f"struct of {', '.join(kind.field(place).name for place in range(kind.num_fields))}"
    tests = {
        WHOLE: (types.is_integer,),
        NUMBER: (types.is_floating,),
        YES_NO: (types.is_boolean,),
        STRING: (types.is_string, types.is_large_string, types.is_string_view),
        BYTES: (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary),
        NULL: (types.is_null,),
    }
    return next((word for word, asked in tests.items() if any(test(kind) for test in asked)), str(kind))


def _dtype(kind: Any) -> str:
    kind, depth = _plain(kind), 0
    while _is_list(kind):
        kind, depth = _plain(kind.value_type), depth + 1
    numeric = _said(kind) in (WHOLE, NUMBER, YES_NO)
    return str(np.dtype(kind.to_pandas_dtype())) if depth and numeric else ""


def wanted(source: str, path: str, there: Mapping[str, Column], found: Mapping[str, str]) -> dict[str, Column]:
    """Field -> column, of the fields that records are made of.

    Args:
      path: the file, for the complaint.
      found: record key -> field.

    Raises:
      UserError: a type that the kind of field cannot have.
    """
    columns = {}
    for key, field in found.items():
        column = columns[field] = there[field]
        said, inner = column.said, column.said.split("list of ")[-1]
        allowed = ALLOWED.get(key)
        fine = (inner in SCALARS) if allowed is None else said in allowed
        if key in ("image", "audio", "video") and said.startswith("struct"):
            fine = {"bytes", "path"} >= set(said.removeprefix("struct of ").split(", "))
        if not fine and said != NULL:
            right = " or ".join(sorted(allowed)) if allowed else "a string, a number or a list of these"
            raise UserError(f"{source}: {field!r} of {path} is a {said}, and {key!r} is made of {right}")
    return columns


def check_same(source: str, first: str, columns: Mapping[str, Column], path: str, there: Mapping[str, Column]) -> None:
    """Raise `UserError` where a file has other columns than the first: named by file and column. Nulls alone fit any type.

    Args:
      columns: those of the first file; of a field that is not there, None.
    """
    for field, column in columns.items():
        own = there.get(field)
        if own is None:
            raise UserError(f"{source}: {path} has no column {field!r}, which {first} has")
        if NULL not in (column.said, own.said) and (column.said, column.dtype) != (own.said, own.dtype):
            types = [f"{one.said}{f' ({one.dtype})' if one.dtype else ''}" for one in (own, column)]
            raise UserError(f"{source}: the column {field!r} of {path} is a {types[0]}, that of {first} a {types[1]}")


def class_names(features: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """The names of a HuggingFace feature ClassLabel; () for a field that is none."""
    found: Any = features
    for part in field.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or found.get("_type") != "ClassLabel":
        return ()
    names = found.get("names")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def features_of(path: str, metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """HuggingFace's features, as a schema's metadata holds them; {} where it has none.

    Raises:
      UserError: they are there and are no JSON.
    """
    written = (metadata or {}).get(b"huggingface")
    if written is None:
        return {}
    try:
        found = json.loads(written)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: the metadata 'huggingface' of its schema is not that of a data set") from None
    return found if isinstance(found, Mapping) else {}


def names_among(values: Iterable[Any]) -> tuple[str, ...]:
    """Names of classes from all values of a column of strings: each once, sorted, whole numbers by value; empty ones and
    negative numbers are no class."""
    names = {value.strip() for value in values if isinstance(value, str)} - {""}
    names = {name for name in names if not (name[0] == "-" and name[1:].isdecimal())}
    return tuple(sorted(names, key=lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else sorted(names))
