"""Files that are cut, or have some of their bytes changed."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def damaged(data: Any, whole: bytes) -> bytes:
    """What hypothesis makes of a file."""
    if data.draw(st.booleans()):
        return whole[: data.draw(st.integers(0, len(whole) - 1))]
    found = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        found[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    return bytes(found)
