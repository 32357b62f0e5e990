"""An encoder of sounds among other parts: augmented in training, in a space that it shares with texts."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import Multimodal, init_params
from mmjax.models.encoders import AudioTransformer, TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Dual
from mmjax.nn.spec_augment import SpecAugment
from mmjax.nn.spectrogram import Fbank, LogMel

SIZE = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32}
SOUND = LogMel(mels=8, n_fft=64, hop=32, rate=2000, fmax=1000.0)


def model(**fields):
    audio = AudioTransformer(**SIZE, spectrogram=SOUND, max_length=40, **fields)
    text = TextTransformer(**SIZE, vocab_size=20, max_length=6)
    return Multimodal(
        encoders={"audio": audio, "text": text},
        fusions={"dual": Dual(width=12, pool={"audio": "mean", "text": "last"}, project=("audio", "text"))},
        dtype="float32",
    )


def batch():
    rng = np.random.default_rng(0)
    mask = np.arange(1920)[None] < np.array([[1920], [960]])
    return {
        "audio": jnp.asarray(rng.normal(size=mask.shape).astype(np.float32) * mask),
        "audio_mask": jnp.asarray(mask),
        "text": jnp.asarray(rng.integers(1, 20, (2, 6)), jnp.int32),
        "text_mask": jnp.ones((2, 6), bool),
        "index": jnp.arange(2, dtype=jnp.int32),
    }


def test_a_spectrogram_is_hidden_in_training_and_nothing_else():
    made, rows = model(), batch()
    params = init_params(made, jax.random.key(0))
    augmented = made.copy(augment={"audio": SpecAugment(time_width=20, frequency_width=4)})
    plain = BoundForward(made, params, rows).encode("audio")
    assert plain.mask.sum(axis=1).tolist() == [30, 15]
    still = BoundForward(augmented, params, rows).encode("audio").embeddings
    np.testing.assert_array_equal(still, plain.embeddings)
    first, again, other = (
        BoundForward(augmented, params, rows, jax.random.key(seed)).encode("audio").embeddings for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain.embeddings).max() > 1e-3 and np.abs(first - other).max() > 1e-3


def test_what_is_behind_a_sound_changes_nothing_in_a_shared_space():
    """Of a spectrogram whose frames see no other: Whisper's are held against the loudest of a whole row."""
    made, rows = model(), batch()
    sound = Fbank(mels=8, window=64, n_fft=64, hop=32, rate=2000, fmax=1000.0)
    made = made.copy(encoders={**made.encoders, "audio": made.encoders["audio"].copy(spectrogram=sound)})
    params = init_params(made, jax.random.key(0))
    ours = BoundForward(made, params, rows).embed("audio")
    assert ours.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, rtol=1e-6)
    noise = jnp.where(rows["audio_mask"], rows["audio"], 5.0)
    other = BoundForward(made, params, {**rows, "audio": noise}).embed("audio")
    np.testing.assert_array_equal(ours, other)
