"""Sounds as `mmjax data inspect` tells and shows them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data import html
from mmjax.data.audio import Audio
from mmjax.data.sound import Heard, resampled, wav

PLAYED = 4.0  # seconds of a sound that a page holds
RATE = 16_000  # Hz of them at most
WIDTH, HEIGHT = 256, 64  # of the picture of a sound, in pixels at most
FRAME = 512  # samples of a column of it
RANGE = 8.0  # orders of magnitude of power from white to black


def sounds_in(columns: Mapping[str, Any]) -> dict[str, Audio]:
    """The keys that are sounds -> their columns."""
    return {key: spec for key, spec in columns.items() if isinstance(spec, Audio)}


def told(key: str, heard: Sequence[Heard], spec: Audio) -> list[str]:
    """Lines about the sounds of one key: how long they are, and how many are cut, silent or clipped."""
    seconds = sorted(one.seconds for one in heard)
    of = "" if key == "audio" else f" of {key}"
    counts = {"cut": [one.cut for one in heard], "silent": [one.silent for one in heard]}
    shares = {word: f"{np.mean(found):.1%} of the sounds" for word, found in counts.items()}
    return [
        f"seconds      {seconds[0]:.2f} to {seconds[-1]:.2f} a sound, half of them {np.median(seconds):.2f} or less{of}",
        f"cut          {shares['cut']}, at seconds={spec.seconds:g}",
        f"silent       {shares['silent']}, and {np.mean([one.clipped for one in heard]):.1%} are clipped",
    ]


def card(key: str, x_N: np.ndarray, mask_N: np.ndarray, rate: int) -> str:
    """A sound of a batch to be looked at and heard: its picture, and the first seconds of it to play."""
    real_N = x_N[mask_N]
    of = f"{len(real_N) / rate:.2f} s of {len(x_N) / rate:.2f} s"
    played = f", the first {PLAYED:g} s to hear" if len(real_N) > PLAYED * rate else ""
    part_N, own = real_N[: round(PLAYED * rate)], rate
    if rate > RATE and len(part_N):
        part_N, own = resampled(part_N, rate, RATE), RATE
    uri = f"data:audio/wav;base64,{base64.b64encode(wav(part_N, own)).decode()}"
    return f'<div>{html.said(key)}: {of}{played}</div>{html.picture(picture(x_N))}<audio controls src="{uri}"></audio>'


def picture(x_N: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the powers of a waveform, time to the right, frequency upwards, loud ones dark."""
    x_N = np.pad(np.nan_to_num(x_N), (0, max(0, FRAME - len(x_N))))
    starts = np.linspace(0, len(x_N) - FRAME, min(WIDTH, 1 + (len(x_N) - FRAME) // (FRAME // 4))).astype(int)
    frames_TW = x_N[starts[:, None] + np.arange(FRAME)] * np.hanning(FRAME)
    power_TK = np.square(np.abs(np.fft.rfft(frames_TW, axis=1)[:, : FRAME // 2]))
    power_HT = power_TK.reshape(len(starts), HEIGHT, -1).mean(axis=2).T[::-1]
    loudest = power_HT.max() or 1.0
    depth_HT = 1 + np.log10(np.maximum(power_HT / loudest, 10**-RANGE)) / RANGE
    return np.repeat(np.rint(255 * (1 - depth_HT)).astype(np.uint8)[..., None], 3, axis=2)
