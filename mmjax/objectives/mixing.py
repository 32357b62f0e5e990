"""Two examples of a batch made one, for what is trained on classes: MixUp and CutMix.

Row i is mixed with the row half a batch further on, modulo the batch: on any mesh, for any number of processes, and for any
number of micro-batches with an even number of rows, since row i of a step goes to micro-batch i modulo their number. The share
of a row's own example is drawn once a step. Only the objective whose field `mix` says so sees mixed examples.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.random import fold_name
from mmjax.core.types import Array, Forward
from mmjax.objectives import routes

PARTS = ("mask", "keep", "added", "valid")  # of a modality: what an encoder reads beside it, and what is not mixed


@dataclasses.dataclass(frozen=True)
class MixUp:
    """share * x + (1 - share) * the other x (Zhang et al. 2017, arXiv:1710.09412); the share is of Beta(alpha, alpha).

    Attributes:
      alpha: 1 draws shares evenly; the less, the nearer to 0 or 1 they are.
      probability: how often a step mixes at all.
    """

    alpha: float = setting(above=0, default=0.8)
    probability: float = setting(least=0, most=1, default=1.0)

    def __post_init__(self) -> None:
        check_ranges(self, "MixUp.")

    def __call__(self, x: Array, pairs_B: Array, key: Array) -> tuple[Array, Array]:
        """Mix [B, ...] where `pairs_B` [B] says so: the mixture, and the share of each row's own example, [B] float32."""
        share_B = jnp.where(pairs_B & _now(key, self.probability), _share(key, self.alpha), 1.0)
        own = share_B.reshape(-1, *[1] * (x.ndim - 1))
        return (own * x + (1.0 - own) * partner(x)).astype(x.dtype), share_B


@dataclasses.dataclass(frozen=True)
class CutMix:
    """A rectangle of the other image put over this one (Yun et al. 2019, arXiv:1905.04899, algorithm A1).

    Its area is 1 - share of the image, the share of Beta(alpha, alpha), and its middle anywhere: what of it is out of view does
    not count, so that the share is the one that is really seen, as torchvision and timm have it.

    Attributes:
      alpha: 1 draws shares evenly; the less, the nearer to 0 or 1 they are.
      probability: how often a step mixes at all.
    """

    alpha: float = setting(above=0, default=1.0)
    probability: float = setting(least=0, most=1, default=1.0)

    def __post_init__(self) -> None:
        check_ranges(self, "CutMix.")

    def __call__(self, x: Array, pairs_B: Array, key: Array) -> tuple[Array, Array]:
        """As `MixUp`, of images [B, H, W, C]. Raises `UserError` for what is no image."""
        if x.ndim != 4:
            raise UserError(f"mix: CutMix cuts images [B, H, W, C], and these are [{', '.join(map(str, x.shape))}]; use MixUp")
        height, width = x.shape[1:3]
        half = 0.5 * jnp.sqrt(1.0 - _share(key, self.alpha))
        top, bottom = _span(fold_name(key, "row"), height, half)
        left, right = _span(fold_name(key, "column"), width, half)
        row_H1, column_1W = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
        inside_HW = (row_H1 >= top) & (row_H1 < bottom) & (column_1W >= left) & (column_1W < right)
        pairs_B = pairs_B & _now(key, self.probability)
        taken = pairs_B[:, None, None, None] & inside_HW[None, :, :, None]
        hidden = ((bottom - top) * (right - left)).astype(jnp.float32) / (height * width)
        return jnp.where(taken, partner(x), x), jnp.where(pairs_B, 1.0 - hidden, 1.0)


@dataclasses.dataclass(frozen=True)
class MixOrCut:
    """One or the other, drawn for each step, as the recipes of timm and DeiT have it.

    Attributes:
      mixup: the one.
      cutmix: the other.
      cut: how often it is the other.
    """

    mixup: MixUp = MixUp()
    cutmix: CutMix = CutMix()
    cut: float = setting(least=0, most=1, default=0.5)

    def __post_init__(self) -> None:
        check_ranges(self, "MixOrCut.")

    def __call__(self, x: Array, pairs_B: Array, key: Array) -> tuple[Array, Array]:
        """As `CutMix`."""
        cut = jax.random.bernoulli(fold_name(key, "which"), self.cut)
        mixed, other = (how(x, pairs_B, fold_name(key, name)) for name, how in (("mix", self.mixup), ("cut", self.cutmix)))
        return jnp.where(cut, other[0], mixed[0]), jnp.where(cut, other[1], mixed[1])


MIXES = {"mixup": MixUp, "cutmix": CutMix, "mix_or_cut": MixOrCut}


def partner(x: Array) -> Array:
    """[B, ...]: for each row the one half a batch further on."""
    return jnp.roll(x, x.shape[0] // 2, axis=0)


def mixed(mix: MixUp | CutMix | MixOrCut, forward: Forward, head: str, known_B: Array, rng: Array) -> tuple[Forward, Array]:
    """The forward that sees mixed examples, and the share of each row's own, [B] float32: 1 where nothing was mixed in.

    Args:
      head: the head that is trained: what it reads is mixed, as encoders see it.
      known_B: [B] bool; a row is mixed where both of the pair are known, else it stays as it is.

    Raises:
      UserError: the head reads several modalities, one that cannot be mixed, or the batch is odd.
    """
    modality = _modality(forward, head)
    x = forward.view(modality)
    if x.shape[0] % 2:
        raise UserError(
            f"mix: rows are mixed in pairs, and there are {x.shape[0]} (batch_size / optimizer.accumulate): use an even number"
        )
    both, share_B = mix(x, known_B & partner(known_B), fold_name(rng, "mix"))
    return forward.with_(views={modality: both}), share_B


def _modality(forward: Forward, head: str) -> str:
    """The one modality that a head reads, if it can be mixed."""
    inputs = routes.named(forward.spec(f"heads.{head}").input)
    names = sorted({modality for name in inputs for modality in forward.modalities(name)})
    if len(names) > 1:
        raise UserError(
            f"mix: model.heads.{head} reads {', '.join(names)}; of a mixture each would be of two examples: mix where a head "
            "reads one"
        )
    (modality,) = names
    if modality not in forward.batch or not jnp.issubdtype(forward.batch[modality].dtype, jnp.floating):
        raise UserError(f"mix: model.heads.{head} reads {modality!r}, which is no pixels or waveform: it cannot be mixed")
    if beside := [f"{modality}_{part}" for part in PARTS if f"{modality}_{part}" in forward.batch]:
        raise UserError(f"mix: {modality!r} has {beside[0]!r} beside it, which two examples have not in common; leave it out")
    return modality


def _now(key: Array, probability: float) -> Array:
    return jax.random.bernoulli(fold_name(key, "now"), probability)


def _share(key: Array, alpha: float) -> Array:
    return jax.random.beta(fold_name(key, "share"), alpha, alpha, dtype=jnp.float32)


def _span(key: Array, side: int, half: Array) -> tuple[Array, Array]:
    """First and end of a stretch of a side, about a place drawn from it; [] int32."""
    middle, reach = jax.random.randint(key, (), 0, side), jnp.floor(half * side).astype(jnp.int32)
    return jnp.clip(middle - reach, 0, side), jnp.clip(middle + reach, 0, side)
