"""Images and videos cut into patches: one row of numbers a patch, in reading order."""

from __future__ import annotations

import jax
from einops import rearrange

from mmjax.core.errors import UserError


def grid_of(shape: tuple[int, ...], patch: tuple[int, int], tubelet: int = 0) -> tuple[int, ...]:
    """(rows, columns) of the patches of an image [..., H, W, C]; of a video [..., T, H, W, C] (times, rows, columns).

    Args:
      patch: (height, width) of a patch, in pixels.
      tubelet: frames that a patch of a video goes through; 0 for an image.

    Raises:
      UserError: the patch does not divide it.
    """
    height, width = shape[-3], shape[-2]
    ph, pw = patch
    if height % ph or width % pw:
        raise UserError(f"image of {height} x {width} pixels is not a whole number of patches of {ph} x {pw} (patch)")
    if not tubelet:
        return height // ph, width // pw
    if shape[-4] % tubelet:
        raise UserError(f"video of {shape[-4]} frames is not a whole number of tubelets of {tubelet} frames (tubelet)")
    return shape[-4] // tubelet, height // ph, width // pw


def patches_of(x: jax.Array, patch: tuple[int, int], tubelet: int = 0) -> jax.Array:
    """[B, P, numbers of a patch], row after row, of a video time after time: see `grid_of`.

    Raises:
      UserError: the patch does not divide it.
    """
    grid_of(x.shape, patch, tubelet)
    ph, pw = patch
    if not tubelet:
        return rearrange(x, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)
    return rearrange(x, "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)", pt=tubelet, ph=ph, pw=pw)
