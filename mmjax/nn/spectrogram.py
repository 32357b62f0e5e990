"""From waveforms to what encoders of sounds read: log-mel spectrograms and cepstral coefficients, on the device.

Each gives `features [B, T, F]` float32 and `mask [B, T]`, and has the numbers of one published front end, which it equals:
`LogMel` that of Whisper (Radford 2022, arXiv:2212.04356), `Fbank` that of the Audio Spectrogram Transformer (Gong 2021,
arXiv:2104.01778), Kaldi's, and `Mfcc` `librosa.feature.mfcc` (Davis and Mermelstein 1980).

Frames are transformed by an FFT in float32. A product with a DFT matrix would need its highest precision to have as many
digits (power spectra go over ten orders of magnitude, and the least of them are seen through the logarithm), which is more work
than the FFT for all but the shortest frames. The products with mel filters and cosines are taken at the highest
precision for that reason. Legend: N samples, T frames, W samples of a frame, K frequencies, F features.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array

FLOOR = 1e-10  # the least power that is told from none, in Whisper's features and librosa's decibels
KALDI_FLOOR = 1.192092955078125e-07  # the same of Kaldi: float32's epsilon


@dataclasses.dataclass(frozen=True)
class LogMel:
    """The log-mel spectrogram of Whisper, as `transformers.WhisperFeatureExtractor` gives it; F is `mels`, T is N // `hop`.

    A frame is centred at `hop` times its number, the row mirrored at its ends, and the last one left out; powers go through mel
    filters (Slaney's scale and norm) to log10, are raised to 8 below the loudest of the row, padding included, and become
    (x + 4) / 4. A frame is real where the sample at its centre is.

    Attributes:
      rate: of the waveform, in Hz.
      n_fft: samples of a frame, W.
      hop: samples from one frame to the next.
      mels: filters.
      fmin, fmax: in Hz, where the first filter begins and the last one ends.
    """

    rate: int = setting(least=1, default=16_000)
    n_fft: int = setting(least=2, default=400)
    hop: int = setting(least=1, default=160)
    mels: int = setting(least=1, default=80)
    fmin: float = setting(least=0, default=0.0)
    fmax: float = setting(above=0, default=8000.0)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def features(self) -> int:
        """F."""
        return self.mels

    def frames(self, samples: int) -> int:
        """T of a waveform of N samples. Raises `UserError` for one that is too short to be mirrored."""
        _check_samples(self, samples, self.n_fft // 2 + 1)
        return samples // self.hop

    def __call__(self, x_BN: Array, mask_BN: Array | None = None) -> tuple[Array, Array]:
        """Features [B, T, F] and mask [B, T] of waveforms [B, N], real from the first sample on; None: all of them are."""
        frames = self.frames(x_BN.shape[1])
        x_BN, count_B = _real(x_BN, mask_BN)
        half = self.n_fft // 2
        log_BTF = self.logs(jnp.pad(x_BN, ((0, 0), (half, half)), mode="reflect"))[:, :frames]
        mask_BT = jnp.arange(frames)[None] * self.hop < count_B[:, None]
        return self.scaled(log_BTF, log_BTF.max(axis=(1, 2))), mask_BT

    def logs(self, x_BN: Array) -> Array:
        """[B, T, F] float32: log10 of the powers of the frames that lie within waveforms, T = 1 + (N - n_fft) // hop."""
        x_BTW = framed(x_BN, self.n_fft, self.hop)
        power_BTK = power_spectrum(x_BTW * hann(self.n_fft)[None, None], self.n_fft)
        mel_BTF = _product(power_BTK, mel_filters(self.rate, self.n_fft, self.mels, self.fmin, self.fmax, "slaney"))
        return jnp.log10(jnp.maximum(mel_BTF, FLOOR))

    def scaled(self, log_BTF: Array, loudest_B: Array) -> Array:
        """Features of such logs, where the greatest of the whole sound is given."""
        return (jnp.maximum(log_BTF, loudest_B[:, None, None] - 8.0) + 4.0) / 4.0


@dataclasses.dataclass(frozen=True)
class Fbank:
    """Kaldi's filter bank as the Audio Spectrogram Transformer has it, `transformers.ASTFeatureExtractor`; F is `mels`.

    A frame begins at `hop` times its number and lies within the sound; its mean is taken off, its high frequencies raised
    (preemphasis), and the logarithm of its powers through mel filters (Kaldi's scale, triangles on that scale) is normalised:
    (x - mean) / (2 deviation). What is no whole frame of the sound is 0 before that, and masked.

    Attributes:
      rate: of the waveform, in Hz.
      window: samples of a frame, W.
      n_fft: samples of its transform: the frame, and zeros.
      hop: samples from one frame to the next.
      mels: filters.
      fmin, fmax: in Hz, where the first filter begins and the last one ends.
      preemphasis: how much of the sample before is taken off each.
      mean, deviation: of the features; those of AudioSet.
      length: T, by masked frames at the end, or without the last frames; 0 for as many frames as the row has.
    """

    rate: int = setting(least=1, default=16_000)
    window: int = setting(least=2, default=400)
    n_fft: int = setting(least=2, default=512)
    hop: int = setting(least=1, default=160)
    mels: int = setting(least=1, default=128)
    fmin: float = setting(least=0, default=20.0)
    fmax: float = setting(above=0, default=8000.0)
    preemphasis: float = setting(least=0, below=1, default=0.97)
    mean: float = -4.2677393
    deviation: float = setting(above=0, default=4.5689974)
    length: int = setting(least=0, default=0)

    def __post_init__(self) -> None:
        _check(self)
        if self.n_fft < self.window:
            raise UserError(f"n_fft={self.n_fft}: a frame has window={self.window} samples; use as many or more")

    @property
    def features(self) -> int:
        """F."""
        return self.mels

    def frames(self, samples: int) -> int:
        """T of a waveform of N samples. Raises `UserError` for one that is shorter than a frame."""
        _check_samples(self, samples, self.window)
        return self.length or 1 + (samples - self.window) // self.hop

    def __call__(self, x_BN: Array, mask_BN: Array | None = None) -> tuple[Array, Array]:
        """Features [B, T, F] and mask [B, T] of waveforms [B, N], real from the first sample on; None: all of them are."""
        frames = self.frames(x_BN.shape[1])
        x_BN, count_B = _real(x_BN, mask_BN)
        x_BTW = framed(x_BN, self.window, self.hop)[:, :frames]
        x_BTW = x_BTW - x_BTW.mean(axis=-1, keepdims=True)
        before_BTW = jnp.concatenate([x_BTW[..., :1], x_BTW[..., :-1]], axis=-1)
        x_BTW = (x_BTW - self.preemphasis * before_BTW) * hann(self.window, periodic=False)[None, None]
        mel_BTF = _product(
            power_spectrum(x_BTW, self.n_fft), mel_filters(self.rate, self.n_fft, self.mels, self.fmin, self.fmax, "kaldi")
        )
        log_BTF = jnp.log(jnp.maximum(mel_BTF, KALDI_FLOOR))
        log_BTF = jnp.pad(log_BTF, ((0, 0), (0, frames - log_BTF.shape[1]), (0, 0)))
        mask_BT = jnp.arange(frames)[None] * self.hop + self.window <= count_B[:, None]
        return (jnp.where(mask_BT[..., None], log_BTF, 0.0) - self.mean) / (2 * self.deviation), mask_BT


@dataclasses.dataclass(frozen=True)
class Mfcc:
    """Mel-frequency cepstral coefficients, as `librosa.feature.mfcc` gives them; F is `coefficients`, T is 1 + N // `hop`.

    A frame is centred at `hop` times its number, with zeros before the row and after it; the decibels of its powers through
    mel filters (Slaney's scale and norm) are raised to `top_db` below the loudest of the sound, and the first of their cosine
    coefficients (DCT-II, orthonormal) taken. A frame is real up to the end of the sound, and 0 from there on.

    Attributes:
      rate: of the waveform, in Hz.
      n_fft: samples of a frame, W.
      hop: samples from one frame to the next.
      mels: filters.
      coefficients: how many, `mels` at most.
      fmin, fmax: in Hz, where the first filter begins and the last one ends; None for half the rate.
      top_db: decibels below the loudest from where on all is as quiet.
    """

    rate: int = setting(least=1, default=22_050)
    n_fft: int = setting(least=2, default=2048)
    hop: int = setting(least=1, default=512)
    mels: int = setting(least=1, default=128)
    coefficients: int = setting(least=1, default=20)
    fmin: float = setting(least=0, default=0.0)
    fmax: float | None = setting(above=0, default=None)
    top_db: float = setting(above=0, default=80.0)

    def __post_init__(self) -> None:
        _check(self)
        if self.coefficients > self.mels:
            raise UserError(f"coefficients={self.coefficients}: mels={self.mels} filters have no more than that")

    @property
    def features(self) -> int:
        """F."""
        return self.coefficients

    def frames(self, samples: int) -> int:
        """T of a waveform of N samples. Raises `UserError` for one of none."""
        _check_samples(self, samples, 1)
        return 1 + samples // self.hop

    def __call__(self, x_BN: Array, mask_BN: Array | None = None) -> tuple[Array, Array]:
        """Features [B, T, F] and mask [B, T] of waveforms [B, N], real from the first sample on; None: all of them are."""
        frames = self.frames(x_BN.shape[1])
        x_BN, count_B = _real(x_BN, mask_BN)
        half = self.n_fft // 2
        x_BTW = framed(jnp.pad(x_BN, ((0, 0), (half, half))), self.n_fft, self.hop)[:, :frames]
        power_BTK = power_spectrum(x_BTW * hann(self.n_fft)[None, None], self.n_fft)
        fmax = self.rate / 2 if self.fmax is None else self.fmax
        mel_BTM = _product(power_BTK, mel_filters(self.rate, self.n_fft, self.mels, self.fmin, fmax, "slaney"))
        db_BTM = 10.0 * jnp.log10(jnp.maximum(mel_BTM, FLOOR))
        mask_BT = (jnp.arange(frames)[None] * self.hop <= count_B[:, None]) & (count_B[:, None] > 0)
        loudest_B11 = jnp.where(mask_BT[..., None], db_BTM, -jnp.inf).max(axis=(1, 2), keepdims=True)
        db_BTM = jnp.maximum(db_BTM, loudest_B11 - self.top_db)
        return jnp.where(mask_BT[..., None], _product(db_BTM, cosines(self.mels, self.coefficients)), 0.0), mask_BT


SPECTROGRAMS = {"whisper": LogMel, "ast": Fbank, "mfcc": Mfcc}


def features_of(spectrogram: Any, parts: Mapping[str, Array]) -> dict[str, Array]:
    """An encoder's parts of a sound, "" and `mask`, with features in place of a waveform; features [B, T, F] stay as they are.

    Raises:
      UserError: an input of another shape.
    """
    audio, mask = parts[""], parts.get("mask")
    if audio.ndim == 3 and audio.shape[2] == spectrogram.features:
        return dict(parts)
    if audio.ndim != 2:
        raise UserError(
            f"an audio encoder reads waveforms [B, N], or features [B, T, {spectrogram.features}], found an input of "
            f"shape {audio.shape}"
        )
    x_BTF, mask_BT = spectrogram(audio, mask)
    return {"": x_BTF, "mask": mask_BT}


def framed(x_BN: Array, window: int, hop: int) -> Array:
    """[B, T, window]: the frames that lie within waveforms, one every `hop` samples; T is 1 + (N - window) // hop.

    Of blocks of `hop` samples that are laid side by side: a gather of single samples is slow on a TPU.
    """
    frames, blocks = 1 + (x_BN.shape[1] - window) // hop, -(-window // hop)
    room = (frames + blocks - 1) * hop
    x_BN = jnp.pad(x_BN, ((0, 0), (0, max(0, room - x_BN.shape[1]))))[:, :room]
    x_BRH = x_BN.reshape(x_BN.shape[0], frames + blocks - 1, hop)
    return jnp.concatenate([x_BRH[:, block : block + frames] for block in range(blocks)], axis=-1)[..., :window]


def power_spectrum(x_BTW: Array, n_fft: int) -> Array:
    """[B, T, n_fft // 2 + 1] float32: squares of the amplitudes of frames, filled up with zeros to `n_fft` samples."""
    found_BTK = jnp.fft.rfft(x_BTW, n=n_fft, axis=-1)
    return jnp.square(found_BTK.real) + jnp.square(found_BTK.imag)


def hann(samples: int, periodic: bool = True) -> np.ndarray:
    """[samples] float32, Hann's window; one that is not periodic is 0 at both ends."""
    place = np.arange(samples) / (samples if periodic else samples - 1)
    return (0.5 - 0.5 * np.cos(2 * np.pi * place)).astype(np.float32)


@functools.lru_cache(maxsize=32)
def mel_filters(rate: int, n_fft: int, mels: int, fmin: float, fmax: float, scale: str) -> np.ndarray:
    """[n_fft // 2 + 1, mels] float32: triangles from one mel to the next but one, evenly spaced on a scale.

    Args:
      scale: `slaney` (linear below 1 kHz), triangles over Hz, all of one area, 1 (Slaney 1998, Auditory Toolbox);
        `kaldi`, 1127 ln(1 + f / 700), triangles over mels, each as high as 1.
    """
    hertz_K = np.arange(n_fft // 2 + 1) * rate / n_fft
    edges_M = np.linspace(_mels(fmin, scale), _mels(fmax, scale), mels + 2)
    place_K = _mels(hertz_K, scale)
    if scale == "slaney":
        edges_M, place_K = _hertz(edges_M), hertz_K
    left_M, middle_M, right_M = edges_M[:-2], edges_M[1:-1], edges_M[2:]
    up_KM = (place_K[:, None] - left_M) / (middle_M - left_M)
    down_KM = (right_M - place_K[:, None]) / (right_M - middle_M)
    found_KM = np.maximum(0.0, np.minimum(up_KM, down_KM))
    return (found_KM * (2.0 / (right_M - left_M)) if scale == "slaney" else found_KM).astype(np.float32)


@functools.lru_cache(maxsize=32)
def cosines(count: int, kept: int) -> np.ndarray:
    """[count, kept] float32: the first columns of the orthonormal DCT-II."""
    angle = np.pi * (np.arange(count)[:, None] + 0.5) * np.arange(kept) / count
    found = np.cos(angle) * np.sqrt(2.0 / count)
    found[:, 0] /= np.sqrt(2.0)
    return found.astype(np.float32)


def _mels(hertz: Any, scale: str) -> Any:
    if scale == "kaldi":
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)
    linear = 3.0 * np.asarray(hertz) / 200.0
    return np.where(linear < 15.0, linear, 15.0 + np.log(np.maximum(hertz, 1.0) / 1000.0) * 27.0 / np.log(6.4))


def _hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp((mels - 15.0) * np.log(6.4) / 27.0))


def _real(x_BN: Array, mask_BN: Array | None) -> tuple[Array, Array]:
    """Waveforms in float32, 0 where they are padding, and how many samples of each are real, [B]."""
    x_BN = x_BN.astype(jnp.float32)
    if mask_BN is None:
        return x_BN, jnp.full(x_BN.shape[0], x_BN.shape[1])
    return jnp.where(mask_BN, x_BN, 0.0), mask_BN.sum(axis=1)


def _product(x: Array, matrix: np.ndarray) -> Array:
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def _check(spec: Any) -> None:
    """Raises `UserError` for numbers out of range, and frequencies that do not rise or that the rate does not have."""
    check_ranges(spec)
    fmax = spec.rate / 2 if spec.fmax is None else spec.fmax
    if not spec.fmin < fmax <= spec.rate / 2:
        raise UserError(f"fmin={spec.fmin:g} and fmax={fmax:g}: use fmin < fmax, and no more than rate / 2 = {spec.rate / 2:g}")


def _check_samples(spec: Any, samples: int, least: int) -> None:
    if samples < least:
        name = type(spec).__name__
        raise UserError(f"{name} reads {least} samples or more, and a row has {samples}: use {least / spec.rate:g} s or more")
