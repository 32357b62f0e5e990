"""PNG files without what they hold beside pixels: generators write megabytes of text into them, which the decoder refuses."""

from __future__ import annotations

import io
import zlib
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTED = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # keywords of texts that may tell which side is up
LONGEST = 1 << 20  # bytes of such a text once inflated, as the decoder allows


def without_notes(file: IO[bytes]) -> IO[bytes]:
    """The same file at its start; a PNG without texts and colour profile, but for short texts that tell the orientation."""
    start = file.read(len(SIGNATURE))
    if start != SIGNATURE:
        file.seek(0)
        return file
    data = start + file.read()
    kept, done, place = [start], len(start), len(start)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind, body = data[place + 4 : place + 8], data[place + 8 : end - 4]
        if kind in NOTES and end <= len(data) and not _oriented(kind, body):
            kept.append(data[done:place])
            done = end
        place = end
    return io.BytesIO(b"".join([*kept, data[done:]]) if len(kept) > 1 else data)


def _oriented(kind: bytes, body: bytes) -> bool:
    keyword, _, rest = body.partition(b"\0")
    if kind == b"iCCP" or keyword not in ORIENTED or len(body) > LONGEST:
        return False
    # Whether the text is deflated: always in zTXt, by a flag in iTXt. A few kilobytes may inflate to gigabytes.
    packed = {b"zTXt": rest[1:], b"iTXt": rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""}.get(kind, b"")
    try:
        inflater = zlib.decompressobj()
        inflater.decompress(packed, LONGEST)
    except zlib.error:
        return False
    return not inflater.unconsumed_tail
