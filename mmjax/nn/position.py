"""Where a token stands: learned tables, fixed sine-cosine tables, rotary angles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.nn.adapters import added_rows, added_table
from mmjax.nn.virtual import Virtual, virtual_of
from mmjax.parallel.mesh import constrain

POSITIONS = ("learned", "fixed", "sincos", "rotary", "none")


class Table(nn.Module):
    """A learned table [rows, D], one row a word, a position or a segment. `initial` is what it starts from, else random."""

    rows: int
    width: int
    stddev: float = 0.02
    initial: Callable[..., Array] | None = None

    def setup(self) -> None:
        init = self.initial or nn.initializers.normal(self.stddev)
        self.table = self.param("table", init, (self.rows, self.width))

    def __call__(self, ids: Array) -> Array:
        # Each row is gathered whole, as every parameter is over `fsdp`: rows that stay split there meet examples that are split
        # there, and XLA then copies those of the whole batch to every device.
        rows = jnp.take(constrain(self.table, "tensor", None), ids, axis=0)
        added = added_rows(self, ids, rows.dtype)
        return rows if added is None else rows + added

    def all(self) -> Array:
        added = added_table(self)
        return self.table if added is None else self.table + added.astype(self.table.dtype)

    def prompt(self) -> Virtual | None:
        """Tokens that belong among the rows that are read; None without."""
        return virtual_of(self)

    def base(self) -> Array:
        """The table as it is without adapters: what an output that is tied to it multiplies by, as in peft."""
        return self.table


def grid_table(kind: str, grid: tuple[int, int], firsts: int, width: int) -> Array:
    """[firsts + P, D]: the parameters of the positions of a grid of patches, and of the tokens before them.

    `learned`, or `fixed`: those of `sincos_2d` (0 for the first tokens), kept as HuggingFace keeps ViT-MAE's, untrained.
    """
    rows = firsts + grid[0] * grid[1]
    if kind == "learned":
        return Table(rows, width, name="position").all()

    def sincos(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
        return jnp.pad(jnp.asarray(sincos_2d(*grid, shape[1]), dtype), ((firsts, 0), (0, 0)))

    return jax.lax.stop_gradient(Table(rows, width, initial=sincos, name="fixed_position").all())


def sincos_1d(length: int, width: int) -> np.ndarray:
    """[length, D] float32: sines then cosines of geometric wavelengths up to 10000 (Vaswani 2017, section 3.5).

    Raises:
      UserError: an odd width.
    """
    if width % 2:
        raise UserError(f"width={width}: sincos positions need an even width")
    return _sincos(np.arange(length, dtype=np.float64), width)


def sincos_sequence(length: int, width: int) -> np.ndarray:
    """[length, D] float32: the same with each sine beside its cosine, as Vaswani 2017, section 3.5, writes them (VideoMAE's).

    Raises:
      UserError: an odd width.
    """
    found = sincos_1d(length, width)
    return found.reshape(length, 2, width // 2).swapaxes(1, 2).reshape(length, width)


def sinusoids(length: int, width: int) -> np.ndarray:
    """[length, D] float32: the same with the longest wavelength at 10000 itself (Whisper's, tensor2tensor's).

    Raises:
      UserError: an odd width, or one of 2, which has a single wavelength.
    """
    if width % 2 or width < 4:
        raise UserError(f"width={width}: sinusoids need an even width of 4 or more")
    frequencies = np.exp(-np.log(10000.0) / (width // 2 - 1) * np.arange(width // 2, dtype=np.float64))
    angles = np.arange(length, dtype=np.float64)[:, None] * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


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


def rotate(x_BTHK: Array, positions_BT: Array, theta: float = 10000.0, scaling: tuple[float, ...] = ()) -> Array:
    """Rotary positions (Su 2021, eq. 34), halves convention: dim i turns with dim i + K/2. Angles in float32.

    `theta` and `scaling` as in `rotary_frequencies`.
    """
    half = x_BTHK.shape[-1] // 2
    frequencies = jnp.asarray(rotary_frequencies(half, theta, scaling), jnp.float32)
    angles = positions_BT.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None]
    cos, sin = jnp.cos(angles).astype(x_BTHK.dtype), jnp.sin(angles).astype(x_BTHK.dtype)
    x1, x2 = x_BTHK[..., :half], x_BTHK[..., half:]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def rotary_frequencies(half: int, theta: float, scaling: tuple[float, ...] = ()) -> np.ndarray:
    """[K/2] float64: radians a token by which each pair of dims turns.

    Args:
      theta: base of the wavelengths (Su 2021, section 3.2.2).
      scaling: () as they are; (factor,) all slower by a factor (Chen 2023, section 2.3); (factor, low, high, length) Llama
        3.1's way: slower by it where `length` tokens make fewer than `low` turns, as they are where they make more than
        `high`, and a mean weighted by the turns in between (Peng 2023, section 3.2, "by parts").

    Raises:
      UserError: a scaling of another length, a factor that is not above 0, `high` that is not above `low`.
    """
    frequencies = theta ** -(np.arange(half, dtype=np.float64) / half)
    if not scaling:
        return frequencies
    if len(scaling) not in (1, 4) or scaling[0] <= 0:
        raise UserError(f"rotary_scaling={scaling}: use (), (factor,) or (factor, low, high, length), with a factor above 0")
    if len(scaling) == 1:
        return frequencies / scaling[0]
    factor, low, high, length = scaling
    if high <= low:
        raise UserError(f"rotary_scaling={scaling}: the turns of its third value must be more than those of its second")
    turns = length * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / factor)


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


def resize_grid_linear(table_PD: Array, old: tuple[int, int], room: tuple[int, int], sizes: Any) -> Array:
    """A learned grid of positions at other sizes, linear, its corners on the new corners (ViLT's, Kim 2021).

    Equal to PyTorch's `interpolate(mode="bilinear", align_corners=True)`.

    Args:
      old, room: (height, width) of the table's grid, and of the grid of the result.
      sizes: the rows and the columns to resize to, at most `room`; ints, or arrays [B] for each example its own.

    Returns:
      [(B,) room, D], 0 where an example's own grid does not reach.
    """
    rows, columns = (_linear_matrix(*both) for both in zip(old, room, sizes, strict=True))
    grid_HWD = table_PD.reshape(*old, -1).astype(jnp.float32)
    grid = jnp.einsum("...yh,...xw,hwd->...yxd", rows, columns, grid_HWD, precision="highest")
    return grid.reshape(*grid.shape[:-3], -1, table_PD.shape[-1]).astype(table_PD.dtype)


def _linear_matrix(old: int, room: int, new: Any) -> Array:
    """[(B,) room, old] float32: the weights of `old` samples at `new` even places from the first to the last."""
    new = jnp.asarray(new, jnp.int32)[..., None, None]
    step = jnp.float32(old - 1) / jnp.maximum(new - 1, 1).astype(jnp.float32)
    shape = (*new.shape[:-2], room, old)
    place, sample = (jax.lax.broadcasted_iota(jnp.float32, shape, len(shape) - back) for back in (2, 1))
    weight = jnp.maximum(1.0 - jnp.abs(place * step - sample), 0.0)
    return jnp.where(place < new.astype(jnp.float32), weight, 0.0)


def _cubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] float32: cubic convolution between samples at cell centres, edges repeated (Keys 1981, eq. 4, a = -0.75)."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
    s, a = np.abs(centres[:, None] - taps), -0.75
    weights = np.where(s <= 1, (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4))
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix.astype(np.float32)
