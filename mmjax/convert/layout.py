"""How one tensor of a HuggingFace file lies in our parameters: names on both sides, and the turn between their layouts.

PyTorch keeps a linear layer as [out, in] and attention's projections flat; we keep [in..., out...] with heads apart, and the
layers of a stack stacked. A `Row` says which goes where; its `Layout` is exact both ways, so a round trip gives the same bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.core.errors import UserError


class Layout(Protocol):
    """The turn of one tensor, without the layer dim. `out_dim` is the dim of the HuggingFace tensor along which several of
    ours lie one after another (fused q, k and v)."""

    @property
    def out_dim(self) -> int: ...

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The HuggingFace tensor, which has `their_shape(shape)`, as our array of `shape`."""
        ...

    def theirs(self, x: np.ndarray) -> np.ndarray:
        """Our array as the HuggingFace tensor."""
        ...

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the HuggingFace tensor for our `shape`."""
        ...


class _Reshaped:
    """The same numbers in the same order on both sides."""

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x.reshape(shape)

    def theirs(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.their_shape(x.shape))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        raise AssertionError("a subclass says")


@dataclasses.dataclass(frozen=True)
class Vector(_Reshaped):
    """A bias or a scale: [out] <-> ours, reshaped ([H, K] for attention's). `lead` dims of 1 come first in theirs."""

    lead: int = 0
    out_dim: int = 0

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * self.lead + (math.prod(shape),)


@dataclasses.dataclass(frozen=True)
class Table(_Reshaped):
    """An embedding table [rows, D], the same in both; `lead` dims of 1 come first in theirs, [1, rows, D]. () stays ()."""

    lead: int = 0
    out_dim: int = 0

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * self.lead + tuple(shape)


@dataclasses.dataclass(frozen=True)
class Linear:
    """[out, in] <-> [in..., out...], of which the first `axes` dims of ours are `in`."""

    axes: int = 1
    out_dim: int = 0

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return transpose(x).reshape(shape)

    def theirs(self, x: np.ndarray) -> np.ndarray:
        return transpose(x.reshape(self.their_shape(x.shape)[::-1]))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return math.prod(shape[self.axes :]), math.prod(shape[: self.axes])


@dataclasses.dataclass(frozen=True)
class Conv1D(_Reshaped):
    """[in, out] <-> [in..., out...]: GPT-2's linear layer, and projections that HuggingFace keeps as bare matrices."""

    axes: int = 1
    out_dim: int = 1

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return math.prod(shape[: self.axes]), math.prod(shape[self.axes :])


@dataclasses.dataclass(frozen=True)
class Patches:
    """A convolution [D, channels, ph, pw] over patches <-> a linear layer [ph * pw * channels, D]."""

    patch: tuple[int, int]
    channels: int
    out_dim: int = 0

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x.transpose(2, 3, 1, 0).reshape(shape)

    def theirs(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(*self.patch, self.channels, -1).transpose(3, 2, 0, 1)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[-1], self.channels, *self.patch)


@dataclasses.dataclass(frozen=True)
class Tubelets:
    """A convolution [D, channels, tubelet, ph, pw] over tubelets <-> a linear layer [tubelet * ph * pw * channels, D]."""

    patch: tuple[int, int, int]
    channels: int
    out_dim: int = 0

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x.transpose(2, 3, 4, 1, 0).reshape(shape)

    def theirs(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(*self.patch, self.channels, -1).transpose(4, 3, 0, 1, 2)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[-1], self.channels, *self.patch)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A convolution [out, in, height, width] <-> [height, width, in, out]."""

    out_dim: int = 0

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x.transpose(2, 3, 1, 0)

    def theirs(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(3, 2, 0, 1)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[3], shape[2], shape[0], shape[1])


@dataclasses.dataclass(frozen=True)
class Kernel1D:
    """A convolution along time [out, in, width] <-> [1, width, in, out]."""

    out_dim: int = 0

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return x.transpose(2, 1, 0)[None]

    def theirs(self, x: np.ndarray) -> np.ndarray:
        return x[0].transpose(2, 1, 0)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[3], shape[2], shape[1])


@dataclasses.dataclass(frozen=True)
class Count:
    """How many there were: [] int64 <-> [] int32, whatever dtype the weights have."""

    out_dim: int = 0

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if x.dtype.kind not in "iu" or not 0 <= int(x) < 2**31:
            raise UserError(f"a count of {x} ({x.dtype}) cannot be kept: it must be a whole number below {2**31}")
        return x.astype(np.int32)

    def theirs(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.int64)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One HuggingFace tensor (or one a layer) and the parameters of ours that it holds.

    Attributes:
      theirs: its name; `{l}` stands for the layer in a stack.
      ours: the path of the parameter, or several that lie one after another along the layout's `out_dim`.
      layout: how they lie.
      depth: layers of the stack; 0 where it is in none.
      first: the number that the stack's first layer has there.
      copies: further tensors of the class, of the same shape, that no forward pass reads. What a file has under these names
        is kept in `Multimodal.unread`; a model that came without them writes this tensor in their place.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout
    depth: int = 0
    copies: tuple[str, ...] = ()
    first: int = 0

    def names(self) -> list[str]:
        """Its name, or one a layer."""
        numbers = range(self.first, self.first + self.depth)
        return [self.theirs.replace("{l}", str(number)) for number in numbers] if self.depth else [self.theirs]

    def split(self, x: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The HuggingFace tensor as our arrays, of these shapes (without the layer dim).

        Raises:
          ValueError: the sizes disagree.
        """
        if x.shape != self.their_shape(shapes):
            raise ValueError
        ends: Any = (
            np.cumsum([self.layout.their_shape(shape)[self.layout.out_dim] for shape in shapes])[:-1] if len(shapes) > 1 else []
        )
        parts = np.split(x, ends, axis=self.layout.out_dim) if len(shapes) > 1 else [x]
        return [self.layout.ours(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Our arrays (of one layer) as the HuggingFace tensor."""
        turned = [self.layout.theirs(part) for part in parts]
        return turned[0] if len(turned) == 1 else np.concatenate(turned, axis=self.layout.out_dim)

    def their_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the HuggingFace tensor for our shapes (without the layer dim)."""
        each = [self.layout.their_shape(shape) for shape in shapes]
        out = self.layout.out_dim
        return tuple(sum(s[d] for s in each) if d == out and len(each) > 1 else each[0][d] for d in range(len(each[0])))


def transpose(x: np.ndarray) -> np.ndarray:
    """[rows, columns] -> [columns, rows], a copy. 64 rows at a time stay in the cache, which is eight times faster than all."""
    turned = np.empty(x.shape[::-1], x.dtype)
    for row in range(0, len(x), 64):
        turned[:, row : row + 64] = x[row : row + 64].T
    return turned


def linear(theirs: str, ours: str, *, axes: int = 1, bias: bool = True, depth: int = 0) -> list[Row]:
    """Rows of a linear layer: `theirs.weight`, `theirs.bias` <-> `ours/kernel`, `ours/bias`."""
    rows = [Row(f"{theirs}.weight", (f"{ours}/kernel",), Linear(axes), depth)]
    return rows + ([Row(f"{theirs}.bias", (f"{ours}/bias",), Vector(), depth)] if bias else [])


def norm(theirs: str, ours: str, *, bias: bool = True, depth: int = 0) -> list[Row]:
    """Rows of a normalisation: `theirs.weight`, `theirs.bias` <-> `ours/scale`, `ours/bias`."""
    rows = [Row(f"{theirs}.weight", (f"{ours}/scale",), Vector(), depth)]
    return rows + ([Row(f"{theirs}.bias", (f"{ours}/bias",), Vector(), depth)] if bias else [])


def table(theirs: str, ours: str, lead: int = 0) -> list[Row]:
    """The row of an embedding table: `theirs` <-> `ours/table`, with `lead` dims of 1 first in theirs."""
    return [Row(theirs, (f"{ours}/table",), Table(lead))]
