"""Values of pixels: against formulas written out, and PIL's ImageEnhance."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mmjax.core.errors import UserError
from mmjax.data import ColourJitter, Noise, Normalise

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


def test_mistakes():
    for mistake, message in (
        (lambda: ColourJitter(contrast=1.5), "ColourJitter.contrast=1.5"),
        (lambda: Noise(-0.1), "Noise.sigma=-0.1"),
        (lambda: Normalise(mean=(0.5,)), "Normalise.mean=(0.5,)"),
        (lambda: Normalise(std=(0.5, 0, 0.5)), "Normalise.std=(0.5, 0, 0.5)"),
        (lambda: apply(Normalise(), apply(Normalise())), "Normalise needs a uint8 image, not float32"),
    ):
        with pytest.raises(UserError) as raised:
            mistake()
        assert message in str(raised.value)
