"""Pixels in and out of PIL: whatever a file holds becomes uint8 [H, W, 3], RGB, upright; label maps stay what they are."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data import jpeg
from mmjax.data.files import remote
from mmjax.data.levels import Window, to_bytes
from mmjax.data.notes import without_notes
from mmjax.data.types import BadRecordError, Record

MAX_PIXELS = 178_956_970  # where Pillow refuses a file by itself
BAND = 1 << 20  # pixels that are converted at once: PIL holds 4 bytes a pixel, and again as many in each copy
# How the low bytes of 16-bit colours are got, where Pillow takes the high ones: as if the bytes stood the other way round.
NATIVE = {"little": "L", "big": "B"}[sys.byteorder]
SWAPPED = {"B": "L", "L": "B", "N": "B" if NATIVE == "L" else "L"}


def read_image(path: str | os.PathLike[str], window: Window | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 [H, W, 3] from an image file.

    Args:
      window: (low, high) of what has more than 8 bits a sample, see `levels.to_bytes`; 8 bits stay as they are.
      max_pixels: H * W at most.

    Raises:
      BadRecordError: the file is missing, truncated, no image or too large.
    """
    source = _fetched(path) if remote.is_address(path) else path
    return _read(source, printable(path), max_pixels, lambda image, file, name: _rgb(image, file, window, name), quick=True)


def decode_image(encoded: bytes, name: str, window: Window | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 [H, W, 3] from the bytes of an image file, as `read_image`; `name` is for the error.

    Raises:
      BadRecordError: the bytes are truncated, no image or too large.
    """
    return _read(encoded, name, max_pixels, lambda image, file, name: _rgb(image, file, window, name), quick=True)


def read_map(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """int32 [H, W] from a label map: indices into its palette, or grey values, as the file has them; upright like an image.

    Raises:
      BadRecordError: the file is missing, truncated, no image or too large; or it has colours, floats, or the losses of JPEG.
    """
    return _read(_fetched(path) if remote.is_address(path) else path, printable(path), max_pixels, _labels)


class Opened:
    """An image that is decoded and still PIL's, RGB of 8 bits: a part of it need not go into an array and back. An array of it,
    `np.asarray(opened)`, is what one would have been read.

    Attributes:
      image: PIL's.
      shape, ndim, dtype, nbytes: as an array's.
    """

    ndim, dtype = 3, np.dtype(np.uint8)

    def __init__(self, image: Image.Image) -> None:
        self.image, self.shape = image, (image.height, image.width, 3)

    @property
    def nbytes(self) -> int:
        return 3 * self.image.width * self.image.height

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return from_pil(self.image)


class _Leave(threading.local):
    opened = False


_leave = _Leave()


@contextlib.contextmanager
def left_opened(wanted: bool) -> Iterator[None]:
    """While it lasts, images that this thread reads are `Opened` where they can be; not where it is not `wanted`."""
    before, _leave.opened = _leave.opened, wanted
    try:
        yield
    finally:
        _leave.opened = before


def to_pil(image_HW3: np.ndarray | Opened) -> Image.Image:
    """A PIL image from uint8 [H, W, 3]; half the time of `Image.fromarray`, which counts for tiny images."""
    if isinstance(image_HW3, Opened):
        return image_HW3.image
    height, width, _ = image_HW3.shape
    return Image.frombuffer("RGB", (width, height), np.ascontiguousarray(image_HW3), "raw", "RGB", 0, 1)


def from_pil(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] from an RGB image."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)


def pixels(record: Record, transform: str, field: str = "image") -> np.ndarray:
    """The record's image of that name, uint8 [H, W, 3], or video, [T, H, W, 3].

    Raises:
      UserError: there is none, or it is no longer uint8.
    """
    image = record.get(field)
    if not isinstance(image, np.ndarray | Opened) or image.ndim not in (3, 4):
        wanted = "an image" if field == "image" else f"an image {field!r}"
        raise UserError(f"transforms: {transform} needs {wanted}, and the source has none")
    if image.dtype != np.uint8:
        raise UserError(f"transforms: {transform} needs a uint8 image, not {image.dtype}: put it before Normalise")
    return image  # type: ignore[return-value]  # what is left opened goes to who asked for it alone


def frame(record: Record, transform: str, field: str = "image") -> np.ndarray:
    """The same, of a video its first frame: [H, W, 3]."""
    found = pixels(record, transform, field)
    return found if found.ndim == 3 else found[0]


def each(image: np.ndarray, do: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What `do` makes of an image [H, W, 3], or of each frame of a video [T, H, W, 3]."""
    return do(image) if image.ndim == 3 else np.stack([do(one) for one in image])


def printable(path: str | os.PathLike[str]) -> str:
    r"""A path that can be printed and written as UTF-8: bytes of its name that are not UTF-8 as \xe9."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, as JSON may spell one: no file can have that name
        return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def check_pixels(height: int, width: int, max_pixels: int, name: str) -> None:
    """Raises `BadRecordError` for an image of more than `max_pixels`."""
    if height * width > max_pixels:
        raise BadRecordError(name, f"{height} x {width} are {height * width} pixels, and max_pixels={max_pixels}")


def _fetched(address: str | os.PathLike[str]) -> bytes:
    """An image at an address, which is asked for each time: asking whether it has changed would take as long."""
    try:
        return remote.content(os.fspath(address))
    except FileNotFoundError:
        raise BadRecordError(printable(address), "no such file") from None
    except UnreachableError as error:
        raise BadRecordError(printable(address), str(error)) from error


def _read(
    source: str | os.PathLike[str] | bytes,
    name: str,
    max_pixels: int,
    take: Callable[[ImageFile.ImageFile, IO[bytes], str], np.ndarray],
    quick: bool = False,
) -> np.ndarray:
    """`quick`: a plain JPEG is wanted as RGB, for which Pillow need not be asked."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as whole, without_notes(whole) as file:
            if quick and (found := _plain_jpeg(file, name, max_pixels)) is not None:
                return found
            with _no_limit(), Image.open(file) as image:
                check_pixels(image.height, image.width, max_pixels, name)
                array = take(image, file, name)
                orientation = _orientation(image)
            if isinstance(array, Opened) and orientation == 1:
                return array  # type: ignore[return-value]
            return _upright(np.asarray(array), orientation)
    except (MemoryError, BadRecordError):
        raise
    except FileNotFoundError:
        raise BadRecordError(name, "no such file") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else f"{error} ({type(error).__name__})"
        raise BadRecordError(name, reason) from error


def _plain_jpeg(file: IO[bytes], name: str, max_pixels: int) -> np.ndarray | None:
    """uint8 [H, W, 3] of what `jpeg.size` knows; None for any other file, which is then at its start again."""
    start = file.read(2)
    if start == b"\xff\xd8":
        encoded = start + file.read()
        if (size := jpeg.size(encoded)) is not None:
            check_pixels(*size, max_pixels, name)
            if (found := jpeg.decoded(encoded)) is not None:
                return found
    file.seek(0)
    return None


class _NoLimit:
    """Pillow's limit on pixels, one for the whole process, is lifted while files of ours are read: each source has its own."""

    def __init__(self) -> None:
        self.lock, self.readers, self.limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if not self.readers:
                self.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.readers += 1
        try:
            yield
        finally:
            with self.lock:
                self.readers -= 1
                if not self.readers:
                    Image.MAX_IMAGE_PIXELS = self.limit


_no_limit = _NoLimit()


def _rgb(image: ImageFile.ImageFile, file: IO[bytes], window: Window | None, name: str) -> np.ndarray:
    """uint8 [H, W, 3], as it lies in the file."""
    if image.mode.startswith(("I", "F")):
        return np.repeat(to_bytes(np.asarray(image), window, name)[..., None], 3, axis=-1)
    deep = _raw_mode(image)
    if deep.startswith(("RGB;16", "RGBA;16", "RGBX;16", "LA;16")):
        return _eight_bits(_of_16_bits(image, file, deep, window, name))
    if image.format == "JPEG" and image.mode == "RGB":
        file.seek(0)
        if (found := jpeg.decoded(file.read())) is not None:
            return found
        file.seek(0)
    return _eight_bits(image)


def _eight_bits(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] of an image of 8 bits a channel, converted by bands of rows where it is large."""
    image.load()
    clear = image.has_transparency_data
    if image.width * image.height <= BAND:
        whole = _opaque(image, clear)
        return Opened(whole) if _leave.opened else from_pil(whole)  # type: ignore[return-value]
    rgb_HW3 = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        rgb_HW3[top:bottom] = from_pil(_opaque(image.crop((0, top, image.width, bottom)), clear))
    return rgb_HW3


def _opaque(image: Image.Image, clear: bool) -> Image.Image:
    if clear:  # over white, as HuggingFace's processors do
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _of_16_bits(image: ImageFile.ImageFile, file: IO[bytes], raw: str, window: Window | None, name: str) -> Image.Image:
    """An image of 8 bits from one with 16 bits a channel, of which Pillow takes the high ones alone."""
    if raw == "LA;16B":  # the four bytes of a pixel, taken for four channels
        _as_raw_mode(image, "RGBA")
        grey_HW, alpha = _joined(np.asarray(image)[..., [0, 2]], np.asarray(image)[..., [1, 3]]).transpose(2, 0, 1)
        bands = [to_bytes(grey_HW, window, name), to_bytes(alpha, (0, 65535), name)]
        return Image.merge("LA", [Image.fromarray(band) for band in bands])
    high_HWC = np.asarray(image)
    if window is None and high_HWC[..., :3].max() >= 64:  # all 16 bits are used: the low ones do not matter
        return image
    file.seek(0)
    with Image.open(file) as again:
        _as_raw_mode(again, raw[:-1] + SWAPPED[raw[-1]])
        joined_HWC = _joined(high_HWC, np.asarray(again))
    values = to_bytes(joined_HWC[..., :3], window, name)
    found = Image.fromarray(values)
    if image.mode == "RGBA":
        found.putalpha(image.getchannel("A"))
    return found


def _joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return high.astype(np.uint16) << 8 | low


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How a sample stands in the file, "RGB;16B"; "" where the decoder does not say."""
    args = image.tile[0][3] if image.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _as_raw_mode(image: ImageFile.ImageFile, raw: str) -> None:
    """Have the file decoded as if its samples stood in another way."""
    tiles: list[Any] = []
    for tile in image.tile:
        make = getattr(type(tile), "_make", tuple)  # a plain tuple before Pillow 11
        tiles.append(make((*tile[:3], (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw)))
    image.tile = tiles


def _labels(image: ImageFile.ImageFile, file: IO[bytes], name: str) -> np.ndarray:
    """int32 [H, W], as it lies in the file."""
    if image.format in ("JPEG", "MPO"):
        raise BadRecordError(name, "a label map as JPEG has lost its exact values; write it as PNG")
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise BadRecordError(name, f"a label map has one channel of whole numbers or a palette; this one is {image.mode}")
    spread = {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)  # Pillow spreads grey of 2 or 4 bits over 0 to 255
    return np.asarray(image).astype(np.int32) // spread


def _orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF has them, asked for once the image is loaded: a TIFF is upright by then."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # what else a file holds must not matter
        return 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, ...] turned as `ImageOps.exif_transpose` does, in less memory."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(array[rows, columns])
