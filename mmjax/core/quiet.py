"""What other libraries write on the user's terminal while they work for mmjax, kept off it.

What goes wrong in them reaches the user as an exception or in our own words, so their lines only frighten. No level, handler or
environment variable of the user's process is changed: a filter drops those records alone that our use of a library causes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ORBAX = f"{os.sep}orbax{os.sep}"  # in the path of each of its files


class _NotFrom(logging.Filter):
    """Drops the records of files below a folder."""

    def __init__(self, folder: str):
        super().__init__()
        self._folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        return self._folder not in record.pathname


class _WithoutAdvice(logging.Filter):
    """Drops what `transformers` says on import where PyTorch is not installed: its tokenizers, all we import, need none."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in str(record.msg)


def orbax(owner: object) -> weakref.finalize:
    """Drop what orbax logs, errors included (it raises those as well), until the result is called or `owner` is gone.

    From then on, and for a user's own orbax before it, everything is said. It logs from threads of its own while it saves, so
    what is dropped cannot depend on who called.
    """
    dropped, loggers = _NotFrom(ORBAX), [logging.getLogger(name) for name in ("absl", "root")]
    for logger in loggers:
        logger.addFilter(dropped)

    def end() -> None:
        for logger in loggers:
            logger.removeFilter(dropped)

    ending = weakref.finalize(owner, end)
    ending.atexit = False  # what it logs on the way out is dropped too
    return ending


def devices() -> list[Any]:
    """`jax.devices()`, whose first call starts what computes: libtpu, where it is installed, writes half a page of errors on a
    machine without a TPU, which is where its compiler plans for one."""
    import jax

    chosen = getattr(jax.config, "jax_platforms", None)
    together = jax.distributed.is_initialized()  # there one may hang here, and is to be heard
    if chosen or together or _has_tpu() or importlib.util.find_spec("libtpu") is None:
        return jax.devices()
    with _native_lines_dropped():
        return jax.devices()


def _has_tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))


@contextlib.contextmanager
def _native_lines_dropped() -> Iterator[None]:
    """Keep what libraries write on standard error past Python's back from being seen, unless the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def transformers() -> None:
    """To be called before the first import of `transformers`, which need not happen here: reading a pickle imports it too."""
    logging.getLogger("transformers").addFilter(_ADVICE)


_ADVICE = _WithoutAdvice()  # one, since adding the same again does nothing
