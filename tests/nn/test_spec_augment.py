import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.random import example_keys
from mmjax.models.forward import augmented
from mmjax.nn.augment import AUGMENTATIONS
from mmjax.nn.spec_augment import SpecAugment

B, T, F = 256, 40, 12
KEYS = example_keys(jax.random.key(0), jnp.arange(B))
X = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, (B, T, F)).astype(np.float32))
COUNT = np.random.default_rng(1).integers(0, T + 1, B)
MASK = jnp.asarray(np.arange(T)[None] < COUNT[:, None])


def hidden(spec, mask=MASK) -> np.ndarray:
    """[B, T, F] bool."""
    return np.asarray(spec(X, KEYS, mask) == -9.0)


def runs(row: np.ndarray) -> list[int]:
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def test_a_stretch_of_time_is_bounded_by_its_width_and_by_the_share_of_the_sound():
    found = hidden(SpecAugment(1, 10, 0, 0, 0.5, -9.0))
    time_BT = found.all(axis=2)
    np.testing.assert_array_equal(time_BT, found.any(axis=2))
    lengths = [runs(row) for row in time_BT]
    assert all(len(own) <= 1 and sum(own) <= min(10, n // 2) for own, n in zip(lengths, COUNT, strict=True))
    assert max(map(sum, lengths)) == 10 and 0 in map(sum, lengths), "both ends are drawn"
    assert not (time_BT & ~np.asarray(MASK)).any(), "padding stays"
    full_BT = hidden(SpecAugment(1, 10, 0, 0, 0.5, -9.0), None).all(axis=2)
    assert full_BT[:, 0].any() and full_BT[:, -1].any(), "up to both ends"


def test_widths_are_drawn_evenly():
    time_BT = hidden(SpecAugment(1, 4, 0, 0, 1.0, -9.0), None).all(axis=2)
    counts = np.bincount(time_BT.sum(1), minlength=5)
    assert len(counts) == 5 and (abs(counts - B / 5) < 4 * np.sqrt(B * 0.16)).all()
    short_BT = hidden(SpecAugment(1, 4, 0, 0, 1.0, -9.0), jnp.asarray(np.arange(T)[None] < np.full((B, 1), 8)))[..., 0]
    np.testing.assert_array_equal(short_BT.sum(1), time_BT.sum(1), "none of it lies in the padding")


def test_bands_go_through_all_real_frames():
    found = hidden(SpecAugment(0, 0, 2, 5, 1.0, -9.0))
    band_BF = found[:, 0]
    np.testing.assert_array_equal(found, band_BF[:, None] & np.asarray(MASK)[..., None])
    assert all(len(runs(row)) <= 2 and max(runs(row), default=0) <= 10 for row in band_BF) and band_BF.any(0).all()


def test_an_example_is_hidden_alike_wherever_it_stands():
    spec = SpecAugment(time_width=8, frequency_width=4)
    whole = np.asarray(spec(X, KEYS, MASK))
    np.testing.assert_allclose(spec(X[5:7], KEYS[5:7], MASK[5:7]), whole[5:7], rtol=1e-6)
    np.testing.assert_array_equal(SpecAugment(0, 9, 0, 9)(X, KEYS), X)


def test_the_mean_of_what_is_real_is_put_there():
    found = np.asarray(SpecAugment(1, 10, 0, 0)(X, KEYS, MASK))
    where = hidden(SpecAugment(1, 10, 0, 0, 1.0, -9.0))
    for row in np.flatnonzero(where.any(axis=(1, 2)))[:20]:
        np.testing.assert_allclose(found[row][where[row]], np.asarray(X)[row, : COUNT[row]].mean(), rtol=1e-4)
    assert SpecAugment()(X[:2].astype(jnp.bfloat16), KEYS[:2]).dtype == jnp.bfloat16


def test_as_the_augmentation_of_an_input():
    spec = AUGMENTATIONS["spectrogram"](time_width=10)
    over = {"audio_mask": "mask"}
    moved = augmented(spec, "audio", {"audio": X, "audio_mask": MASK}, over, KEYS)
    np.testing.assert_array_equal(moved["audio"], spec(X, KEYS, MASK))
    assert moved["audio_mask"] is MASK
    with pytest.raises(UserError, match=r"SpecAugment hides parts of spectrograms, \[B, T, F\], and this is \[256, 40\]"):
        augmented(spec, "audio", {"audio": X[..., 0], "audio_mask": MASK}, over, KEYS)
