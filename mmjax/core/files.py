"""Files that are replaced whole or not at all, even when the power goes."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, flush to the disk, rename. A reader sees the old file or the new one, and never a part."""
    beside = path.with_name(f"{path.name}.new")
    with beside.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
