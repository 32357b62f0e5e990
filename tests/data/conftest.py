"""Small image folders and a stand-in for a random generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_image():
    """Writes a PNG of one grey level, by default 6 x 5 (height x width); returns its path."""

    def write(path: Path, level: int = 100, size: tuple[int, int] = (6, 5)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def image_folder(tmp_path, write_image):
    """Ten images each of `cat` (levels 0 to 9) and `dog` (10 to 19), in class folders."""
    for level in range(20):
        write_image(tmp_path / "images" / ("cat" if level < 10 else "dog") / f"{level:02}.png", level)
    return tmp_path / "images"
