"""A block of a table read by pyarrow, where that provably means what reading it line by line means."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Columns = dict[str, Any]
INFINITE = re.compile(rb"Inf[\s,\]}]")  # outside of strings a number to RapidJSON, and not to Python
NULL = re.compile(rb"null[\s,\]}]")
BEFORE = b":[,- \t\n"  # what stands before a value
DEEP = 500  # brackets in each other


def of_json(block: bytes, types: Mapping[str, Any]) -> tuple[int, Columns] | None:
    """The columns of the fields named here that the objects have, one object a line, and how many these are.

    None where pyarrow and `json.loads` of each line could differ: a raw end of line stands in no string, so where each one has
    "}" before it and "{" after it, as many objects as lines are one a line. Which of null and of nothing a line has, pyarrow
    does not tell: a column that is not whole is left to the caller, and given only where the block has no null.
    """
    import pyarrow as pa
    import pyarrow.json

    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    inner = block.removesuffix(b"\n")
    lines = inner.count(b"\n") + 1
    if b"\r" in block or not inner.startswith(b"{") or not inner.endswith(b"}") or inner.count(b"}\n{") != lines - 1:
        return None
    if _has(INFINITE, block) or not _is_utf8(block) or _deep(block):
        return None
    parse = pa.json.ParseOptions(explicit_schema=pa.schema(dict(types)), unexpected_field_behavior="ignore")
    read = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        table = pa.json.read_json(pa.BufferReader(block), read, parse)
    except (pa.ArrowException, OSError):
        return None
    if table.num_rows != lines:
        return None
    found = {name: table.column(name).combine_chunks() for name in types}
    if any(column.null_count for column in found.values()) and _has(NULL, block):
        return None
    for column in found.values():
        if column.type == pa.float64():
            values_N = column.to_numpy(zero_copy_only=False)
            if np.any((values_N == 0) & np.signbit(values_N)):
                return None  # "-0" is a whole number, of which JSON's is 0
    return lines, {name: column for name, column in found.items() if column.null_count < len(column)}


def of_separated(
    block: bytes, separator: str, header: Sequence[str], types: Mapping[str, Any]
) -> tuple[int, int, Columns] | None:
    """How many lines and rows there are, and the columns of the fields named here, as strings.

    None where pyarrow and `csv.reader` could differ: unless each quote opens a value, ends it or is one of two within it, and
    no value has an end of a line.
    """
    import pyarrow as pa
    import pyarrow.csv

    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if b"\r" in block or b"\0" in block or not separator.isascii() or not header or not _is_utf8(block):
        return None
    bytes_N = np.frombuffer(block, np.uint8)
    ends_L = np.flatnonzero(bytes_N == 10)
    if np.diff(ends_L, prepend=-1, append=len(block)).max() > csv.field_size_limit():
        return None
    if not _quotes_are_plain(bytes_N, ends_L, ord(separator)):
        return None
    names = [str(place) for place in range(len(header))]
    place = {name: str(number) for number, name in enumerate(header)}
    wanted = [place[name] for name in types if name in place]
    if not wanted:
        return None
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted, strings_can_be_null=False, null_values=[]
    )
    read = pa.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names)
    quote = '"' if b'"' in block else False
    parse = pa.csv.ParseOptions(delimiter=separator, quote_char=quote, double_quote=True, escape_char=False)
    try:
        table = pa.csv.read_csv(pa.BufferReader(block), read, parse, convert)
    except (pa.ArrowException, OSError):
        return None
    lines = len(ends_L) + (not block.endswith(b"\n"))
    blank = block.count(b"\n\n") + block.startswith(b"\n")
    if blank or table.num_rows != lines:
        return None
    return lines, table.num_rows, {name: table.column(place[name]).combine_chunks() for name in types if name in place}


def _quotes_are_plain(bytes_N: np.ndarray, ends_L: np.ndarray, separator: int) -> bool:
    quotes_Q = np.flatnonzero(bytes_N == ord('"'))
    if not len(quotes_Q):
        return True
    if len(quotes_Q) % 2 or np.any(np.searchsorted(quotes_Q, ends_L) % 2):
        return False
    framed_N = np.concatenate([[10], bytes_N, [10]]).astype(np.uint8)
    opening_Q, closing_Q = quotes_Q[::2], quotes_Q[1::2]
    before_Q, after_Q = framed_N[opening_Q], framed_N[closing_Q + 2]
    doubled_Q = np.diff(quotes_Q)[1::2] == 1  # an end and a beginning side by side are a quote within a value
    starts_Q = (before_Q == separator) | (before_Q == 10)
    starts_Q[1:] |= doubled_Q
    stops_Q = (after_Q == separator) | (after_Q == 10)
    stops_Q[:-1] |= doubled_Q
    return bool(np.all(starts_Q) and np.all(stops_Q))


def _has(value: re.Pattern[bytes], block: bytes) -> bool:
    """Whether a value may stand outside of strings."""
    return any(block[found.start() - 1] in BEFORE for found in value.finditer(block))


def _deep(block: bytes) -> bool:
    """Whether a line may have brackets in each other so deeply that one of the two readers gives up."""
    bytes_N = np.frombuffer(block, np.uint8)
    starts_L = np.concatenate([[0], np.flatnonzero(bytes_N[:-1] == 10) + 1])
    if np.diff(starts_L, append=len(block)).max() <= DEEP:
        return False
    return bool(np.add.reduceat((bytes_N == ord("[")) | (bytes_N == ord("{")), starts_L, dtype=np.int64).max() > DEEP)


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
