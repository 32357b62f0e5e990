"""Memory that is freed is kept for the next image instead of being handed back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
KEPT = 64 << 20  # bytes at the end of a heap that are kept once freed
MAPPED = 32 << 20  # bytes from which an array has pages of its own, which go back when it is freed; glibc allows no more


@functools.cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep up to `KEPT` bytes of what is freed; whether it does. Anything else than glibc is left alone.

    The arrays of an image live for a millisecond. Left to itself glibc hands them back each time, and the system then clears
    each of their pages anew: half the time of reading a photo.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(MMAP_THRESHOLD, MAPPED)) and bool(mallopt(TRIM_THRESHOLD, KEPT))
