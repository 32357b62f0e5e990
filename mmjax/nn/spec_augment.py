"""Parts of spectrograms hidden while training (Park et al. 2019, "SpecAugment", arXiv:1904.08779), on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.random import fold_name
from mmjax.core.types import Array


@dataclasses.dataclass(frozen=True)
class SpecAugment:
    """Hide bands of frequencies and stretches of time of each example; without the paper's warping, which adds least.

    Of T real frames a stretch has 0 to `time_width` of them, `time_share` * T at most, and begins anywhere in the sound: none
    lies in the padding. A band has 0 to `frequency_width` of the F features. Each is drawn evenly, and they may overlap. The
    defaults are the paper's LD; SM is 2, 70, 2, 15 with a share of 0.2.

    Attributes:
      time_masks, time_width: stretches of time, and frames of one at most.
      frequency_masks, frequency_width: bands, and features of one at most.
      time_share: of the real frames that one stretch hides at most.
      fill: what is put there; None for the mean of the example's real frames.

    Raises:
      UserError: a value outside its range.
    """

    moves = False  # what lies over a spectrogram stays as it is

    time_masks: int = setting(least=0, default=2)
    time_width: int = setting(least=0, default=100)
    frequency_masks: int = setting(least=0, default=2)
    frequency_width: int = setting(least=0, default=27)
    time_share: float = setting(least=0, most=1, default=1.0)
    fill: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self)

    def __call__(self, x_BTF: Array, keys_B: Array, mask_BT: Array | None = None) -> Array:
        """Hide parts of [B, T, F], each example's by its own key of [B]; shape and dtype stay.

        Args:
          mask_BT: True = a real frame, real ones first; None: all of them are.

        Raises:
          UserError: what is no spectrogram.
        """
        if x_BTF.ndim != 3:
            raise UserError(
                f"model.augment: SpecAugment hides parts of spectrograms, [B, T, F], and this is {list(x_BTF.shape)}"
            )
        mask_BT = jnp.ones(x_BTF.shape[:2], bool) if mask_BT is None else mask_BT
        found: Array = jax.vmap(self._one)(x_BTF, keys_B, mask_BT)
        return found

    def together(self, x_BTF: Array, keys_B: Array, over: Mapping[str, tuple[str, Array]]) -> tuple[Array, dict[str, Array]]:
        """The same, with what lies over it (key -> kind, array) as it is: its mask says which frames are real."""
        masks = [x for kind, x in over.values() if kind == "mask" and x.ndim == 2]
        return self(x_BTF, keys_B, masks[0] if masks else None), {name: x for name, (_, x) in over.items()}

    def _one(self, x_TF: Array, key: Array, mask_T: Array) -> Array:
        frames, features = x_TF.shape
        count = mask_T.sum().astype(jnp.float32)
        most = jnp.minimum(self.time_width, jnp.floor(self.time_share * count))
        hidden_T = _stretches(fold_name(key, "time"), self.time_masks, most, count, frames)
        widest = jnp.float32(min(self.frequency_width, features))
        hidden_F = _stretches(fold_name(key, "frequency"), self.frequency_masks, widest, jnp.float32(features), features)
        hidden_TF = (hidden_T[:, None] | hidden_F[None]) & mask_T[:, None]
        if self.fill is None:
            kept = jnp.where(mask_T[:, None], x_TF.astype(jnp.float32), 0.0)
            fill = kept.sum() / jnp.maximum(count * features, 1)
        else:
            fill = jnp.float32(self.fill)
        return jnp.where(hidden_TF, fill.astype(x_TF.dtype), x_TF)


def _stretches(key: Array, count: int, most: Array, size: Array, room: int) -> Array:
    """[room] bool: which places lie in one of `count` stretches, each of 0 to `most` places among the first `size`."""
    if not count:
        return jnp.zeros(room, bool)
    widths, starts = jax.random.uniform(key, (2, count))
    width_C = jnp.minimum(jnp.floor(widths * (most + 1)), most)  # a draw just below 1 may round up
    start_C = jnp.minimum(jnp.floor(starts * (size - width_C + 1)), size - width_C)
    place_R = jnp.arange(room, dtype=jnp.float32)
    return ((place_R[:, None] >= start_C[None]) & (place_R[:, None] < (start_C + width_C)[None])).any(axis=1)
