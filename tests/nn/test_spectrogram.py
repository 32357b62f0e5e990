import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor, audio_utils
from transformers.models.audio_spectrogram_transformer import feature_extraction_audio_spectrogram_transformer as ast

from mmjax.core.errors import UserError
from mmjax.nn.spectrogram import SPECTROGRAMS, Fbank, LogMel, Mfcc, cosines, framed, hann, mel_filters


def sound(samples: int, rate: int, seed: int = 0) -> np.ndarray:
    """[N] float32: a rising tone with overtones that fades, and some noise."""
    rng, t = np.random.default_rng(seed), np.arange(samples) / rate
    tone = sum(np.sin(2 * np.pi * k * (200 * t + 300 * t**2)) / k for k in range(1, 6))
    return (0.2 * tone * np.exp(-t) + 0.01 * rng.standard_normal(samples)).astype(np.float32)


def batch(sounds, samples: int) -> tuple[np.ndarray, np.ndarray]:
    x_BN, mask_BN = np.zeros((len(sounds), samples), np.float32), np.zeros((len(sounds), samples), bool)
    for row, one in enumerate(sounds):
        x_BN[row, : len(one)], mask_BN[row, : len(one)] = one, True
    return x_BN, mask_BN


def test_whisper_is_huggingfaces():
    theirs = WhisperFeatureExtractor(chunk_length=2)
    sounds = [sound(32_000, 16_000), sound(11_111, 16_000, 1), np.zeros(800, np.float32)]
    want = theirs(sounds, sampling_rate=16_000, return_attention_mask=True, return_tensors="np")
    spec = LogMel()
    features, mask = jax.jit(spec)(*batch(sounds, 32_000))
    assert features.shape == (3, 200, 80) == (3, spec.frames(32_000), spec.features) and features.dtype == jnp.float32
    np.testing.assert_allclose(features, want["input_features"].transpose(0, 2, 1), atol=1e-4)
    np.testing.assert_array_equal(mask, want["attention_mask"])


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # of AST's own numbers
def test_ast_is_huggingfaces(monkeypatch):
    monkeypatch.setattr(ast, "is_speech_available", lambda: False)  # Kaldi's own arithmetic written out, not torchaudio's
    theirs = ASTFeatureExtractor(max_length=120)
    sounds = [sound(16_000, 16_000), sound(7_777, 16_000, 1)]
    want = theirs(sounds, sampling_rate=16_000, return_tensors="np")["input_values"]
    features, mask = Fbank(length=120)(*batch(sounds, 16_000))
    np.testing.assert_allclose(features, want, atol=1e-4)
    assert mask.sum(1).tolist() == [98, 47] and mask.shape == (2, 120)
    shorter, _ = Fbank(length=30)(*batch(sounds, 16_000))
    np.testing.assert_array_equal(shorter, features[:, :30])


def cepstra(x: np.ndarray, spec: Mfcc) -> np.ndarray:
    """[T, F] as librosa computes them, from scipy's cosines and the mel spectrogram of transformers."""
    fmax = spec.rate / 2 if spec.fmax is None else spec.fmax
    frequencies = 1 + spec.n_fft // 2
    filters = audio_utils.mel_filter_bank(frequencies, spec.mels, spec.fmin, fmax, spec.rate, "slaney", "slaney")
    window = audio_utils.window_function(spec.n_fft, "hann")
    mel = audio_utils.spectrogram(
        x, window, spec.n_fft, spec.hop, power=2.0, pad_mode="constant", mel_filters=filters, dtype=np.float64
    )
    db = 10 * np.log10(mel)
    return scipy.fft.dct(np.maximum(db, db.max() - spec.top_db), axis=0, norm="ortho")[: spec.coefficients].T


@pytest.mark.parametrize("spec", [Mfcc(rate=22_000), Mfcc(16_000, 512, 160, 40, 13, 20.0, 7600.0)])
def test_cepstra_of_a_padded_row_are_those_of_the_sound(spec):
    sounds = [sound(9_000, spec.rate), sound(4_096, spec.rate, 1)]
    features, mask = spec(*batch(sounds, 9_000))
    for row, one in enumerate(sounds):
        want = cepstra(one, spec)
        assert int(mask[row].sum()) == len(want) and not features[row, len(want) :].any()
        np.testing.assert_allclose(features[row, : len(want)], want, atol=1e-4 * np.abs(want).max())


def test_cepstra_are_librosas():
    librosa = pytest.importorskip("librosa", reason="the one it is compared with; its arithmetic is above, from scipy")
    x = sound(11_025, 22_050)
    other = {"n_fft": 512, "hop_length": 160, "n_mels": 40, "fmin": 20, "fmax": 7600}
    for own, theirs in ((Mfcc(), {}), (Mfcc(22_050, 512, 160, 40, 13, 20.0, 7600.0), other)):
        want = librosa.feature.mfcc(y=x, sr=22_050, n_mfcc=own.coefficients, **theirs).T
        np.testing.assert_allclose(own(x[None])[0][0], want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("scale", "norm"), [("slaney", "slaney"), ("kaldi", None)])
@pytest.mark.parametrize(("rate", "n_fft", "mels", "fmin", "fmax"), [(16_000, 400, 80, 0, 8000), (8_000, 256, 23, 20, 3800)])
def test_filters_are_huggingfaces(scale, norm, rate, n_fft, mels, fmin, fmax):
    want = audio_utils.mel_filter_bank(1 + n_fft // 2, mels, fmin, fmax, rate, norm, scale, scale == "kaldi")
    np.testing.assert_allclose(mel_filters(rate, n_fft, mels, fmin, fmax, scale), want, atol=1e-6)


def test_cosines_and_windows():
    np.testing.assert_allclose(cosines(7, 5), scipy.fft.dct(np.eye(7), norm="ortho")[:, :5], atol=1e-6)
    for periodic in (True, False):
        np.testing.assert_allclose(hann(9, periodic), audio_utils.window_function(9, "hann", periodic=periodic), atol=1e-6)


@pytest.mark.parametrize(("window", "hop", "more"), [(4, 4, 8), (5, 2, 9), (3, 7, 20), (6, 4, 1)])
def test_frames_are_those_of_a_sliding_window(window, hop, more):
    x = np.arange(window + more, dtype=np.float32)
    want = np.lib.stride_tricks.sliding_window_view(x, window)[::hop]
    np.testing.assert_array_equal(framed(x[None], window, hop)[0], want)


@pytest.mark.parametrize("name", SPECTROGRAMS)
def test_padding_says_nothing_and_gradients_are_finite(name):
    spec = SPECTROGRAMS[name](rate=16_000)
    x_BN, mask_BN = batch([sound(6_000, 16_000), np.zeros(0, np.float32)], 8_000)
    junk_BN = np.where(mask_BN, x_BN, 7.0)
    features, mask = spec(junk_BN, mask_BN)
    np.testing.assert_array_equal(features, spec(x_BN, mask_BN)[0])
    assert np.isfinite(features).all() and not mask[1].any() and mask.shape[1] == spec.frames(8_000)
    gradient = jax.grad(lambda x: spec(x, mask_BN)[0].sum())(jnp.asarray(x_BN))
    assert np.isfinite(gradient).all() and not gradient[1].any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LogMel(fmax=9000.0), "fmin=0 and fmax=9000: use fmin < fmax, and no more than rate / 2 = 8000"),
        (lambda: Mfcc(fmin=12_000.0), "fmin=12000 and fmax=11025"),
        (lambda: LogMel(hop=0), "hop=0: use a number from 1"),
        (lambda: Fbank(n_fft=256), "n_fft=256: a frame has window=400 samples"),
        (lambda: Mfcc(mels=10), "coefficients=20: mels=10 filters have no more than that"),
        (lambda: LogMel()(np.zeros((1, 200))), "LogMel reads 201 samples or more, and a row has 200: use 0.0125625 s or more"),
        (lambda: Fbank().frames(399), "Fbank reads 400 samples or more"),
    ],
)
def test_numbers_that_are_none(make, said):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(said)
