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
from mmjax.nn.augment import moved as over_moved

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


# What lies over an image: its class is painted into the image (red: class + 1, green: the mask; 0: from outside).

OVER = {"map": "map", "value": "map", "mask": "mask", "boxes": "boxes", "points": "points"}


def painted(batch=12, height=9, width=12):
    """Images, and by name what lies over them: in class 1 a single blob of 3 x 5, with its box and its middle."""
    rng = np.random.default_rng(0)
    there = rng.integers(2, 5, (batch, height, width)).astype(np.int32)
    boxes, points = np.full((batch, 2, 4), -1, np.float32), np.full((batch, 2, 2), -1, np.float32)
    for row in range(batch):
        top, left = rng.integers(0, height - 2), rng.integers(0, width - 4)
        there[row, top : top + 3, left : left + 5] = 1
        boxes[row, 0], points[row, 1] = (left, top, left + 5, top + 3), (left + 2.5, top + 1.5)
    real = rng.random(there.shape) < 0.7
    image = np.stack([there + 1.0, np.where(real, 1.0, 0.5), np.ones(there.shape)], axis=-1).astype(np.float32)
    return image, {"map": there, "value": there.astype(np.float32), "mask": real, "boxes": boxes, "points": points}


@functools.partial(jax.jit, static_argnames="spec")
def compiled_together(spec, image_BHWC, keys_B, arrays):
    return spec.together(image_BHWC, keys_B, {name: (OVER[name], x) for name, x in arrays.items()})


def together(spec, image, arrays, seed=0):
    moved_image, rest = compiled_together(spec, image, keys(len(image), seed), arrays)
    return np.asarray(moved_image), {name: np.asarray(x) for name, x in rest.items()}


def assert_planes_are_where_the_colours_are(image, rest):
    """Returns the classes that the colours tell."""
    told = np.rint(image[..., 0]).astype(np.int32) - 1
    np.testing.assert_allclose(image[..., 0], told + 1, atol=1e-4)  # nothing was mixed
    assert (rest["map"].dtype, rest["value"].dtype, rest["mask"].dtype) == (np.int32, np.float32, bool)
    np.testing.assert_array_equal(rest["map"], told)
    np.testing.assert_array_equal(rest["value"], np.where(told < 0, np.nan, told))
    np.testing.assert_array_equal(rest["mask"], image[..., 1] > 0.75)
    return told


def assert_places_are_where_the_blob_is(told, rest):
    """Boxes are those around the blob's pixels; points are its middle where that is in view. Returns how many are."""
    seen = 0
    for there, boxes, points in zip(told, rest["boxes"], rest["points"], strict=True):
        assert (boxes[1] == -1).all() and (points[0] == -1).all()
        rows, columns = np.nonzero(there == 1)
        if not len(rows):
            assert (boxes[0] == -1).all() and (points[1] == -1).all()
            continue
        np.testing.assert_allclose(boxes[0], [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], atol=1e-4)
        if (points[1] != -1).any():
            seen += 1
            x, y = points[1]
            assert there[int(y), int(x)] == 1
    return seen


def test_what_lies_over_an_image_is_mirrored_and_turned_with_it():
    image, arrays = painted()
    half_turn = np.array(math.pi, np.float32)
    for name, spec, expected in [
        ("mirror", ImageAugment(flip=1.0), image[:, :, ::-1]),
        ("half", ImageAugment(flip=0.5), None),
        ("still", ImageAugment(flip=0.0, brightness=1e-12), image),
    ]:
        result, rest = together(spec, image, arrays)
        if expected is not None:
            np.testing.assert_array_equal(result, expected, err_msg=name)
        told = assert_planes_are_where_the_colours_are(result, rest)
        assert assert_places_are_where_the_blob_is(told, rest) == len(image), name

    @jax.jit
    def turn(image, arrays):
        placement = (half_turn, jnp.ones(()), jnp.zeros(2))
        y_HW, x_HW = source_positions(9, 12, *placement)
        rest = {name: over_moved(OVER[name], x, (9, 12), placement) for name, x in arrays.items()}
        return bilinear(image, y_HW, x_HW, 0.0), rest

    turned = [jax.tree.map(np.asarray, turn(image[i], {name: x[i] for name, x in arrays.items()})) for i in range(4)]
    result = np.stack([own for own, _ in turned])
    rest = {name: np.stack([own[name] for _, own in turned]) for name in OVER}
    np.testing.assert_allclose(result, image[:4, ::-1, ::-1], atol=1e-4)
    told = np.rint(result[..., 0]).astype(np.int32) - 1
    for name in ("map", "mask", "value"):
        np.testing.assert_array_equal(rest[name], arrays[name][:4, ::-1, ::-1], err_msg=name)
    assert assert_places_are_where_the_blob_is(told, rest) == 4


def test_a_shift_by_whole_pixels_takes_along_what_lies_over_and_drops_what_leaves():
    image, arrays = painted(batch=40)
    result, rest = together(ImageAugment(crop=6, fill=0.0), image, arrays)
    told = assert_planes_are_where_the_colours_are(result, rest)
    seen = assert_places_are_where_the_blob_is(told, rest)
    assert 10 < seen < 40
    blob = (told == 1).any(axis=(1, 2))
    middle = ((told == 1).sum(axis=(1, 2)) == 15) & blob  # all of the blob is in view, so its middle is
    assert (rest["points"][middle, 1] != -1).all()


def test_a_mirror_and_a_shift_together():
    image, arrays = painted(batch=20)
    result, rest = together(ImageAugment(flip=0.5, crop=2, fill=0.0), image, arrays)
    told = assert_planes_are_where_the_colours_are(result, rest)
    assert assert_places_are_where_the_blob_is(told, rest) > 10


def test_a_zoom_takes_the_nearest_and_stretches_places():
    """Thrice as large: each pixel in view is the middle one of its nine, and no nearest is a tie."""
    image, arrays = painted()
    result, rest = together(ImageAugment(scale=(3.0, 3.0), fill=0.0), image, arrays)
    row, column = (np.floor((np.arange(n) + 0.5 - n / 2) / 3 + n / 2).astype(int) for n in (9, 12))
    for name in ("map", "mask", "value"):
        np.testing.assert_array_equal(rest[name], arrays[name][:, row][:, :, column], err_msg=name)
    middle = np.array([6.0, 4.5], np.float32)
    for own, boxes, points in zip(arrays["boxes"], rest["boxes"], rest["points"], strict=True):
        corners = (own[0].reshape(2, 2) - middle) * 3 + middle
        box = np.clip(corners, 0, [12, 9])
        there = (box[1] > box[0]).all()
        np.testing.assert_allclose(boxes[0], box.reshape(4) if there else [-1] * 4, atol=1e-4)
        point = corners.mean(axis=0)
        inside = ((point >= 0) & (point <= [12, 9])).all()
        np.testing.assert_allclose(points[1], point if inside else [-1, -1], atol=1e-4)
    assert result.shape == image.shape


@settings(deadline=None, max_examples=20)
@given(degrees=st.floats(-180, 180), zoom=st.floats(0.5, 2), shift=st.tuples(st.floats(-4, 4), st.floats(-4, 4)))
def test_any_move_takes_places_where_it_takes_the_pixels(degrees, zoom, shift):
    """A pixel that comes from the blob lies in its box, and where a place lands, the pixels come from where it was."""
    _, arrays = painted(batch=1)
    placement = (np.float32(math.radians(degrees)), np.float32(zoom), np.array(shift, np.float32))
    arrays = {name: x[0] for name, x in arrays.items()}
    rest = jax.tree.map(np.asarray, move_over(arrays, placement))
    rows, columns = np.nonzero(rest["map"] == 1)
    left, top, right, bottom = rest["boxes"][0]
    if len(rows):
        assert left - 1e-3 <= columns.min() + 0.5 and columns.max() + 0.5 <= right + 1e-3
        assert top - 1e-3 <= rows.min() + 0.5 and rows.max() + 0.5 <= bottom + 1e-3
    np.testing.assert_array_equal(np.isnan(rest["value"]), rest["map"] < 0)
    y_HW, x_HW = (np.asarray(x) + 0.5 for x in sources(placement))
    np.testing.assert_array_equal(rest["map"] >= 0, inside(x_HW, 12) & inside(y_HW, 9))
    x, y = rest["points"][1]
    if x != -1:
        row, column = min(int(y), 8), min(int(x), 11)
        away = np.hypot(x_HW[row, column] - arrays["points"][1][0], y_HW[row, column] - arrays["points"][1][1])
        assert away <= math.hypot(0.5, 0.5) / zoom + 1e-3


def inside(x, size):
    return (np.floor(x) >= 0) & (np.floor(x) < size)


@jax.jit
def move_over(arrays, placement):
    return {name: over_moved(OVER[name], x, (9, 12), placement) for name, x in arrays.items()}


@jax.jit
def sources(placement):
    return source_positions(9, 12, *placement)


def test_the_image_is_bit_for_bit_what_it_is_without_anything_over_it():
    image, arrays = painted()
    alone = augment(EVERYTHING, image, keys(len(image)))
    with_all, _ = together(EVERYTHING, image, arrays)
    np.testing.assert_array_equal(with_all, alone)
    for name in ("map", "points"):
        np.testing.assert_array_equal(together(EVERYTHING, image, {name: arrays[name]})[0], alone)


def test_what_is_off_gives_back_the_very_arrays():
    image, arrays = painted()
    image, arrays = jnp.asarray(image), {name: jnp.asarray(x) for name, x in arrays.items()}
    over = {name: (OVER[name], x) for name, x in arrays.items()}
    moved_image, rest = ImageAugment(fill=0.5).together(image, keys(len(image)), over)
    assert moved_image is image and rest.keys() == arrays.keys()
    assert all(rest[name] is arrays[name] for name in arrays)
    jaxpr = str(jax.make_jaxpr(lambda i, a: compiled_together(ImageAugment(brightness=0.1), i, keys(12), a))(image, arrays))
    assert "gather" not in jaxpr and "floor" not in jaxpr


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_a_map_whose_dtype_holds_no_minus_one_gets_one_that_does(dtype):
    there = {"map": np.ones((12, 9, 12), dtype)}
    image, expected = painted()
    _, whole = together(ImageAugment(crop=6, fill=0.0), image, expected)
    _, rest = together(ImageAugment(crop=6, fill=0.0), image, there)
    np.testing.assert_array_equal(rest["map"], np.where(whole["map"] < 0, -1, 1))
    assert (rest["map"] == -1).any()
