"""The encoder of tubelets: where its tokens lie, what hides them, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from mmjax.core.errors import UserError
from mmjax.core.patches import grid_of, patches_of
from mmjax.models import Multimodal
from mmjax.models.encoders import VideoTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.multimodal import init_params
from mmjax.nn.augment import ImageAugment
from mmjax.nn.position import sincos_sequence

SIZE = {"frames": 6, "image_size": (8, 12), "tubelet": 2, "patch": (4, 4), "channels": 3, "width": 8, "depth": 1, "heads": 2}
rng = np.random.default_rng(0)
VIDEO = rng.normal(size=(2, 6, 8, 12, 3)).astype(np.float32)


def model_of(**fields):
    return Multimodal(encoders={"video": VideoTransformer(**(SIZE | fields))}, dtype="float32")


def encode(model, params, batch):
    arrays = {key: jnp.asarray(x) for key, x in batch.items()}
    return BoundForward(model, params, arrays).encode("video")


@pytest.fixture(scope="module")
def made():
    model = model_of()
    return model, init_params(model, jax.random.key(0))


def test_a_patch_goes_through_the_frames_of_its_tubelet():
    found = np.asarray(patches_of(jnp.asarray(VIDEO), (4, 4), 2))
    assert found.shape == (2, 3 * 2 * 3, 2 * 4 * 4 * 3) and grid_of(VIDEO.shape, (4, 4), 2) == (3, 2, 3)
    for place, (time, row, column) in enumerate(np.ndindex(3, 2, 3)):
        own = VIDEO[:, 2 * time : 2 * time + 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(found[:, place], own.reshape(2, -1))


def test_positions_are_videomaes():
    theirs = get_sinusoid_encoding_table(50, 12)[0]
    assert torch.equal(torch.tensor(sincos_sequence(50, 12)), theirs)


def test_tokens_say_where_they_lie_and_may_be_left_out(made):
    model, params = model_of(depth=0), made[1]
    whole = encode(model, params, {"video": VIDEO})
    np.testing.assert_array_equal(whole.coordinates[1], list(np.ndindex(3, 2, 3)))
    assert whole.grid is None and whole.mask.all()
    keep = np.array([[5, 0, 17], [2, 3, 1]], np.int32)
    some = encode(model, params, {"video": VIDEO, "video_keep": keep})
    for name in ("embeddings", "positions", "coordinates"):
        own = np.stack([np.asarray(getattr(whole, name))[row, keep[row]] for row in range(2)])
        np.testing.assert_allclose(getattr(some, name), own, atol=1e-6)


def test_frames_that_are_not_its_own_change_nothing(made):
    model, params = made
    mask = np.arange(6)[None] < np.array([[4], [3]])
    filled = np.where(mask[..., None, None, None], VIDEO, VIDEO[:, 3:4])
    found = encode(model, params, {"video": filled, "video_mask": mask})
    assert found.mask.sum(1).tolist() == [12, 12], "a tubelet of which one frame is its own counts"
    other = np.where(mask[..., None, None, None], VIDEO, 7.0)[:1]
    again = encode(model, params, {"video": other, "video_mask": mask[:1]})
    np.testing.assert_allclose(again.embeddings[0, :12], found.embeddings[0, :12], atol=1e-6)
    short = encode(model, params, {"video": VIDEO[:1, :4]})
    np.testing.assert_allclose(short.embeddings[0], found.embeddings[0, :12], atol=1e-6)


def test_what_it_cannot_read_is_refused(made):
    model, params = made
    for batch, said in (
        ({"video": VIDEO[:, 0]}, r"channels=3: use videos \[B, T, H, W, 3\], found \(2, 8, 12, 3\)"),
        ({"video": VIDEO[..., :1]}, "channels=3: use videos"),
        ({"video": VIDEO[:, :5]}, "video of 5 frames is not a whole number of tubelets of 2 frames"),
        ({"video": VIDEO[:, :, :7]}, "image of 7 x 12 pixels is not a whole number of patches of 4 x 4"),
        ({"video": VIDEO, "video_mask": np.ones((2, 8, 12), bool)}, r"a video's mask says of each frame"),
    ):
        with pytest.raises(UserError, match=said):
            encode(model, params, batch)
    with pytest.raises(UserError, match="positions='rotary': use sequence, learned or none"):
        encode(model_of(positions="rotary"), params, {"video": VIDEO})
    learned = model_of(positions="learned")
    with pytest.raises(UserError, match=r"a video of 2 x 2 x 3 tubelets, and the learned positions .* are 3 x 2 x 3"):
        encode(learned, init_params(learned, jax.random.key(0)), {"video": VIDEO[:, :4]})


def test_a_video_is_augmented_by_one_draw():
    """Each frame becomes what the image alone becomes from the same key; the mask, which is of frames, stays."""
    augment = ImageAugment(rotate=20.0, shift=0.1, scale=(0.8, 1.2), flip=0.5, brightness=0.3)
    keys = jax.random.split(jax.random.key(3), 2)
    mask = jnp.asarray(rng.random((2, 6)) > 0.5)
    moved, over = augment.together(jnp.asarray(VIDEO), keys, {"video_mask": ("mask", mask)})
    alone = jnp.stack([augment(jnp.asarray(VIDEO[:, time]), keys) for time in range(6)], axis=1)
    np.testing.assert_allclose(moved, alone, atol=1e-5)
    np.testing.assert_array_equal(over["video_mask"], mask)
    with pytest.raises(UserError, match="video_map lies over a video"):
        augment.together(jnp.asarray(VIDEO), keys, {"video_map": ("map", jnp.zeros((2, 6, 8, 12), jnp.int32))})
