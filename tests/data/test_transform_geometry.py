"""Geometry against PIL and numpy, and properties of the random crop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import CenterCrop, Flip, Normalise, RandomCrop, Resize, Rotate
from mmjax.data.transforms import PadSquare, ResizeShortest, ResizeWithin
from mmjax.data.transforms.geometry import RESAMPLE

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)


def apply(transform, image=IMAGE, seed=0):
    record = {"image": image, "label": 1}
    after = transform(record, np.random.default_rng(seed), ())
    assert after["label"] == 1 and record["image"] is image, "the record given stays as it was"
    return after["image"]


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("size", [(5, 7), (18, 20), (9, 12)])
def test_resize_is_pils(resample, size):
    expected = np.asarray(Image.fromarray(IMAGE).resize(size[::-1], getattr(Image.Resampling, resample.upper())))
    np.testing.assert_array_equal(apply(Resize(size, resample)), expected)


@pytest.mark.parametrize(("image", "size"), [(IMAGE, (6, 8)), (IMAGE.swapaxes(0, 1), (8, 6)), (IMAGE[:, :11], (6, 7))])
def test_resize_shortest_rounds_the_longer_side_down(image, size):
    np.testing.assert_array_equal(apply(ResizeShortest(6, "box"), image), apply(Resize(size, "box"), image))


@pytest.mark.parametrize(
    ("transform", "sides", "size"),
    [
        (ResizeWithin(384, 639, 32), (480, 640), (384, 512)),
        (ResizeWithin(384, 639, 32), (640, 440), (544, 384)),  # 558.5 x 384, to whole patches
        (ResizeWithin(384, 639, 32), (300, 600), (320, 608)),  # 768 is too long: 319.5 x 639
        (ResizeWithin(10, 100), (4, 7), (10, 18)),  # 17.5, to the nearest
        (ResizeWithin(8, 40, 8), (3, 90), (8, 40)),  # 1.3 x 40, but no side is 0
    ],
)
def test_resize_within(transform, sides, size):
    assert apply(transform, np.zeros((*sides, 3), np.uint8)).shape == (*size, 3)


def test_pad_square():
    padded = apply(PadSquare((1, 2, 3)))
    assert padded.shape == (12, 12, 3) and padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[1:10], IMAGE)
    assert (padded[[0, 10, 11]] == [1, 2, 3]).all()
    np.testing.assert_array_equal(apply(PadSquare((1, 2, 3)), IMAGE.swapaxes(0, 1)), padded.swapaxes(0, 1))
    np.testing.assert_array_equal(apply(PadSquare(), IMAGE[:, :9]), IMAGE[:, :9])


def test_center_crop_can_pad():
    padded = apply(CenterCrop((12, 8), pad=True))
    np.testing.assert_array_equal(padded[2:11], IMAGE[:, 2:10])
    assert not padded[[0, 1, 11]].any()
    np.testing.assert_array_equal(apply(CenterCrop((5, 4), pad=True)), IMAGE[2:7, 4:8])


def test_center_crop():
    np.testing.assert_array_equal(apply(CenterCrop((5, 4))), IMAGE[2:7, 4:8])
    with pytest.raises(UserError, match=r"CenterCrop.size=10x4 is larger than an image of 9x12: put Resize before it"):
        apply(CenterCrop((10, 4)))


def test_flip():
    np.testing.assert_array_equal(apply(Flip(1.0)), IMAGE[:, ::-1])
    np.testing.assert_array_equal(apply(Flip(0.0)), IMAGE)
    flipped = sum(np.array_equal(apply(Flip(0.25), seed=seed), IMAGE[:, ::-1]) for seed in range(400))
    assert 75 <= flipped <= 125


def test_a_flipped_image_can_be_resized():
    np.testing.assert_array_equal(apply(Resize((9, 6), "nearest"), apply(Flip(1.0))), IMAGE[:, ::-1][:, 1::2])


def test_rotate():
    np.testing.assert_array_equal(apply(Rotate(0)), IMAGE)
    angle = np.random.default_rng(3).uniform(-30, 30)
    expected = Image.fromarray(IMAGE).rotate(angle, Image.Resampling.BILINEAR, fillcolor=(9, 9, 9))
    np.testing.assert_array_equal(apply(Rotate(30, fill=9), seed=3), np.asarray(expected))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_random_crop_window_is_inside_and_keeps_its_ranges(rows, columns, seed):
    crop = RandomCrop((4, 4))
    top, left, height, width = crop._window(rows, columns, np.random.default_rng(seed))
    assert 0 <= top <= top + height <= rows and 0 <= left <= left + width <= columns and height > 0 < width
    if min(rows, columns) >= 20:
        assert 0.24 <= height * width / (rows * columns) <= 1.0
        assert 0.65 <= width / height <= 1.5  # 3/4 and 4/3, each side rounded to whole pixels


def torchvisions_window(rows, columns, scale, ratio, rng):
    """`RandomResizedCrop.get_params`, with draws of numpy."""
    log_ratio = np.log(ratio)
    for _ in range(10):
        target_area = rows * columns * rng.uniform(scale[0], scale[1])
        aspect_ratio = np.exp(rng.uniform(log_ratio[0], log_ratio[1]))
        w, h = round(np.sqrt(target_area * aspect_ratio)), round(np.sqrt(target_area / aspect_ratio))
        if 0 < w <= columns and 0 < h <= rows:
            return rng.integers(0, rows - h + 1), rng.integers(0, columns - w + 1), h, w
    in_ratio = columns / rows
    if in_ratio < min(ratio):
        w, h = columns, round(columns / min(ratio))
    elif in_ratio > max(ratio):
        w, h = round(rows * max(ratio)), rows
    else:
        w, h = columns, rows
    return (rows - h) // 2, (columns - w) // 2, h, w


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 2**32))
def test_random_crop_is_torchvisions(rows, columns, seed):
    crop = RandomCrop((4, 4), scale=(0.08, 1.0))
    expected = torchvisions_window(rows, columns, crop.scale, crop.ratio, np.random.default_rng(seed))
    assert crop._window(rows, columns, np.random.default_rng(seed)) == expected


def test_random_crop_of_the_whole_image_is_resize():
    whole = RandomCrop((4, 6), scale=(1.0, 1.0), ratio=(12 / 9, 12 / 9))
    np.testing.assert_array_equal(apply(whole), apply(Resize((4, 6))))


def test_random_crop_falls_back_to_the_centre():
    strip = np.arange(40, dtype=np.uint8)[None, :, None].repeat(3, axis=2)  # 1 x 40: no crop of 30% fits the ratios
    assert RandomCrop((1, 1))._window(1, 40, np.random.default_rng(0)) == (0, 19, 1, 1)
    assert apply(RandomCrop((1, 1)), strip).item(0) == 19


def test_mistakes():
    cases = [
        (lambda: Resize((0, 4)), "Resize.size=(0, 4)"),
        (lambda: Resize((4, 4), "bicubik"), "Resize.resample='bicubik' is not a filter (did you mean 'bicubic'?)"),
        (lambda: ResizeShortest(0), "ResizeShortest.shortest=0: give a whole number from 1 up"),
        (lambda: ResizeShortest(4, "cubic"), "ResizeShortest.resample='cubic' is not a filter (did you mean 'bicubic'?)"),
        (lambda: ResizeWithin(4, 8, divisor=0), "ResizeWithin.divisor=0: give a whole number from 1 up"),
        (lambda: PadSquare((0, 0, 256)), "PadSquare.fill=(0, 0, 256)"),
        (lambda: RandomCrop((4, 4), scale=(0.5, 2.0)), "RandomCrop.scale=(0.5, 2.0)"),
        (lambda: RandomCrop((4, 4), ratio=(2.0, 1.0)), "RandomCrop.ratio=(2.0, 1.0)"),
        (lambda: Flip(1.5), "Flip.probability=1.5"),
        (lambda: Rotate(-1), "Rotate.degrees=-1"),
        (lambda: Rotate(1, fill=256), "Rotate.fill=256"),
        (lambda: apply(Resize((4, 4)), apply(Normalise())), "Resize needs a uint8 image, not float32: put it before Normalise"),
        (lambda: Flip()({"text": "a"}, np.random.default_rng(0), ()), "Flip needs an image, and the source has none"),
    ]
    for mistake, message in cases:
        with pytest.raises(UserError) as raised:
            mistake()
        assert message in str(raised.value)
