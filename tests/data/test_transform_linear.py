"""Bilinear resizing that does not average: the formula, and where it cannot be had."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.convert.processor import write_processor
from mmjax.core.errors import UserError
from mmjax.data import Normalise, RandomCrop, Resize, ResizeShortest
from mmjax.data.transforms import linear as module

pytest.importorskip("cv2")


def between(image, height, width):
    """Each new pixel's centre, carried to the old image, lies between four centres; at the edge the outer ones stand again."""

    def along(old, new):
        place = (np.arange(new) + 0.5) * old / new - 0.5
        low = np.floor(place)
        return np.clip(low, 0, old - 1).astype(int), np.clip(low + 1, 0, old - 1).astype(int), place - low

    (top, bottom, y), (left, right, x) = along(image.shape[0], height), along(image.shape[1], width)
    image, x = image.astype(np.float64), x[None, :, None]
    rows = image[:, left] * (1 - x) + image[:, right] * x
    return rows[top] * (1 - y)[:, None, None] + rows[bottom] * y[:, None, None]


@settings(max_examples=40, deadline=None)
@given(old=st.tuples(*[st.integers(1, 90)] * 2), new=st.tuples(*[st.integers(1, 90)] * 2), seed=st.integers(0, 99))
def test_each_pixel_lies_between_four(old, new, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*old, 3), np.uint8)
    found = Resize(new, "linear")({"image": image}, np.random.default_rng(0), ())["image"]
    assert found.dtype == np.uint8 and found.shape == (*new, 3)
    assert np.abs(found - between(image, *new)).max() < 1.2


def test_a_crop_is_a_view_and_a_mask_goes_along():
    smooth = np.add.outer(np.arange(40) * 2, np.arange(60) * 2).astype(np.uint8)
    record = {"image": np.stack([smooth] * 3, -1), "image_mask": np.random.default_rng(0).random((40, 60)) < 0.5}
    crops = [RandomCrop((16, 16), resample=how)(record, np.random.default_rng(1), ()) for how in ("linear", "bilinear")]
    np.testing.assert_array_equal(crops[0]["image_mask"], crops[1]["image_mask"])
    assert np.abs(crops[0]["image"].astype(int) - crops[1]["image"]).max() <= 2


def test_without_the_library_it_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(module, "_library", lambda: None)
    with pytest.raises(UserError, match=r"RandomCrop.resample='linear' is OpenCV's: pip install 'mmjax\[resize\]'"):
        RandomCrop((4, 4), resample="linear")
    assert ResizeShortest(4, "bilinear").shortest == 4


def test_no_processor_of_huggingface_has_it(tmp_path):
    steps = (Resize((8, 8), "linear"), Normalise())
    with pytest.raises(UserError, match=r"Resize.resample='linear' is none of HuggingFace's: nearest, lanczos, bilinear"):
        write_processor(tmp_path, steps, "vit")
    crops = RandomCrop((8, 8), resample="linear"), Normalise()
    write_processor(tmp_path, crops, "vit")
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["resample"] == 2  # PIL's bilinear
