"""An encoder of waveforms: its frames, what padding does not change, what it makes ready, what it cannot read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from mmjax.core.errors import UserError
from mmjax.models import Multimodal, init_params
from mmjax.models.encoders import WaveformTransformer
from mmjax.models.encoders.waveform import _frames
from mmjax.models.forward import BoundForward

KEY = {"params": jnp.zeros(2, jnp.uint32)}
SIZE = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 24, "position_kernel": 4, "position_groups": 2}
SMALL = WaveformTransformer(widths=(6, 8), kernels=(10, 3), strides=(5, 2), rate=2000, **SIZE)
LENGTHS = (300, 171, 12)


def sounds():
    """Of several lengths, with an offset, and something other than zeros behind them."""
    mask = np.arange(300)[None] < np.array(LENGTHS)[:, None]
    x = 3 + 2 * np.random.default_rng(0).normal(size=mask.shape)
    return x.astype(np.float32), mask


def test_frames_are_those_of_huggingface():
    config = Wav2Vec2Config(hidden_size=16, num_hidden_layers=0, num_attention_heads=1, conv_dim=[4] * 7)
    theirs = Wav2Vec2Model(config)
    count = np.arange(400, 3000, dtype=np.int32)
    found = jnp.asarray(count)
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        found = _frames(found, kernel, stride)
    np.testing.assert_array_equal(found, theirs._get_feat_extract_output_lengths(torch.tensor(count)))
    assert WaveformTransformer().samples(1) == 400 and WaveformTransformer().samples(3) == 1040
    assert _frames(jnp.array([0, 1, 9, 10]), 10, 5).tolist() == [0, 1, 1, 1]  # of what is too short the one that it is in


def test_a_waveform_is_made_ready_as_huggingfaces_extractor_does():
    x, mask = sounds()
    theirs = Wav2Vec2FeatureExtractor(return_attention_mask=True, sampling_rate=2000)
    rows = [row[:count] for row, count in zip(x, LENGTHS, strict=True)]
    expect = theirs(rows, padding=True, sampling_rate=2000, return_tensors="np")
    found = SMALL.front({"": jnp.asarray(x), "mask": jnp.asarray(mask)})
    np.testing.assert_allclose(found[""], expect["input_values"], atol=2e-6)
    np.testing.assert_array_equal(found["mask"], expect["attention_mask"])
    silent = SMALL.front({"": jnp.full((2, 50), 0.25), "mask": jnp.asarray([[True] * 50, [False] * 50])})
    assert not np.any(silent[""]) and silent["mask"].shape == (2, 50)
    same = SMALL.copy(normalise=False).front({"": jnp.asarray(x), "mask": jnp.asarray(mask)})
    np.testing.assert_array_equal(same[""], np.where(mask, x, 0))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_row_is_the_same_alone_as_among_longer_ones(norm):
    encoder = SMALL.copy(extract_norm=norm, norm_placement="post" if norm == "group" else "pre")
    x, mask = (jnp.asarray(own) for own in sounds())

    @jax.jit
    def both():
        variables = encoder.init(KEY, x)
        padded = encoder.apply(variables, encoder.front({"": x, "mask": mask})[""], mask)
        short = x[1:2, : LENGTHS[1]]
        return padded, encoder.apply(variables, encoder.front({"": short})[""])

    padded, alone = both()
    assert padded.mask.sum(axis=1).tolist() == [29, 16, 1] and alone.mask.all()
    np.testing.assert_allclose(padded.embeddings[1, :16], alone.embeddings[0], atol=2e-5)


def test_what_is_made_ready_is_float32_whatever_is_computed_in():
    model, loud = Multimodal(encoders={"audio": SMALL}, dtype="bfloat16"), sounds()[0] + 1000  # of which bfloat16 keeps nothing

    @jax.jit
    def both():
        params = init_params(model, jax.random.key(0))
        return [BoundForward(model, params, {"audio": jnp.asarray(x)}).encode("audio").embeddings for x in (loud, loud - 1000)]

    found, moved = both()
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), moved.astype(jnp.float32), atol=0.1)


def test_masked_frames_are_a_token_of_their_own():
    encoder = SMALL.copy(mask_token=True)
    x, everywhere = jnp.asarray(sounds()[0]), jnp.ones((3, 29), jnp.int32)

    @jax.jit
    def said():
        variables = encoder.init(KEY, x)
        return [encoder.apply(variables, x, None, hidden).embeddings for hidden in (everywhere, 0 * everywhere, None)]

    all_of_them, none, plain = said()
    np.testing.assert_allclose(all_of_them[0], all_of_them[1], atol=1e-6)  # nothing is left of what was heard
    np.testing.assert_allclose(none, plain, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "shape", "line"),
    [
        ({}, (2, 40, 8), r"reads \[B, N\], found an input of shape \(2, 40, 8\)"),
        ({}, (2, 19), "a row of 19 samples is shorter than the 20 of one frame: use 0.01 s or more"),
        ({"strides": (5,)}, (2, 40), r"kernels=\(10, 3\), strides=\(5,\): give one of each a convolution"),
        ({"extract_norm": "batch"}, (2, 40), "extract_norm='batch': use one of group, layer"),
        ({"position_groups": 3}, (2, 40), "position_groups=3 does not divide width=16"),
    ],
)
def test_what_it_cannot_read_is_said(fields, shape, line):
    with pytest.raises(UserError, match=line):
        jax.eval_shape(SMALL.copy(**fields).init, KEY, jnp.zeros(shape))


def test_masks_of_frames_that_are_none_are_said():
    for encoder, frames, line in (
        (SMALL, 29, "needs mask_token=True"),
        (SMALL.copy(mask_token=True), 7, r"there are \[3, 29\]"),
    ):
        with pytest.raises(UserError, match=line):
            jax.eval_shape(encoder.init, KEY, jnp.zeros((3, 300)), None, jnp.zeros((3, frames), jnp.int32))
