"""What `json.dumps` writes of the values of Arrow's columns, for many lines at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np

PLAIN = np.zeros(256, bool)  # bytes that a string of JSON holds as they are
PLAIN[0x20:0x7F] = True
PLAIN[[ord('"'), ord("\\")]] = False


def joined(*pieces: Any) -> Any:
    """Arrays of texts, and texts that are the same in each line, put together line by line."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Left to itself, pyarrow looks for pandas with each text.
    own = [pa.scalar(piece, pa.string()) if isinstance(piece, str) else piece for piece in (*pieces, "")]
    return pc.binary_join_element_wise(*own)


def quoted(texts: Any) -> Any:
    """Each text as JSON, all in ASCII; a null stays one."""
    import pyarrow as pa

    data = texts.buffers()[2]
    if data is not None and not PLAIN[np.frombuffer(data, np.uint8)].all():
        found = (None if text is None else encode_basestring_ascii(text) for text in texts.to_pylist())
        return pa.array(list(found), pa.string())
    return joined('"', texts, '"')


def listed(lists: Any) -> Any:
    """Each list of texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    offsets = pa.array(lists.offsets.to_numpy() - lists.offsets[0].as_py(), pa.int32())
    inside = pc.binary_join(pa.ListArray.from_arrays(offsets, quoted(lists.flatten())), pa.scalar(", "))
    whole = joined("[", inside, "]")
    return pc.if_else(pc.is_null(lists), None, whole) if lists.null_count else whole


def dumped(values: Sequence[Any]) -> Any:
    """Each value of Python's."""
    import pyarrow as pa

    return pa.array([json.dumps(value, sort_keys=True) for value in values], pa.string())


def with_lengths(texts: Any) -> bytes:
    """Each text with its length in bytes before it, as `splits.fingerprint` hashes them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths_N = pc.binary_length(texts).to_numpy().astype(">u8")
    lengths = pa.Array.from_buffers(pa.binary(8), len(texts), [None, pa.py_buffer(lengths_N.tobytes())]).cast(pa.binary())
    whole = pc.binary_join_element_wise(lengths, texts.cast(pa.binary()), pa.scalar(b"", pa.binary()))
    offsets = np.frombuffer(whole.buffers()[1], np.int32)[whole.offset : whole.offset + len(whole) + 1]
    start, end = int(offsets[0]), int(offsets[-1])
    return whole.buffers()[2][start:end].to_pybytes() if len(whole) else b""
