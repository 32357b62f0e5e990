"""What a file holds, as pixels: deep grey levels and colours, orientation, notes, limits, label maps, and odd names."""

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mmjax.data import BadRecordError, RandomCrop, images
from mmjax.data.images import MAX_PIXELS, decode_image, printable, read_image, read_map


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values, colour, bits=16):
    """The bytes of a PNG, which Pillow writes with 8 bits a channel only; rows of bits below 8 are given packed."""
    height, width = values.shape[:2]
    width *= 8 // min(bits, 8)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values, order, packed=False):
    """The bytes of a TIFF of 16 bits a channel, "<" or ">", which Pillow does not write."""
    height, width, channels = values.shape
    data = values.astype(order + "u2").tobytes()
    data = zlib.compress(data) if packed else data
    tags = [
        (256, width),
        (257, height),
        (258, None),
        (259, 8 if packed else 1),
        (262, 2),
        (273, None),
        (277, channels),
        (278, height),
    ]
    tags += [(279, len(data)), *([(338, 2)] if channels == 4 else [])]
    bits_at = 8 + 2 + 12 * len(tags) + 4
    found = {258: bits_at, 273: bits_at + 2 * channels}
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    for tag, value in tags:
        out += struct.pack(order + "HHII", tag, 4, 1, value if value is not None else found[tag])
        if tag == 258:
            out = out[:-10] + struct.pack(order + "HII", 3, channels, bits_at)
    return out + struct.pack(order + "I" + "H" * channels, 0, *[16] * channels) + data


@pytest.fixture
def deep():
    """Values up to a top, uint16 [H, W, 4], opaque."""

    def make(top):
        values = np.random.RandomState(0).randint(0, top + 1, (12, 9, 4)).astype(np.uint16)
        values[0, 0], values[..., 3] = top, 65535
        return values

    return make


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_colours_of_16_bits_keep_the_bits_that_are_used(deep, top):
    values = deep(top)
    grey = values[..., [0, 3]]
    files = {"RGB": png(values[..., :3], 2), "RGBA": png(values, 6), "LA": png(grey, 4)}
    files |= {f"TIFF {order}": tiff(values[..., :3], order) for order in "<>"} | {"TIFF RGBA": tiff(values, "<")}
    files |= {f"packed TIFF {order}": tiff(values[..., :3], order, packed=True) for order in "<>"}
    for name, file in files.items():
        wanted = np.rint(values[..., :3] * (255 / top)) if name != "LA" else np.rint(grey[..., :1] * (255 / top))
        assert np.abs(decode_image(file, name) - wanted).max() <= (top == 65535), name  # where the high bytes are enough
        windowed = decode_image(file, name, window=(0, 2 * top))
        assert np.abs(windowed - wanted / 2).max() <= 1, name


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_of_16_bits_is_scaled_by_the_bits_that_are_used(tmp_path, bits, suffix):
    values = np.linspace(0, 2**bits - 1, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / f"scan{suffix}")
    image = read_image(tmp_path / f"scan{suffix}")
    assert image.dtype == np.uint8 and image.shape == (64, 64, 3) and len(np.unique(image)) == 256
    assert np.abs(image[..., 0] - values * (255 / (2**bits - 1))).max() <= 0.5
    narrow = read_image(tmp_path / f"scan{suffix}", window=(100, 355))[..., 0]
    np.testing.assert_array_equal(narrow, np.clip(values.astype(int) - 100, 0, 255))


def test_floats_and_whole_numbers_of_32_bits(tmp_path):
    cases = [
        (np.array([[0.0, 0.2, 0.8, 1.0]], np.float32), None, [0, 51, 204, 255]),
        (np.array([[-1.0, 0.0, 4.0]], np.float32), None, [0, 51, 255]),
        (np.array([[-1000, 0, 3000]], np.int32), (-1000, 1550), [0, 100, 255]),
        (np.array([[0, 50, 200, 255]], np.int32), None, [0, 50, 200, 255]),
        (np.array([[7, 7]], np.float32), None, [255, 255]),
        (np.array([[0.0, np.nan, np.inf]], np.float32), (0, 2), [0, 0, 255]),
    ]
    for values, window, wanted in cases:
        Image.fromarray(values).save(tmp_path / "x.tif")
        assert read_image(tmp_path / "x.tif", window)[0, :, 0].tolist() == wanted
    with pytest.raises(BadRecordError, match=r"x.tif: it has values that are infinite or no numbers; give .* a window"):
        read_image(tmp_path / "x.tif")


def test_images_are_upright_like_pillows(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 255, (7, 5, 3)).astype(np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("png", "jpg", "tif"):
            path = tmp_path / f"{orientation}.{suffix}"
            Image.fromarray(pixels).save(path, exif=exif)
            with Image.open(path) as image:
                np.testing.assert_array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(image)))


def test_what_else_a_file_holds_does_not_matter(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 255, (16, 12, 3)).astype(np.uint8)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", "x" * 2_000_000, zip=True)
    notes.add_text("plain", "y" * 2_000_000)
    notes.add_itxt("workflow", "z" * 2_000_000, zip=True)
    notes.add_itxt("XML:com.adobe.xmp", " " * 3_000_000, zip=True)
    profile = np.random.RandomState(0).bytes(2_000_000)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=notes, icc_profile=profile)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    whole = (tmp_path / "a.png").read_bytes()
    np.testing.assert_array_equal(decode_image(whole, "bytes"), pixels)
    with pytest.raises(BadRecordError, match=r"cut: .*"):
        decode_image(whole[:-100], "cut")
    Image.fromarray(pixels).save(tmp_path / "b.webp", lossless=True, exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(read_image(tmp_path / "b.webp"), pixels)


def test_an_orientation_in_a_short_text_is_kept(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    notes.add_text("parameters", "x" * 2_000_000, zip=True)
    Image.new("RGB", (5, 7)).save(tmp_path / "a.png", pnginfo=notes)
    assert read_image(tmp_path / "a.png").shape == (5, 7, 3)


def test_the_limit_on_pixels_is_each_files_own(tmp_path):
    Image.new("L", (20, 30)).save(tmp_path / "a.png")
    with pytest.raises(BadRecordError, match="30 x 20 are 600 pixels, and max_pixels=599"):
        read_image(tmp_path / "a.png", max_pixels=599)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 10  # the library's own
    try:
        threads = [threading.Thread(target=read_image, args=(tmp_path / "a.png",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read_image(tmp_path / "a.png", max_pixels=600).shape == (30, 20, 3)
        assert Image.MAX_IMAGE_PIXELS == 10, "put back"
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    assert limit == MAX_PIXELS // 2


def test_a_large_image_is_converted_by_bands(tmp_path):
    values = np.random.RandomState(0).randint(0, 255, (1100, 1000, 4)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png", compress_level=0)
    alpha = values[..., 3:] / 255
    wanted = values[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read_image(tmp_path / "a.png") - wanted).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_bands_change_nothing(mode, tmp_path, monkeypatch):
    pixels = np.random.RandomState(0).randint(0, 255, (9, 7, 4)).astype(np.uint8)
    image = Image.fromarray(pixels).convert("RGB" if mode in ("CMYK", "YCbCr", "1", "L", "P") else "RGBA").convert(mode)
    path, options = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "PA") else "a.png"), {}
    if mode == "P":
        options["transparency"] = bytes(range(256))
    image.save(path, **options)
    with Image.open(path) as opened:
        clear = opened.has_transparency_data
        drawn = opened.convert("RGBA")
        white = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
        wanted = np.asarray((white if clear else opened).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), wanted)
    monkeypatch.setattr(images, "BAND", 20)
    np.testing.assert_array_equal(read_image(path), wanted)


def test_label_maps_are_read_as_they_are(tmp_path):
    values = np.array([[0, 1], [2, 255]], np.uint8)
    coloured = Image.frombytes("P", (2, 2), values.tobytes())
    coloured.putpalette([7, 8, 9] * 256)
    for name, image in (
        ("p", coloured),
        ("l", Image.fromarray(values)),
        ("i", Image.fromarray(values.astype(np.uint16) * 200)),
    ):
        image.save(tmp_path / f"{name}.png")
        found = read_map(tmp_path / f"{name}.png")
        assert found.dtype == np.int32 and found.tolist() == (values.astype(int) * (200 if name == "i" else 1)).tolist()
    Image.fromarray(values > 1).save(tmp_path / "1.png")
    assert read_map(tmp_path / "1.png").tolist() == [[0, 0], [1, 1]]
    for bits, packed, wanted in ((2, 0b00011011, [0, 1, 2, 3]), (4, 0x3F, [3, 15])):
        (tmp_path / "g.png").write_bytes(png(np.array([[packed]], np.uint8), 0, bits))
        assert read_map(tmp_path / "g.png").tolist() == [wanted]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "turned.png", exif=exif)
    assert read_map(tmp_path / "turned.png").tolist() == np.rot90(values, -1).tolist()


def test_label_maps_that_are_none(tmp_path):
    for mode in ("RGB", "RGBA", "LA", "F"):
        path = tmp_path / ("x.tif" if mode == "F" else "x.png")
        Image.new(mode, (2, 2)).save(path)
        with pytest.raises(BadRecordError, match=f"one channel of whole numbers or a palette; this one is {mode}$"):
            read_map(path)
    Image.new("L", (2, 2)).save(tmp_path / "x.jpg")
    with pytest.raises(BadRecordError, match=r"x.jpg: a label map as JPEG has lost its exact values"):
        read_map(tmp_path / "x.jpg")
    with pytest.raises(BadRecordError, match="max_pixels=3"):
        read_map(tmp_path / "x.png", max_pixels=3)


def test_names_that_are_not_utf8_are_printable(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    assert printable(name) == r"caf\xe9.png" and printable("café") == "café" and printable("\ud83d") == r"\ud83d"
    with pytest.raises(BadRecordError) as raised:
        read_image(tmp_path / name)
    assert str(raised.value).encode().endswith(rb"caf\xe9.png: no such file")
    with pytest.raises(BadRecordError) as raised:
        read_image(tmp_path / "\ud83d.png")
    assert str(raised.value).encode()


def test_memory_that_runs_out_is_no_bad_record(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    monkeypatch.setattr(Image, "open", lambda _: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        decode_image(file.getvalue(), "x")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_what_is_left_opened_has_the_same_pixels(tmp_path, mode):
    """For a crop; of every orientation, of which only upright ones need not be turned."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)).convert(mode)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.save(path := tmp_path / f"{orientation}.png", exif=exif)
        whole = read_image(path)
        with images.left_opened(True):
            found = read_image(path)
        assert isinstance(found, images.Opened) == (orientation == 1)
        assert (found.shape, found.ndim, found.dtype, found.nbytes) == (whole.shape, 3, np.uint8, whole.nbytes)
        np.testing.assert_array_equal(np.asarray(found), whole)
        crop = RandomCrop((4, 5), resample="bilinear")
        parts = [crop({"image": x}, np.random.default_rng(2), ())["image"] for x in (whole, found)]
        np.testing.assert_array_equal(*parts)
        assert isinstance(read_image(path), np.ndarray)
