"""Vision Transformer (Dosovitskiy 2020): an image as a sequence of patches."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.models.parts import rejoin, take, with_added
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import dropout
from mmjax.nn.position import grid_table, resize_grid, resize_grid_linear, sincos_2d
from mmjax.nn.stack import StackFields


class ViT(StackFields):
    """image [B, H, W, channels] -> Tokens [B, P (+1), D].

    Any height and width that the patch divides; learned positions are interpolated when the grid differs from the one of
    `image_size`. `depth=0` gives bare patch embeddings, the image side of a single-stream model.

    Attributes:
      image_size: (height, width) in pixels.
      patch: (height, width) of a patch, in pixels.
      channels: of the image.
      patch_bias: whether the projection of patches has a bias (CLIP's has none).
      cls_token: put a learned token first.
      extra_tokens: further learned tokens after it, with positions of their own (DeiT's distillation token).
      mask_token: have a learned token that stands for a masked patch (BEiT, Bao 2021; FLAVA): where `segments` [B, P] is 1.
      positions: `learned`, `sincos` (2-D), `fixed` (the same, kept as parameters that nothing trains: ViT-MAE), `rotary` or
        `none`.
      resize: how learned positions are interpolated: `bicubic`, or `bilinear` with the corners kept (ViLT).
      images: N > 1 images in an example (NLVR2's two): the input is [B, N, H, W, channels], their tokens follow one another.
      embed_norm: normalise the embeddings before the stack (CLIP).
      embed_dropout: rate of the embeddings' dropout; None: `dropout`.
      final_norm: normalise after the last layer.
      take_layer: give what this layer gives, without the last norm (LLaVA's -2); None: the whole stack. See `nn.stack`.
      taps: layers whose result is given beside that, as `Tokens.taps`.

    A mask [B, (N,) H, W], True = a real pixel, hides the padding of images of several sizes in a batch, each at the top left
    of its frame. Learned positions are then those of each image's own size, with `resize="bilinear"` alone.

    `keep` [B, (N,) K] int32 names the patches to read, in that order; the others cost nothing (He 2021, section 3). The places
    of the tokens that are left are in the result's `positions`. `added` [B, T, D] is added to the embeddings before the first
    layer. The result has a `grid` unless some patches were left out or there are several images.

    Raises:
      UserError: an input that is no image of these `channels`, one that the patch does not divide, an unknown kind of
        positions or of `resize`, a mask with `bicubic`, segments without a `mask_token`.
    """

    image_size: tuple[int, int] = setting(everyday=True, least=1, default=(224, 224))
    patch: tuple[int, int] = setting(everyday=True, least=1, default=(16, 16))
    channels: int = setting(least=1, default=3)
    patch_bias: bool = True
    cls_token: bool = False
    extra_tokens: int = setting(least=0, default=0)
    mask_token: bool = False
    positions: str = "learned"
    resize: str = "bicubic"
    images: int = setting(least=1, default=1)
    embed_norm: bool = False
    embed_dropout: float | None = setting(least=0, below=1, default=None)
    final_norm: bool = True
    take_layer: int | None = None
    taps: tuple[int, ...] = ()

    entry = "project_patches/kernel"  # beside which a prompt lies: its tokens stand after the first ones, and have no position

    @nn.compact
    def __call__(
        self,
        image: Array,
        mask: Array | None = None,
        segments: Array | None = None,
        keep: Array | None = None,
        added: Array | None = None,
    ) -> Tokens:
        if self.images > 1 and (image.ndim != 5 or image.shape[1] != self.images):
            raise UserError(f"images={self.images}: use an input [B, {self.images}, H, W, channels], found {image.shape}")
        if image.shape[-1] != self.channels:
            raise UserError(f"channels={self.channels}: the images have {image.shape[-1]}")
        image_BHWC = image.reshape(-1, *image.shape[-3:]) if self.images > 1 else image
        grid = self._grid(image_BHWC.shape[1], image_BHWC.shape[2])
        ph, pw = self.patch
        real_BHW = None if mask is None else mask.reshape(image_BHWC.shape[:3])[:, ::ph, ::pw]
        patches = rearrange(image_BHWC, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)
        batch = patches.shape[0]
        keep_BK = None if keep is None else keep.reshape(batch, -1)
        project = Linear(self.width, use_bias=self.patch_bias, name="project_patches")
        x_BTD = project(take(patches, keep_BK))
        prompt = project.prompt(after=self._firsts())
        if self.mask_token:
            hidden = self.param("mask_token", nn.initializers.zeros, (1, self.width)).astype(x_BTD.dtype)
            x_BTD = x_BTD if segments is None else jnp.where(segments[..., None] == 1, hidden[None], x_BTD)
        elif segments is not None:
            raise UserError("image segments say which patches are masked: that needs mask_token=True, found False")
        for name, count in (("extra", self.extra_tokens), ("cls", int(self.cls_token))):
            if count:
                first = self.param(name, nn.initializers.normal(0.02), (count, self.width)).astype(x_BTD.dtype)
                x_BTD = jnp.concatenate([jnp.broadcast_to(first[None], (batch, count, self.width)), x_BTD], axis=1)
        places_BT = self._places(x_BTD, keep_BK)
        x_BTD = self._add_positions(x_BTD, grid, real_BHW, None if keep is None else places_BT)
        if prompt is not None:
            if self.positions == "rotary":
                raise UserError(
                    "positions='rotary': a prompt's tokens stand nowhere in an image, so nothing says how to turn them"
                )
            x_BTD = prompt.among(x_BTD, prompt.rows)
        if self.embed_norm:
            x_BTD = self._norm("embed_norm")(x_BTD)
        x_BTD = dropout(
            self, with_added(x_BTD, added, prompt), self.dropout if self.embed_dropout is None else self.embed_dropout
        )
        mask_BT = jnp.ones(places_BT.shape, bool)
        if real_BHW is not None:
            real_BP = take(real_BHW.reshape(batch, -1), keep_BK)
            mask_BT = jnp.pad(real_BP, ((0, 0), (self._firsts(), 0)), constant_values=True)
        if prompt is not None:
            mask_BT, places_BT = prompt.mask(mask_BT), prompt.among(places_BT)
        norm, rotary = self.final_norm and self.depth > 0, self.positions == "rotary"
        stack = self.stack(rotary=rotary, final_norm=norm, take_layer=self.take_layer, taps=self.taps, name="stack")
        y_BTD, taps = stack.tapped(x_BTD, mask_BT, None, places_BT, after=self._firsts())
        whole = (*grid, self._firsts()) if keep is None and self.images == 1 else None
        virtual = () if prompt is None else prompt.places
        return rejoin(Tokens(y_BTD, mask_BT, places_BT, taps=taps, grid=whole, virtual=virtual), self.images)

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        several = (self.images,) if self.images > 1 else ()
        return jnp.zeros((1, *several, *self.image_size, self.channels), jnp.float32)

    def _firsts(self) -> int:
        """How many learned tokens come before the patches."""
        return int(self.cls_token) + self.extra_tokens

    def _places(self, x_BTD: Array, keep_BK: Array | None) -> Array:
        """[B, T] int32: the place of each token among those of the whole image."""
        count = x_BTD.shape[1] if keep_BK is None else self._firsts()
        places_BT = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], (x_BTD.shape[0], count))
        return places_BT if keep_BK is None else jnp.concatenate([places_BT, count + keep_BK.astype(jnp.int32)], axis=1)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        ph, pw = self.patch
        if height % ph or width % pw:
            raise UserError(f"image of {height} x {width} pixels is not a whole number of patches of {ph} x {pw} (patch)")
        return height // ph, width // pw

    def _add_positions(
        self, x_BTD: Array, grid: tuple[int, int], real_BHW: Array | None, places_BT: Array | None = None
    ) -> Array:
        extra = self._firsts()
        if self.positions in ("learned", "fixed"):
            base = self._grid(*self.image_size)
            table_TD = grid_table(self.positions, base, extra, self.width)
            table = table_TD[None] if base == grid and real_BHW is None else self._resized(table_TD, base, grid, real_BHW)
        elif self.positions == "sincos":
            table = jnp.pad(jnp.asarray(sincos_2d(*grid, self.width)), ((extra, 0), (0, 0)))[None]
        elif self.positions in ("rotary", "none"):
            return x_BTD
        else:
            raise UserError(f"positions={self.positions!r}: use learned, fixed, sincos, rotary or none")
        return x_BTD + take(table, places_BT).astype(x_BTD.dtype)

    def _resized(self, table_TD: Array, old: tuple[int, int], new: tuple[int, int], real_BHW: Array | None) -> Array:
        extra = self._firsts()
        if self.resize == "bilinear":
            sizes = (
                ([new[0]], [new[1]])
                if real_BHW is None
                else (real_BHW.any(axis=2).sum(axis=1), real_BHW.any(axis=1).sum(axis=1))
            )
            patches = resize_grid_linear(table_TD[extra:], old, new, sizes)
        elif self.resize == "bicubic":
            if real_BHW is not None:
                raise UserError(
                    "a mask of the image needs resize='bilinear' where positions are learned, found resize='bicubic'"
                )
            patches = resize_grid(table_TD[extra:], old, new)[None]
        else:
            raise UserError(f"resize={self.resize!r}: use bicubic or bilinear")
        first = jnp.broadcast_to(table_TD[None, :extra], (patches.shape[0], extra, self.width))
        return jnp.concatenate([first, patches], axis=1)
