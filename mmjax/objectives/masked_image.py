"""Masked autoencoding of images (He et al. 2021)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from einops import rearrange

from mmjax.core.errors import UserError
from mmjax.core.random import example_uniform
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives.losses import counted, valid_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImage:
    """Paint the patches of an image that the encoder was not shown (He 2021, section 3).

    The loss is the mean squared error of a patch's pixels, summed over the hidden patches. Of an augmented image the augmented
    pixels are painted.

    Attributes:
      patch: (height, width) in pixels, the encoder's and the decoder's.
      mask_ratio: the share of patches that is hidden, at least one; the encoder reads the rest alone, rounded down.
      norm_pixels: paint each patch normalised by its own mean and deviation (He 2021, table 1d).
      modality: whose patches they are, which the decoder `writes`.
      decoder: a decoder of pixels.
    """

    patch: tuple[int, int] = (16, 16)
    mask_ratio: float = 0.75
    norm_pixels: bool = True
    modality: str = "image"
    decoder: str = "pixels"

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"masked_image.mask_ratio={self.mask_ratio}: use a number above 0 and below 1")
        if min(self.patch) < 1:
            raise UserError(f"masked_image.patch={self.patch}: use a height and a width of at least 1 pixel")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.modality, "index")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        count = self.patches(batch[self.modality]).shape[1]
        return self.paint(forward, example_uniform(rng, batch["index"], (count,)))[0]

    def paint(self, forward: Forward, noise_BP: Array) -> tuple[Loss, Array]:
        """The loss where patches are hidden by this noise, and what was painted, [B, P, pixels of a patch] float32.

        Raises:
          UserError: the decoder's patches are others than these.
        """
        keep_BK, hidden_BP = self.choose(noise_BP)
        key = f"masked_image/{self.decoder}/{self.mask_ratio}"
        tokens = forward.encode(self.modality, {f"{self.modality}_keep": keep_BK}, key=key)
        image = forward.view(self.modality)
        painted_BPX = forward.decode(self.decoder, {self.modality: image}, {self.modality: tokens}, key=key)
        target_BPX = self.target(image)
        if painted_BPX.shape != target_BPX.shape:
            found, wanted = painted_BPX.shape[1:], target_BPX.shape[1:]
            raise UserError(
                f"masked_image.patch={self.patch}: an image has {wanted} patches x pixels, {self.decoder} has {found}"
            )
        error_BP = jnp.mean(jnp.square(painted_BPX - target_BPX), axis=-1)
        valid_B = valid_rows(forward.batch, error_BP.shape[0], self.modality)
        return Loss(*counted(error_BP, hidden_BP & valid_B[:, None])), painted_BPX

    def choose(self, noise_BP: Array) -> tuple[Array, Array]:
        """The ids of the patches with the least noise, [B, K] int32 from the least on, and which are hidden, [B, P] bool.

        Raises:
          UserError: nothing would be left to see.
        """
        count = noise_BP.shape[1]
        # 10 * (1 - 0.9) is a hair less than 1; and of the smallest share too, something is hidden.
        kept = min(int(count * (1 - self.mask_ratio) + 1e-6), count - 1)
        if not kept:
            raise UserError(f"masked_image.mask_ratio={self.mask_ratio}: of {count} patches none would be left to see")
        order_BP = jnp.argsort(noise_BP, axis=1)
        return order_BP[:, :kept].astype(jnp.int32), jnp.argsort(order_BP, axis=1) >= kept

    def patches(self, image_BHWC: Array) -> Array:
        """[B, P, pixels of a patch], in reading order.

        Raises:
          UserError: the patch does not divide the image.
        """
        (ph, pw), (height, width) = self.patch, image_BHWC.shape[1:3]
        if height % ph or width % pw:
            raise UserError(f"masked_image.patch={self.patch} does not divide an image of {height} x {width} pixels")
        return rearrange(image_BHWC, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)

    def target(self, image_BHWC: Array) -> Array:
        """[B, P, pixels of a patch] float32: what is to be painted."""
        patches_BPX = self.patches(image_BHWC.astype(jnp.float32))
        if not self.norm_pixels:
            return patches_BPX
        mean = jnp.mean(patches_BPX, axis=-1, keepdims=True)
        variance = jnp.var(patches_BPX, axis=-1, keepdims=True, ddof=1)
        return (patches_BPX - mean) / jnp.sqrt(variance + 1e-6)
