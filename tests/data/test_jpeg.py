"""JPEG by another library: the same pixels as Pillow's, and the same files refused."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.data import jpeg
from mmjax.data.images import decode_image
from mmjax.data.types import BadRecordError

pytest.importorskip("simplejpeg")
DRAW = np.random.default_rng(0)


def photo(height, width):
    """Smooth, with noise: every coefficient is used."""
    few = Image.fromarray(DRAW.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(few) + DRAW.normal(size=(height, width, 3)) * 12).clip(0, 255).astype(np.uint8))


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def pillow(data, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "_library", lambda: None)
        return decode_image(data, "it")


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
)
def test_pixels_are_pillows(height, width, quality, subsampling, progressive):
    data = encoded(photo(height, width), quality=quality, subsampling=subsampling, progressive=progressive)
    found = jpeg.decoded(data)
    assert found is not None and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data))))


def test_an_image_that_lies_on_its_side_is_upright(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(20, 31), exif=exif)
    found = decode_image(data, "it")
    assert found.shape == (31, 20, 3) and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pillow(data, monkeypatch))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_what_is_not_in_three_colours_is_left_to_pillow(mode, monkeypatch):
    data = encoded(photo(20, 31).convert(mode))
    assert jpeg.decoded(data) is None
    np.testing.assert_array_equal(decode_image(data, "it"), pillow(data, monkeypatch))


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_file_that_is_cut_is_refused_by_either(kept, monkeypatch):
    data = encoded(photo(60, 60))
    cut = data[: int(len(data) * kept)]
    assert jpeg.decoded(cut) is None
    with pytest.raises(BadRecordError, match="truncated"):
        decode_image(cut, "it")
    with pytest.raises(BadRecordError, match="truncated"):
        pillow(cut, monkeypatch)


def test_without_the_library_pillow_reads(monkeypatch):
    monkeypatch.setattr(jpeg, "_library", lambda: None)
    data = encoded(photo(8, 8))
    assert jpeg.decoded(data) is None and decode_image(data, "it").shape == (8, 8, 3)


def test_a_plain_file_never_sees_pillow(monkeypatch):
    image = photo(20, 31)
    data = encoded(image, icc_profile=b"profile of colours" * 9, comment=b"of a cat", progressive=True)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    monkeypatch.setattr(Image, "open", None)
    assert jpeg.size(data) == (20, 31)
    np.testing.assert_array_equal(decode_image(data, "it"), expected)
    with pytest.raises(BadRecordError, match="20 x 31 are 620 pixels, and max_pixels=600"):
        decode_image(data, "it", max_pixels=600)


@pytest.mark.parametrize("options", [{"xmp": b"<x/>"}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_what_may_be_turned_is_opened_by_pillow(options):
    assert jpeg.size(encoded(photo(20, 31), **options)) is None


def test_of_several_images_in_a_file_pillow_takes_the_first(monkeypatch):
    file = io.BytesIO()
    photo(20, 31).save(file, "MPO", save_all=True, append_images=[photo(20, 31)])
    assert jpeg.size(file.getvalue()) is None
    np.testing.assert_array_equal(decode_image(file.getvalue(), "it"), pillow(file.getvalue(), monkeypatch))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 400), value=st.integers(0, 255), kept=st.integers(0, 700))
def test_damaged_files_are_read_as_pillow_reads_them_or_refused_by_it(place, value, kept):
    damaged = bytearray(DAMAGED)
    damaged[place] = value
    damaged = bytes(damaged[: len(damaged) - 700 + kept] if kept < 350 else damaged)
    found, theirs = "refused", "refused"
    with contextlib.suppress(BadRecordError):
        found = decode_image(damaged, "it")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(BadRecordError):
        patch.setattr(jpeg, "_library", lambda: None)
        theirs = decode_image(damaged, "it")
    np.testing.assert_array_equal(found, theirs)


DAMAGED = encoded(photo(40, 60), quality=90)
assert len(DAMAGED) > 1200
