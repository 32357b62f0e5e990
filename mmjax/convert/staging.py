"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmjax.core.errors import UserError


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, renamed to it when the block ends well and removed when it does not.

    Raises:
      UserError: `target` is a file or holds files, or cannot be created.
    """
    shown, target = target, Path(target).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{shown} {'already holds files' if target.is_dir() else 'is a file'}; give a new folder")
    made = [parent for parent in target.parents if not parent.exists()]
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process that had our number
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{shown} cannot be created: {error.strerror}") from None
        yield partial
        if target.exists():
            target.rmdir()  # some systems do not rename onto an empty folder
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
