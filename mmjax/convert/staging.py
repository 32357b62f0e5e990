"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmjax.core.errors import UserError


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, renamed to it when the block ends well and removed when it does not.

    It is `.NAME.partial`, and `.NAME.lock` is locked while it is filled. A lock ends with its process, however that ends: so
    what a killed one left is told from what a living one is writing, and cleared away by the next.

    Raises:
      UserError: `target` is a file or holds files, or cannot be created; another process or thread is writing it.
    """
    shown, target = target, Path(target).resolve()
    _check_free(shown, target)
    made = [parent for parent in target.parents if not parent.exists()]
    partial = target.with_name(f".{target.name}.partial")
    try:
        with _locked(target.with_name(f".{target.name}.lock"), shown):
            try:
                _check_free(shown, target)  # again: whoever had the lock may have finished it
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                yield partial
                _check_free(shown, target)
                if target.exists():
                    target.rmdir()  # some systems do not rename onto an empty folder
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _check_free(shown: Path, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{shown} {'already holds files' if target.is_dir() else 'is a file'}; give a new folder")


@contextlib.contextmanager
def _locked(path: Path, shown: Path) -> Iterator[None]:
    """Hold the lock of a file, which is there only meanwhile."""
    busy = UserError(f"{shown} is being written by another process; wait for it, or give another folder")
    with contextlib.ExitStack() as opened:
        try:
            with contextlib.suppress(FileExistsError):  # a file where a folder should be has a clearer error just below
                path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT)
            opened.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.exists() and os.path.samestat(os.fstat(file), path.stat())
        except BlockingIOError:
            raise busy from None
        except OSError as error:
            raise UserError(f"{shown} cannot be created: {error.strerror}") from None
        if not held:  # it was another's when we opened it, and is gone or replaced now
            raise busy
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked: nobody may think that he holds the lock of a removed file
