"""Pieces of an HTML page that needs nothing but itself: no network, no script, and no text that is not escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

SMALL = 128  # pixels of a side up to which a picture is PNG, whole
LARGEST = 384  # of a side as it is shown
BINS = 32
STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222;background:#fff}
h2{border-top:1px solid #ccc;padding-top:.8em} table{border-collapse:collapse} td,th{padding:.1em .6em;text-align:left}
.g{display:flex;flex-wrap:wrap;gap:.8em} .c{border:1px solid #ddd;padding:.5em;max-width:22em;overflow-wrap:anywhere}
svg.p{image-rendering:pixelated;display:block;max-width:100%} .bar{background:#58a;height:.8em} .n{color:#777}
.w{background:#fe9;padding:.4em .8em} .u{background:#f99} .s{color:#aaa} .k{border:1px solid #e5e5e5;margin:0 1px}
"""
# Whatever a page may hold by mistake, a browser loads and runs nothing for it.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
TINTS = ("#e22", "#2a2", "#24e", "#c80", "#a2c", "#0aa", "#888", "#d6a")


def said(value: object) -> str:
    """A text as it may stand anywhere in a page, in an attribute too."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode(), quote=True)


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page; `parts` are HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" '
        f'content="{POLICY}">\n<title>{said(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{said(title)}</h1>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def data_uri(image: np.ndarray) -> str:
    """An image, uint8 [H, W, 3] or [H, W, 4], as a file within the page: PNG where it is small, else a JPEG of it."""
    picture, file = Image.fromarray(image), io.BytesIO()
    kind = "png" if max(image.shape[:2]) <= SMALL or image.shape[2] == 4 else "jpeg"
    picture.thumbnail((2 * LARGEST, 2 * LARGEST))
    picture.save(file, kind.upper())
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(image_HW3: np.ndarray, over: Sequence[str] = (), side: int = 160) -> str:
    """An image, with SVG in its own pixels over it; its longer side is shown with at least `side` pixels."""
    height, width = image_HW3.shape[:2]
    scale = min(max(side, max(height, width)), LARGEST) / max(height, width)
    whole = f'<image width="{width}" height="{height}" href="{data_uri(image_HW3)}"/>'
    size = f'width="{width * scale:.0f}" height="{height * scale:.0f}"'
    return f'<svg class="p" viewBox="0 0 {width} {height}" {size}>{whole}{"".join(over)}</svg>'


def tinted(label_HW: np.ndarray) -> str:
    """A label map to lie over an image: a colour for each number from 0, nothing below it."""
    colours = np.array([[int(tint[place] * 2, 16) for place in (1, 2, 3)] for tint in TINTS], np.uint8)
    rgba_HW4 = np.zeros((*label_HW.shape, 4), np.uint8)
    rgba_HW4[..., :3] = colours[label_HW % len(TINTS)]
    rgba_HW4[..., 3] = np.where(label_HW < 0, 0, 100)
    return f'<image width="{label_HW.shape[1]}" height="{label_HW.shape[0]}" href="{data_uri(rgba_HW4)}"/>'


def box(place: int, edges: Sequence[float]) -> str:
    """A box: left, top, right, bottom."""
    left, top, right, bottom = map(float, edges)
    frame = f'x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}"'
    return (
        f'<rect {frame} fill="none" stroke="{TINTS[place % len(TINTS)]}" vector-effect="non-scaling-stroke" stroke-width="2"/>'
    )


def dot(place: int, x: float, y: float, radius: float) -> str:
    """A point."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{TINTS[place % len(TINTS)]}"/>'


def bars(counts: Mapping[str, int]) -> str:
    """A table of names, numbers and bars."""
    most = max(counts.values(), default=0) or 1
    row = '<tr><td>{}</td><td>{}</td><td style="width:20em"><div class="bar" style="width:{:.1f}%"></div></td></tr>'
    return f"<table>{''.join(row.format(said(name), count, 100 * count / most) for name, count in counts.items())}</table>"


def histogram(values: Sequence[int]) -> str:
    """Whole numbers from 0 up as bars of SVG."""
    width = max(1, -(-(max(values) + 1) // BINS))
    counts = np.bincount(np.asarray(values) // width)
    most, bar = counts.max(), '<rect x="{}" y="{:.1f}" width="9" height="{:.1f}" fill="#58a"><title>{} to {}: {}</title></rect>'
    made = (
        bar.format(10 * n, 60 - 60 * count / most, 60 * count / most, n * width, (n + 1) * width - 1, count)
        for n, count in enumerate(counts.tolist())
    )
    return f'<svg width="{10 * len(counts)}" height="60">{"".join(made)}</svg>'
