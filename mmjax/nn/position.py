"""Where a token stands: learned tables, fixed sine-cosine tables, rotary angles."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array

POSITIONS = ("learned", "sincos", "rotary", "none")


class Table(nn.Module):
    """A learned table [rows, D], one row a word, a position or a segment."""

    rows: int
    width: int
    stddev: float = 0.02

    def setup(self) -> None:
        self.table = self.param("table", nn.initializers.normal(self.stddev), (self.rows, self.width))

    def __call__(self, ids: Array) -> Array:
        return jnp.take(self.table, ids, axis=0)

    def all(self) -> Array:
        return self.table


def sincos_1d(length: int, width: int) -> np.ndarray:
    """[length, D] float32: sines then cosines of geometric wavelengths up to 10000 (Vaswani 2017, section 3.5).

    Raises:
      UserError: an odd width.
    """
    if width % 2:
        raise UserError(f"width={width}: sincos positions need an even width")
    return _sincos(np.arange(length, dtype=np.float64), width)


def sincos_2d(height: int, width_patches: int, width: int) -> np.ndarray:
    """[height * width_patches, D] float32: half of the dims for the row, half for the column (Chen 2021, MoCo v3).

    Raises:
      UserError: a width that is not a multiple of 4.
    """
    if width % 4:
        raise UserError(f"width={width}: 2-D sincos positions need a multiple of 4")
    rows, columns = np.mgrid[:height, :width_patches].astype(np.float64)
    return np.concatenate([_sincos(rows.ravel(), width // 2), _sincos(columns.ravel(), width // 2)], axis=1)


def _sincos(positions: np.ndarray, width: int) -> np.ndarray:
    frequencies = 10000.0 ** -(np.arange(width // 2, dtype=np.float64) / (width // 2))
    angles = positions[:, None] * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def rotate(x_BTHK: Array, positions_BT: Array, theta: float = 10000.0) -> Array:
    """Rotary positions (Su 2021, eq. 34), halves convention: dim i turns with dim i + K/2. Angles in float32."""
    half = x_BTHK.shape[-1] // 2
    frequencies = jnp.asarray(theta ** -(np.arange(half, dtype=np.float64) / half), jnp.float32)
    angles = positions_BT.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None]
    cos, sin = jnp.cos(angles).astype(x_BTHK.dtype), jnp.sin(angles).astype(x_BTHK.dtype)
    x1, x2 = x_BTHK[..., :half], x_BTHK[..., half:]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def resize_grid(table_PD: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    """A learned grid of positions at another size, bicubic without antialiasing (Dosovitskiy 2020, section 3.2).

    Equal to PyTorch's `interpolate(mode="bicubic", align_corners=False)`, which published checkpoints were resized by.
    """
    if old == new:
        return table_PD
    rows, columns = (jnp.asarray(_cubic_matrix(*sizes)) for sizes in zip(old, new, strict=True))
    grid_HWD = table_PD.reshape(*old, -1).astype(jnp.float32)
    grid_HWD = jnp.einsum("yh,xw,hwd->yxd", rows, columns, grid_HWD, precision="highest")
    return grid_HWD.reshape(-1, table_PD.shape[-1]).astype(table_PD.dtype)


def _cubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] float32: cubic convolution between samples at cell centres, edges repeated (Keys 1981, eq. 4, a = -0.75)."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
    s, a = np.abs(centres[:, None] - taps), -0.75
    weights = np.where(s <= 1, (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4))
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix.astype(np.float32)
