"""Small videos for tests: frames whose number can be read off them, as files of FFmpeg."""

from __future__ import annotations

import tempfile

import numpy as np

SIZE = (32, 48)
STRIPES = 8  # of black and white: a number in binary, which survives compression


def numbered(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 [count, H, W, 3]: frame n has the bits of n as stripes, the least at the left."""
    bits_TS = (np.arange(count)[:, None] >> np.arange(STRIPES)) & 1
    rows_TW = np.repeat(bits_TS * 200 + 20, size[1] // STRIPES, axis=1).astype(np.uint8)
    return np.broadcast_to(rows_TW[:, None, :, None], (count, *size, 3)).copy()


def numbers(x_THWC: np.ndarray) -> list[int]:
    """The numbers of such frames."""
    T, H, W, _ = x_THWC.shape
    bits_TS = x_THWC[:, H // 2, :, 1].reshape(T, STRIPES, W // STRIPES).mean(axis=2) > 120
    return [int(one) for one in bits_TS @ (1 << np.arange(STRIPES))]


def encoded(
    x_THWC: np.ndarray, rate: int = 25, kind: str = "mp4", codec: str = "mpeg4", keyframes: int = 12, **options: str
) -> bytes:
    """A file of frames."""
    import av

    file = tempfile.NamedTemporaryFile()  # noqa: SIM115  # some are written twice over
    with av.open(file.name, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *x_THWC.shape[1:3], "yuv420p"
        stream.codec_context.gop_size = keyframes
        stream.codec_context.bit_rate = 2_000_000
        for image in x_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return file.read()
