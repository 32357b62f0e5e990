"""Small sounds for tests: tones as arrays, and as files of libsndfile."""

from __future__ import annotations

import io

import numpy as np


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """[n] float32."""
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(x: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """A file of [n] or [n, channels]."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, x, rate, subtype=subtype, format=kind)
    return file.getvalue()
