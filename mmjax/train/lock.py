"""One writer a run: two processes that train in one folder would each undo what the other saves."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from mmjax.core.errors import UserError
from mmjax.core.strict_json import line
from mmjax.train.reading import read_text

LOCK, WRITER = "writer.lock", "writer.json"

logger = logging.getLogger("mmjax")


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder, which is made, while the block runs. The lock goes with the process, however it ends.

    Raises:
      UserError: another process holds it, and the line says which; or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {name}: the folder cannot be made ({error.strerror}); use another --workdir") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--workdir {name}: nothing can be written there (permission denied); use another --workdir")
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        writer = (read_text(folder / WRITER) or "").strip() or "it does not say which"
        raise UserError(
            f"--workdir {name}: another process is training there ({writer}); wait for it, end it, or use another --workdir"
        ) from None
    except (NotImplementedError, OSError) as error:
        logger.warning("%s: no lock can be taken there (%s): nothing keeps a second process from writing it", name, error)
        yield
        return
    try:
        (folder / WRITER).write_text(whoami() + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / WRITER).unlink()
        lock.release()


def whoami() -> str:
    """This process, as a line of JSON for people."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    return line({"host": socket.gethostname(), "process": os.getpid(), "since": f"{since} UTC"})
