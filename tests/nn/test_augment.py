import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from scipy.ndimage import affine_transform

from mmjax.core.errors import UserError
from mmjax.core.random import example_keys
from mmjax.nn.augment import ImageAugment, bilinear, source_positions

EVERYTHING = ImageAugment(
    rotate=20.0, shift=0.1, scale=(0.8, 1.2), crop=2, flip=0.5, brightness=0.2, contrast=0.3, noise=0.1, fill=-1.0
)


def images(batch=8, height=8, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def keys(batch=8, seed=0):
    return example_keys(jax.random.key(seed), jnp.arange(batch))


@functools.partial(jax.jit, static_argnames="spec")
def compiled_augment(spec, image_BHWC, keys_B):
    return spec(image_BHWC, keys_B)


def augment(spec, image_BHWC, keys_B):
    return np.asarray(compiled_augment(spec, image_BHWC, keys_B))


@functools.partial(jax.jit, static_argnames="fill")
def move(image_HWC, angle, zoom, shift, fill):
    y, x = source_positions(*image_HWC.shape[:2], angle, zoom, shift)
    return bilinear(image_HWC, y, x, fill)


def moved(image_HWC, degrees=0.0, zoom=1.0, shift=(0.0, 0.0), fill=None):
    return np.asarray(move(image_HWC, np.float32(math.radians(degrees)), np.float32(zoom), np.array(shift, np.float32), fill))


def shifted(image_HWC, down, right, fill):
    """`np.roll`, with `fill` where it wrapped around."""
    result = np.roll(image_HWC, (down, right), axis=(0, 1))
    height, width, _ = result.shape
    row, column = np.arange(height)[:, None] - down, np.arange(width)[None] - right
    result[(row < 0) | (row >= height) | (column < 0) | (column >= width)] = fill
    return result


def test_what_is_off_costs_nothing():
    image = jnp.asarray(images())
    assert ImageAugment()(image, keys()) is image
    assert ImageAugment(fill=0.5)(image, keys()) is image
    jaxpr = jax.make_jaxpr(ImageAugment(brightness=0.1))(image, keys())
    assert "gather" not in str(jaxpr)


@pytest.mark.parametrize("fill", [None, 0.0])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_exact(turns, fill):
    image = images()[0]
    np.testing.assert_allclose(moved(image, degrees=90 * turns, fill=fill), np.rot90(image, turns), atol=1e-5)


def test_an_image_that_is_not_square_turns_in_pixels():
    image = images(height=4, width=8)[0]
    result = moved(image, degrees=90, fill=7.0)
    np.testing.assert_allclose(result[:, 2:6], np.rot90(image[:, 2:6]), atol=1e-5)
    np.testing.assert_allclose(result[:, [0, 1, 6, 7]], 7.0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(down=st.integers(-9, 9), right=st.integers(-9, 9))
def test_a_shift_by_whole_pixels_is_bit_exact(down, right):
    image = images(height=6, width=8)[0]
    np.testing.assert_array_equal(moved(image, shift=(down, right), fill=0.5), shifted(image, down, right, 0.5))


@settings(deadline=None, max_examples=30)
@given(degrees=st.floats(-180, 180), zoom=st.floats(0.5, 2), shift=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
@pytest.mark.parametrize(("fill", "mode"), [(None, "nearest"), (0.25, "grid-constant")])
def test_any_move_is_scipys(fill, mode, degrees, zoom, shift):
    image = images(height=6, width=9)[0]
    angle = np.radians(degrees)
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre - inverse @ (centre + shift)
    expected = [affine_transform(image[..., c], inverse, offset, order=1, mode=mode, cval=fill or 0.0) for c in range(3)]
    np.testing.assert_allclose(moved(image, degrees, zoom, shift, fill), np.stack(expected, axis=-1), atol=2e-5)


def test_crop_shifts_by_whole_pixels_up_to_its_size():
    image = images(batch=40)
    result = augment(ImageAugment(crop=1, fill=0.0), image, keys(40))
    seen = set()
    for old, new in zip(image, result, strict=True):
        match = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if np.array_equal(new, shifted(old, y, x, 0.0))]
        assert len(match) == 1
        seen |= set(match)
    assert len(seen) == 9


def test_flip_mirrors_its_share_of_the_images():
    image = images(batch=64, width=6)
    result = augment(ImageAugment(flip=0.75), image, keys(64))
    flipped = np.array([np.array_equal(new, old[:, ::-1]) for old, new in zip(image, result, strict=True)])
    kept = np.array([np.array_equal(new, old) for old, new in zip(image, result, strict=True)])
    np.testing.assert_array_equal(flipped, ~kept)
    assert 0.6 < flipped.mean() < 0.9
    np.testing.assert_array_equal(augment(ImageAugment(flip=1.0), image, keys(64)), image[:, :, ::-1])


def test_brightness_contrast_and_noise_have_their_ranges():
    image = images(batch=256)
    added = augment(ImageAugment(brightness=0.3), image, keys(256)) - image
    np.testing.assert_allclose(added, np.broadcast_to(added.mean(axis=(1, 2, 3), keepdims=True), added.shape), atol=1e-6)
    added = added.mean(axis=(1, 2, 3))
    assert (-0.3 <= added.min() < -0.27) and (0.27 < added.max() <= 0.3 + 1e-6) and abs(added.mean()) < 0.03

    result = augment(ImageAugment(contrast=0.5), image, keys(256))
    centred, expected = (x - x.mean(axis=(1, 2, 3), keepdims=True) for x in (result, image))
    ratio = (centred * expected).sum(axis=(1, 2, 3)) / (expected**2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(centred, ratio[:, None, None, None] * expected, atol=1e-5)
    np.testing.assert_allclose(result.mean(axis=(1, 2, 3)), image.mean(axis=(1, 2, 3)), atol=1e-6)
    assert (0.5 <= ratio.min() + 1e-6 < 0.53) and (1.47 < ratio.max() <= 1.5 + 1e-6)

    noise = augment(ImageAugment(noise=0.2), image, keys(256)) - image
    assert noise.std() == pytest.approx(0.2, rel=0.01)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.25


def test_an_image_does_not_depend_on_its_place_in_the_batch():
    image, order = images(), np.array([3, 0, 7, 5, 1, 6, 4, 2])
    whole = augment(EVERYTHING, image, keys())
    np.testing.assert_array_equal(augment(EVERYTHING, image[order], keys()[order]), whole[order])
    assert whole.shape == image.shape and not np.array_equal(whole, image)


def test_one_change_leaves_the_draws_of_the_others_alone():
    image = images()
    bright = augment(ImageAugment(brightness=0.5), image, keys()) - image
    both = augment(ImageAugment(brightness=0.5, flip=0.5), image, keys()) - augment(ImageAugment(flip=0.5), image, keys())
    np.testing.assert_allclose(both, bright, atol=1e-6)


def test_a_sharded_batch_stays_sharded_and_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put((images(), keys()), sharding)
    compiled = compiled_augment.lower(EVERYTHING, *sharded).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))
    np.testing.assert_allclose(compiled(*sharded), augment(EVERYTHING, images(), keys()), atol=1e-5)


def test_dtype_stays():
    image = jnp.asarray(images()).astype(jnp.bfloat16)
    assert augment(ImageAugment(rotate=10.0, contrast=0.1), image, keys()).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("field", "value"),
    [("rotate", -1.0), ("flip", 1.5), ("flip", -0.1), ("crop", -1), ("scale", (1.1, 0.9)), ("scale", (0.0, 1.0))],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(UserError, match=f"^{field}="):
        ImageAugment(**{field: value})
