"""What lies over an image moves with its pixels. The map's classes, the mask and the places are painted into the image, whose
colours then tell where each of them must be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import CenterCrop, Flip, RandomCrop, Resize, Rotate
from mmjax.data.transforms import PadSquare, ResizeShortest, ResizeWithin
from mmjax.data.transforms.spatial import Resized, Turned, move

STEP = 20  # between the colours of two classes; black is none of them
NONE_4, NONE_2 = [-1.0] * 4, [-1.0] * 2


def painted(height, width, blob, field="image"):
    """A record in which class 1 is a single blob (top, left, high, wide) on random classes from 2 up, with all kinds over it.

    Red is the class, green whether the mask is True.
    """
    top, left, high, wide = blob
    rng = np.random.default_rng(height * 100 + width)
    there = rng.integers(2, 6, (height, width)).astype(np.int32)
    there[top : top + high, left : left + wide] = 1
    real = rng.random((height, width)) < 0.7
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = STEP * (there + 1), np.where(real, 255, 0)
    box = [left, top, left + wide, top + high]
    return {
        field: image,
        f"{field}_map": there,
        f"{field}_map_value": there.astype(np.float32),
        f"{field}_mask": real,
        f"{field}_boxes": np.array([box, NONE_4], np.float32),
        f"{field}_points": np.array([NONE_2, [left + wide / 2, top + high / 2]], np.float32),
        "label": 1,
    }


def move_all(transform, record, seed=0):
    return transform(record, np.random.default_rng(seed), ())


def assert_planes_are_where_the_colours_are(record, field="image"):
    """The map, as int and float, and the mask say of each pixel what its colour says."""
    image, there, value, real = (record[f"{field}{part}"] for part in ("", "_map", "_map_value", "_mask"))
    told = image[..., 0].astype(np.int32) // STEP - 1
    np.testing.assert_array_equal(image[..., 0] % STEP, 0)  # nothing was mixed
    assert (there.dtype, value.dtype, real.dtype) == (np.int32, np.float32, bool)
    np.testing.assert_array_equal(there, told)
    np.testing.assert_array_equal(value, np.where(told < 0, np.nan, told))
    np.testing.assert_array_equal(real, image[..., 1] > 0)
    return told


def assert_places_are_where_the_blob_is(told, record, field="image"):
    """The box holds the middles of the blob's pixels and of no others; the point lies on the blob. Both are -1 out of view."""
    boxes, points = record[f"{field}_boxes"], record[f"{field}_points"]
    assert boxes.dtype == points.dtype == np.float32 and boxes.shape == (2, 4) and points.shape == (2, 2)
    assert (boxes[1] == -1).all() and (points[0] == -1).all()
    height, width = told.shape
    blob = told == 1
    y_H1, x_1W = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    left, top, right, bottom = boxes[0]
    if (boxes[0] == -1).all():
        assert not blob.any()
    else:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        slack = 1e-3  # of middles that lie on the edge itself
        x_in, y_in = np.minimum(x_1W - left, right - x_1W), np.minimum(y_H1 - top, bottom - y_H1)
        inside = np.minimum(x_in, y_in)
        assert blob[inside > slack].all() and not blob[inside < -slack].any()
    x, y = points[1]
    if (points[1] == -1).all():
        return False
    assert 0 <= x <= width and 0 <= y <= height
    assert blob[min(int(y), height - 1), min(int(x), width - 1)]
    return True


@st.composite
def scenes(draw):
    """(height, width, blob): the blob is odd, at least 3 a side, and somewhere in the image."""
    height, width = draw(st.integers(6, 16)), draw(st.integers(6, 16))
    high, wide = draw(st.sampled_from([3, 5])), draw(st.sampled_from([3, 5]))
    return height, width, (draw(st.integers(0, height - high)), draw(st.integers(0, width - wide)), high, wide)


SIZES = st.tuples(st.integers(8, 24), st.integers(8, 24))  # no image is made so much smaller that its blob is lost
KEEPING = {
    "resize": st.builds(lambda size: Resize(size, "nearest"), SIZES),
    "resize_shortest": st.builds(lambda n: ResizeShortest(n, "nearest"), st.integers(8, 24)),
    "resize_within": st.builds(lambda n, d: ResizeWithin(n, 24, d, "nearest"), st.integers(12, 20), st.integers(1, 3)),
    "pad_square": st.just(PadSquare()),
    "flip": st.just(Flip(1.0)),
}
CUTTING = {
    "center_crop": st.builds(lambda size: CenterCrop(size, pad=True), st.tuples(st.integers(3, 20), st.integers(3, 20))),
    "random_crop": st.builds(lambda size: RandomCrop(size, resample="nearest"), SIZES),
}


@pytest.mark.parametrize("name", KEEPING)
@given(data=st.data())
def test_all_that_lies_over_an_image_moves_with_its_pixels(name, data):
    record = painted(*data.draw(scenes()))
    after = move_all(data.draw(KEEPING[name]), record)
    assert after["label"] == 1 and after["image"].shape[:2] == after["image_map"].shape
    told = assert_planes_are_where_the_colours_are(after)
    assert assert_places_are_where_the_blob_is(told, after), "all of the image is still in view, the point as well"


@pytest.mark.parametrize("name", CUTTING)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_a_crop_takes_along_what_is_in_view_and_drops_the_rest(name, data, seed):
    height, width, blob = data.draw(scenes())
    record = painted(height, width, blob)
    middle = (blob[0] + blob[2] // 2, blob[1] + blob[3] // 2)
    record["image"][(*middle, 2)] = 255  # blue: the pixel that the point lies in
    after = move_all(data.draw(CUTTING[name]), record, seed)
    told = assert_planes_are_where_the_colours_are(after)
    seen = assert_places_are_where_the_blob_is(told, after)
    blue = after["image"][..., 2] == 255
    assert seen or not blue.any()
    if name == "center_crop":  # in which no pixel is lost but by the cut
        assert seen == blue.any()


def test_what_a_crop_leaves_out_is_gone_and_what_it_cuts_is_clipped():
    record = painted(12, 12, (3, 3, 3, 3)) | {
        "image_boxes": np.array([[0, 0, 3, 3], [1, 4, 5, 9], [3, 3, 6, 6]], np.float32),
        "image_points": np.array([[2.9, 5.0], [3.0, 9.0], [5.0, 9.1]], np.float32),
    }
    after = move_all(CenterCrop((6, 6)), record)
    np.testing.assert_array_equal(after["image_boxes"], [NONE_4, [0, 1, 2, 6], [0, 0, 3, 3]])
    np.testing.assert_array_equal(after["image_points"], [NONE_2, [0, 6], NONE_2])


@given(scene=scenes(), degrees=st.floats(-180, 180))
def test_a_turn_takes_the_pixel_nearest_and_places_along(scene, degrees):
    height, width, (top, left, high, wide) = scene
    record = painted(height, width, scene[2])
    # A colour a class, so that of a mixture each class's share can be read off: the nearest pixel's is a quarter at least.
    record["image_map"] = (record["image_map"] - 1) % 3
    record["image"] = np.eye(3, dtype=np.uint8)[record["image_map"]] * 255
    after = move(record, "Rotate", "image", Turned(degrees))
    there, image = after["image_map"], after["image"].astype(int)
    assert there.dtype == np.int32 and there.shape == (height, width)
    np.testing.assert_array_equal(there < 0, image.sum(axis=2) == 0)  # black: it comes from outside
    share = np.take_along_axis(image, np.maximum(there, 0)[..., None], axis=2)[..., 0]
    assert (share[there >= 0] >= 255 // 4 - 2).all()
    assert (there[image.max(axis=2) == 255] == image.argmax(axis=2)[image.max(axis=2) == 255]).all()
    np.testing.assert_array_equal(np.isnan(after["image_map_value"]), there < 0)
    assert not after["image_mask"][there < 0].any()

    # The box is the smallest around what the blob's has become, by its formula.
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = left + wide / 2 - width / 2, top + high / 2 - height / 2
    x, y = cos * x + sin * y + width / 2, cos * y - sin * x + height / 2
    half_x, half_y = (abs(cos) * wide + abs(sin) * high) / 2, (abs(sin) * wide + abs(cos) * high) / 2
    box = np.clip([x - half_x, y - half_y, x + half_x, y + half_y], 0, [width, height, width, height])
    if min(box[2:] - box[:2]) > 1e-3:
        np.testing.assert_allclose(after["image_boxes"][0], box, atol=1e-4)
    if min(x, y, width - x, height - y) > 1e-3:
        np.testing.assert_allclose(after["image_points"][1], [x, y], atol=1e-4)
    elif min(x, y, width - x, height - y) < -1e-3:
        assert (after["image_points"][1] == -1).all()
    assert (after["image_boxes"][1] == -1).all() and (after["image_points"][0] == -1).all()


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_of_a_square_are_exact(turns):
    record = painted(11, 11, (1, 5, 3, 5))
    after = move(record, "Rotate", "image", Turned(90.0 * turns))
    for key in ("image", "image_map", "image_map_value", "image_mask"):
        np.testing.assert_array_equal(after[key], np.rot90(record[key], turns), err_msg=key)
    assert assert_places_are_where_the_blob_is(after["image_map"], after)


def test_the_map_is_turned_as_pils_own_nearest_turns_it():
    there = np.random.default_rng(0).integers(0, 9, (40, 30)).astype(np.int32)
    record = {"image": np.zeros((40, 30, 3), np.uint8), "image_map": there}
    after = move_all(Rotate(25.0), record, seed=3)["image_map"]
    angle = np.random.default_rng(3).uniform(-25.0, 25.0)
    pil = Image.fromarray((there + 1).astype(np.uint8)).rotate(angle, Image.Resampling.NEAREST, fillcolor=0)
    np.testing.assert_array_equal(after, np.asarray(pil).astype(np.int32) - 1)


@given(old=st.integers(1, 80), new=st.integers(1, 160))
def test_a_map_is_resized_as_pils_own_nearest_resizes_it_ties_included(old, new):
    there = np.arange(3 * old, dtype=np.int32).reshape(3, old) % 251
    pil = Image.fromarray(there.astype(np.uint8)).resize((new, 5), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(Resized((5, new)).plane(there, -1), np.asarray(pil))


def test_a_coin_that_falls_the_other_way_leaves_the_record_alone():
    record = painted(8, 9, (1, 1, 3, 3))
    assert move_all(Flip(0.0), record) is record


@pytest.mark.parametrize(
    "transform",
    [Resize((9, 7), "nearest"), PadSquare(), CenterCrop((12, 5), pad=True), Flip(1.0), RandomCrop((8, 8), resample="nearest")],
)
def test_another_field_is_moved_and_the_image_stays(transform):
    other = painted(8, 9, (2, 2, 3, 3), "left_image")
    still = painted(10, 10, (1, 1, 3, 3))
    transform = type(transform)(**{**vars(transform), "field": "left_image"})
    after = move_all(transform, {**still, **other})
    assert all(after[key] is still[key] for key in still if key != "label")
    told = assert_planes_are_where_the_colours_are(after, "left_image")
    assert_places_are_where_the_blob_is(told, after, "left_image")
    assert after["left_image_map"].shape == after["left_image"].shape[:2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_a_map_whose_dtype_holds_no_minus_one_gets_one_that_does(dtype):
    record = {"image": np.ones((4, 6, 3), np.uint8), "image_map": np.ones((4, 6), dtype)}
    for transform in (PadSquare(), CenterCrop((6, 6), pad=True)):
        there = move_all(transform, record)["image_map"]
        np.testing.assert_array_equal(there, np.pad(np.ones((4, 6), np.int32), ((1, 1), (0, 0)), constant_values=-1))
    turned = move(record, "Rotate", "image", Turned(90.0))["image_map"]
    np.testing.assert_array_equal(turned, np.repeat([[-1, 1, 1, 1, 1, -1]], 4, axis=0))
    assert move_all(Flip(1.0), record)["image_map"].dtype == dtype  # nothing comes from outside


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"image_map": np.zeros((4, 5), np.int32)}, "image_map: it is 4 x 5 and the image it lies over 6 x 5 pixels"),
        ({"image_mask_sky": np.zeros((6, 4), bool)}, "image_mask_sky: it is 6 x 4 and the image it lies over 6 x 5 pixels"),
        ({"image_boxes": np.zeros((3, 5), np.float32)}, r"image_boxes: boxes are \[N, 4\], found an array of shape \(3, 5\)"),
        ({"image_points": np.zeros(2, np.float32)}, r"image_points: points are \[N, 2\], found an array of shape \(2,\)"),
    ],
)
def test_what_does_not_fit_its_image_is_named_with_both_sizes(over, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        move_all(Flip(1.0), {"image": np.zeros((6, 5, 3), np.uint8), **over})


def test_no_box_and_no_point_are_moved_as_well():
    empty = {"image_boxes": np.zeros((0, 4), np.float32), "image_points": np.zeros((0, 2), np.float32)}
    after = move_all(Resize((4, 4)), {"image": np.zeros((6, 5, 3), np.uint8), **empty})
    assert after["image_boxes"].shape == (0, 4) and after["image_points"].shape == (0, 2)
