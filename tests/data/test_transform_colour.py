"""Values of pixels: against formulas written out, and PIL's ImageEnhance."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from mmjax.core.errors import UserError
from mmjax.data import ColourJitter, GaussianBlur, Noise, Normalise, RandomErasing

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)


def apply(transform, image=IMAGE, seed=0):
    return transform({"image": image}, np.random.default_rng(seed), ())["image"]


def test_normalise():
    mean, std = (0.481, 0.457, 0.408), (0.268, 0.261, 0.275)
    found = apply(Normalise(mean, std))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (IMAGE / 255 - np.array(mean)) / np.array(std), rtol=0, atol=5e-7)
    assert apply(Normalise(), np.array([[[0, 255, 51]]], np.uint8)).tolist() == [[[-1.0, 1.0, pytest.approx(-0.6)]]]


@pytest.mark.parametrize(
    ("field", "place", "enhance"),
    [("brightness", 0, ImageEnhance.Brightness), ("contrast", 1, ImageEnhance.Contrast), ("saturation", 2, ImageEnhance.Color)],
)
def test_jitter_is_pils_to_one_level(field, place, enhance):
    spread = np.zeros(3)
    spread[place] = 0.6
    factor = np.random.default_rng(5).uniform(1 - spread, 1 + spread)[place]
    expected = np.asarray(enhance(Image.fromarray(IMAGE)).enhance(factor)).astype(int)
    found = apply(ColourJitter(**{field: 0.6}), seed=5)
    assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 1


def test_no_jitter_and_no_noise_change_nothing():
    np.testing.assert_array_equal(apply(ColourJitter()), IMAGE)
    np.testing.assert_array_equal(apply(Noise(0.0)), IMAGE)


def test_noise_has_its_standard_deviation():
    grey = np.full((64, 64, 3), 128, np.uint8)
    noisy = apply(Noise(0.04), grey).astype(float) - 128
    assert abs(noisy.mean()) < 0.4 and abs(noisy.std() - 0.04 * 255) < 0.3
    assert apply(Noise(5.0), grey).min() == 0, "values are clipped, not wrapped"


def test_blur_is_pils_and_near_the_gaussian():
    sigma = np.random.default_rng(7).uniform(0.5, 3.0)
    expected = np.asarray(Image.fromarray(IMAGE).filter(ImageFilter.GaussianBlur(sigma)))
    np.testing.assert_array_equal(apply(GaussianBlur(1.0, (0.5, 3.0)), seed=7), expected)
    line = np.zeros((41, 41, 3), np.uint8)
    line[20, :] = 255
    profile = apply(GaussianBlur(1.0, (2.0, 2.0)), line)[:, 20, 0]
    gaussian = np.exp(-((np.arange(41) - 20) ** 2) / 8) / np.sqrt(8 * np.pi) * 255
    assert np.abs(profile - gaussian).max() < 3
    found = [apply(GaussianBlur(0.25), seed=seed) is IMAGE for seed in range(400)]
    assert 270 < sum(found) < 330


@pytest.mark.parametrize("fill", [(), (1, 2, 3)])
def test_erasing_paints_one_rectangle_of_its_range(fill):
    image = np.full((40, 60, 3), 77, np.uint8)
    shares, ratios, untouched = [], [], 0
    for seed in range(400):
        found = apply(RandomErasing(0.5, (0.05, 0.2), (0.3, 0.6), fill), image, seed)
        if found is image:
            untouched += 1
            continue
        erased = (found != 77).any(axis=2)
        rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        inside = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (inside == fill).all() if fill else inside.std() > 30
        shares.append(height * width / 2400)
        ratios.append(height / width)
    assert 150 < untouched < 250 and (image == 77).all()
    assert 0.045 < min(shares) < 0.06 and 0.18 < max(shares) < 0.21 and abs(np.mean(shares) - 0.125) < 0.01
    assert 0.26 < min(ratios) < 0.34 and 0.54 < max(ratios) < 0.68 and abs(np.mean(np.log(ratios)) - np.log(0.18) / 2) < 0.1


def test_erasing_leaves_alone_what_is_no_larger_than_its_rectangle():
    strip = np.full((1, 50, 3), 9, np.uint8)
    assert all(apply(RandomErasing(1.0), strip, seed) is strip for seed in range(20))
    record = {"image": IMAGE, "image_map": np.zeros((9, 12), np.int32)}
    after = RandomErasing(1.0, (0.3, 0.3))(record, np.random.default_rng(0), ())
    assert after["image_map"] is record["image_map"] and not np.array_equal(after["image"], IMAGE)


def test_mistakes():
    for mistake, message in (
        (lambda: ColourJitter(contrast=1.5), "ColourJitter.contrast=1.5"),
        (lambda: Noise(-0.1), "Noise.sigma=-0.1"),
        (lambda: Normalise(mean=(0.5,)), "Normalise.mean=(0.5,)"),
        (lambda: Normalise(std=(0.5, 0, 0.5)), "Normalise.std=(0.5, 0, 0.5)"),
        (lambda: GaussianBlur(probability=1.5), "GaussianBlur.probability=1.5: use a number from 0 and up to 1"),
        (lambda: GaussianBlur(sigma=(2.0, 1.0)), "GaussianBlur.sigma=(2.0, 1.0): give (low, high) with 0 <= low <= high"),
        (lambda: RandomErasing(scale=(0.0, 1.0)), "RandomErasing.scale=(0.0, 1.0): give (low, high) with 0 < low"),
        (lambda: RandomErasing(ratio=(2.0, 1.0)), "RandomErasing.ratio=(2.0, 1.0)"),
        (lambda: RandomErasing(fill=(0, 0)), "RandomErasing.fill=(0, 0): give red green blue from 0 to 255, or () for noise"),
        (
            lambda: apply(RandomErasing(), apply(Normalise())),
            "RandomErasing needs a uint8 image, not float32: put it before Normalise",
        ),
        (lambda: apply(Normalise(), apply(Normalise())), "Normalise needs a uint8 image, not float32"),
    ):
        with pytest.raises(UserError) as raised:
            mistake()
        assert message in str(raised.value)


@pytest.mark.parametrize("size", [(224, 224), (7, 13), (30, 64), (1, 1)])
def test_normalising_many_pixels_at_once_changes_no_bit(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    mean, std = np.float32([0.48, 0.45, 0.4]), np.float32([0.27, 0.26, 0.28])
    expected = image * (np.float32(1 / 255) / std) - mean / std
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(apply(Normalise((0.48, 0.45, 0.4), (0.27, 0.26, 0.28)), image), expected)
