"""A video frame by frame: each is read as an image is, and attention over time sees those that are real."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import ConvNeXt, VideoFrames, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.multimodal import init_params
from mmjax.train.config_file import apply_flags

IMAGE = ViT(image_size=(8, 8), patch=(4, 4), width=8, depth=1, heads=2)
VIDEO = np.random.default_rng(0).normal(size=(2, 5, 8, 8, 3)).astype(np.float32)
MASK = np.arange(5)[None] < np.array([[5], [3]])


def made(**fields):
    model = Multimodal(encoders={"video": VideoFrames(encoder=IMAGE, **fields)}, dtype="float32")
    return model, init_params(model, jax.random.key(0))


def encode(model, params, modality="video", **batch):
    return BoundForward(model, params, {key: jnp.asarray(x) for key, x in batch.items()}).encode(modality)


def test_each_frame_is_read_as_an_image():
    model, params = made()
    found = encode(model, params, video=VIDEO, video_mask=MASK)
    assert found.embeddings.shape == (2, 5, 8)
    np.testing.assert_array_equal(found.mask, MASK)
    image = Multimodal(encoders={"image": IMAGE}, dtype="float32")
    own = encode(image, {"encoders_image": params["encoders_video"]["encoder"]}, "image", image=VIDEO.reshape(10, 8, 8, 3))
    np.testing.assert_allclose(found.embeddings.reshape(10, 8), own.embeddings.mean(1), atol=1e-5)


def test_attention_over_time_sees_real_frames_alone():
    model, params = made(width=8, depth=1, heads=2, frames=6)
    found = encode(model, params, video=VIDEO, video_mask=MASK).embeddings
    other = encode(model, params, video=np.where(MASK[..., None, None, None], VIDEO, 9.0), video_mask=MASK).embeddings
    np.testing.assert_allclose(found[MASK], other[MASK], atol=1e-6)
    short = encode(model, params, video=VIDEO[1:, :3]).embeddings
    np.testing.assert_allclose(found[1, :3], short[0], atol=1e-6)
    turned = encode(model, params, video=VIDEO[:, ::-1]).embeddings
    assert np.abs(turned[:1, ::-1] - found[:1]).max() > 1e-3, "when a frame comes counts"


def test_it_is_a_spec_as_others_are():
    model, _ = made(pool="mean")
    assert from_json(to_json(model)).encoders["video"] == model.encoders["video"]
    assert apply_flags(model, ["--encoders.video.encoder.width", "16"]).encoders["video"].encoder.width == 16
    convolved = Multimodal(encoders={"video": VideoFrames(encoder=ConvNeXt(widths=(4, 8), depths=(1, 1)))}, dtype="float32")
    video = np.zeros((1, 2, 16, 16, 3), np.float32)
    assert encode(convolved, init_params(convolved, jax.random.key(0)), video=video).embeddings.shape == (1, 2, 8)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 12, "depth": 1, "heads": 2}, "width=12: the encoder of frames gives 8; make them equal"),
        ({"width": 8, "depth": 1, "heads": 2, "frames": 4}, "frames=4: a video has 5"),
        ({"encoder": None}, "encoder=None: give what reads a frame"),
    ],
)
def test_what_does_not_fit_is_refused(fields, said):
    model = Multimodal(encoders={"video": VideoFrames(**({"encoder": IMAGE} | fields))}, dtype="float32")
    with pytest.raises(UserError, match=said):
        encode(model, init_params(model, jax.random.key(0)), video=VIDEO)
