"""An encoder of patches of a spectrogram: short sounds, padding, what it cannot read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.trees import map_with_path
from mmjax.models.encoders import SpectrogramViT
from mmjax.nn.spectrogram import Fbank

KEY = {"params": jnp.zeros(2, jnp.uint32)}
SMALL = SpectrogramViT(
    spectrogram=Fbank(mels=9, rate=2000, window=64, n_fft=64, hop=32, fmax=1000.0),
    max_length=20,
    patch=4,
    frequency_stride=3,
    time_stride=2,
    width=8,
    depth=1,
    heads=2,
)


def test_a_shorter_sound_has_the_first_positions_of_each_row():
    """With patches and first tokens of nothing, and no layers, what is left is positions."""
    bare = SMALL.copy(depth=0, final_norm=False)
    long, short = jnp.ones((1, 20, 9)), jnp.ones((1, 11, 9))

    @jax.jit
    def both():
        variables = map_with_path(lambda path, x: x if "position" in path else 0 * x, bare.init(KEY, long))
        return bare.apply(variables, long), bare.apply(variables, short)

    whole, part = both()
    assert whole.grid == (2, 9, 2) and part.grid == (2, 4, 2)
    rows = np.asarray(whole.embeddings[0, 2:]).reshape(2, 9, 8)[:, :4]
    np.testing.assert_array_equal(part.embeddings[0, 2:], rows.reshape(8, 8))
    np.testing.assert_array_equal(part.embeddings[0, :2], whole.embeddings[0, :2])
    assert len(np.unique(np.asarray(whole.embeddings[0]), axis=0)) == 20


def test_patches_that_begin_in_padding_are_hidden():
    x = np.random.default_rng(0).normal(size=(2, 700)).astype(np.float32)
    mask = np.arange(700)[None] < np.array([[700], [350]])

    @jax.jit
    def both(x, mask):
        variables = SMALL.init(KEY, SMALL.example())
        return SMALL.apply(variables, x, mask), SMALL.copy(mask_padding=False).apply(variables, x, mask)

    hidden, heard = both(jnp.asarray(x), jnp.asarray(mask))
    assert hidden.embeddings.shape == (2, 20, 8) and heard.mask.all()
    frames = 1 + (350 - 64) // 32  # that are whole, 9: a patch begins at 0, 2, 4, 6 and 8
    assert frames == 9 and hidden.mask.sum(axis=1).tolist() == [20, 2 + 2 * 5]
    np.testing.assert_array_equal(hidden.mask[1, 2:].reshape(2, 9).sum(axis=1), [5, 5])
    np.testing.assert_allclose(hidden.embeddings[0], heard.embeddings[0], atol=1e-6)
    assert np.abs(hidden.embeddings[1] - heard.embeddings[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ((2, 20, 8), r"features \[B, T, 9\], found an input of shape \(2, 20, 8\)"),
        ((2, 21, 9), "a sound of 21 frames is longer than the model's max_length=20: cut it"),
        ((2, 3, 9), "patch=4: 3 frames of 9 features are no patch; use a smaller one"),
    ],
)
def test_what_it_cannot_read_is_said(shape, line):
    with pytest.raises(UserError, match=line):
        jax.eval_shape(SMALL.init, KEY, jnp.zeros(shape))
