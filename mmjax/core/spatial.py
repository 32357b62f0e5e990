"""What lies over an image: which keys of a record or a batch move with it, on the host and on the device alike.

Over the image `image` lie the keys `image_KIND` and `image_KIND_NAME` (for several of a kind), of these kinds:

| kind     | shape, dtype              | meaning                                                                           |
|----------|---------------------------|-----------------------------------------------------------------------------------|
| `mask`   | [H, W] bool               | True = a real pixel; what comes into view from outside is False                    |
| `map`    | [H, W] int32 or float32   | a class (or a value) for each pixel; from outside comes -1 (or NaN)                |
| `boxes`  | [N, 4] float32            | left, top, right, bottom in pixels, 0 the left or upper edge; clipped to the image |
| `points` | [N, 2] float32            | x and y in pixels, 0.5 the middle of the first                                     |

A box or point that is out of view, or was none, is -1 throughout. Values of a map are never mixed: the nearest is taken.
"""

from __future__ import annotations

from collections.abc import Iterable

KINDS = ("mask", "map", "boxes", "points")
NONE = -1  # no class, no box, no point


def over(image: str, keys: Iterable[str]) -> dict[str, str]:
    """key -> kind, of those keys that lie over the image of this name."""
    found = {}
    for key in keys:
        part = key.removeprefix(f"{image}_")
        if part != key and (kind := part.split("_")[0]) in KINDS:
            found[key] = kind
    return found


def image_of(key: str, keys: Iterable[str]) -> str | None:
    """The image that a key lies over, of those among `keys`; None where it lies over none."""
    return next((image for image in keys if key in over(image, [key])), None)
