"""Masked autoencoding of images (He et al. 2021) and of videos (Tong et al. 2022, VideoMAE)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.patches import grid_of, patches_of
from mmjax.core.random import example_uniform
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives.losses import counted, valid_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImage:
    """Paint the patches of an image, or of a video, that the encoder was not shown (He 2021, section 3).

    The loss is the mean squared error of a patch's pixels, summed over the hidden patches. Of an augmented image the augmented
    pixels are painted. Of a video the frames that are not its own (`MODALITY_mask`) do not count.

    Attributes:
      patch: (height, width) in pixels, the encoder's and the decoder's.
      tubelet: frames of a patch of a video, theirs too; 0 for images.
      mask_ratio: the share of patches that is hidden, at least one; the encoder reads the rest alone, rounded down.
      tubes: of a video the same places are hidden at all times (Tong 2022, section 3.3): what is still could else be copied.
      norm_pixels: paint each patch normalised by its own mean and deviation (He 2021, table 1d).
      norm_channels: each colour of it by itself, as VideoMAE does; the 1e-6 is then added to the deviation, not the variance.
      mean, std: of the colours, which the data's `Normalise` took off and divided by: this is undone before, so that what is
        painted is pixels from 0 to 1 (VideoMAE); () leaves them.
      modality: whose patches they are, which the decoder `writes`.
      decoder: a decoder of pixels.
    """

    patch: tuple[int, int] = (16, 16)
    tubelet: int = 0
    mask_ratio: float = 0.75
    tubes: bool = True
    norm_pixels: bool = True
    norm_channels: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    modality: str = "image"
    decoder: str = "pixels"

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"masked_image.mask_ratio={self.mask_ratio}: use a number above 0 and below 1")
        if min(self.patch) < 1:
            raise UserError(f"masked_image.patch={self.patch}: use a height and a width of at least 1 pixel")
        if self.tubelet < 0:
            raise UserError(f"masked_image.tubelet={self.tubelet}: use the frames of a patch of a video, or 0 for images")
        if len(self.mean) != len(self.std) or any(one <= 0 for one in self.std):
            raise UserError(
                f"masked_image.mean={self.mean} and std={self.std}: give one for each colour in both, std above 0, or neither"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.modality, "index")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        grid = self.grid(batch[self.modality])
        shown = grid[1:] if self.tubelet and self.tubes else grid
        count = 1
        for side in shown:
            count *= side
        return self.paint(forward, example_uniform(rng, batch["index"], (count,)))[0]

    def paint(self, forward: Forward, noise_BP: Array) -> tuple[Loss, Array]:
        """The loss where patches are hidden by this noise, and what was painted, [B, P, pixels of a patch] float32.

        Args:
          noise_BP: for each patch; or, of a video, for each place of one time, which is then hidden at all times.

        Raises:
          UserError: the decoder's patches are others than these.
        """
        image = forward.view(self.modality)
        grid = self.grid(image)
        keep_BK, hidden_BP = self.choose(noise_BP, self._times(noise_BP, grid))
        key = f"masked_image/{self.decoder}/{self.mask_ratio}"
        tokens = forward.encode(self.modality, {f"{self.modality}_keep": keep_BK}, key=key)
        painted_BPX = forward.decode(self.decoder, {self.modality: image}, {self.modality: tokens}, key=key)
        target_BPX = self.target(image)
        if painted_BPX.shape != target_BPX.shape:
            found, wanted = painted_BPX.shape[1:], target_BPX.shape[1:]
            raise UserError(
                f"masked_image.patch={self.patch}: an image has {wanted} patches x pixels, {self.decoder} has {found}"
            )
        error_BP = jnp.mean(jnp.square(painted_BPX - target_BPX), axis=-1)
        counts_BP = hidden_BP & valid_rows(forward.batch, error_BP.shape[0], self.modality)[:, None]
        if self.tubelet and (frames_BT := forward.batch.get(f"{self.modality}_mask")) is not None:
            own_BT = frames_BT.reshape(frames_BT.shape[0], grid[0], self.tubelet).all(axis=2)
            counts_BP = counts_BP & jnp.repeat(own_BT, grid[1] * grid[2], axis=1)
        return Loss(*counted(error_BP, counts_BP)), painted_BPX

    def choose(self, noise_BP: Array, times: int = 1) -> tuple[Array, Array]:
        """The ids of the patches with the least noise, [B, K] int32 from the least on, and which are hidden, [B, P] bool.

        Args:
          times: the noise is that of one time, and what is hidden is so at as many: P, K are then `times` as many.

        Raises:
          UserError: nothing would be left to see.
        """
        count = noise_BP.shape[1]
        # 10 * (1 - 0.9) is a hair less than 1; and of the smallest share too, something is hidden.
        kept = min(int(count * (1 - self.mask_ratio) + 1e-6), count - 1)
        if not kept:
            raise UserError(f"masked_image.mask_ratio={self.mask_ratio}: of {count} patches none would be left to see")
        order_BP = jnp.argsort(noise_BP, axis=1)
        keep_BK, hidden_BP = order_BP[:, :kept].astype(jnp.int32), jnp.argsort(order_BP, axis=1) >= kept
        if times > 1:
            later = [keep_BK + jnp.int32(time * count) for time in range(times)]
            keep_BK, hidden_BP = jnp.concatenate(later, axis=1), jnp.tile(hidden_BP, (1, times))
        return keep_BK, hidden_BP

    def grid(self, image: Array) -> tuple[int, ...]:
        """(rows, columns) of patches; of a video (times, rows, columns). Raises `UserError` for what they do not divide."""
        if image.ndim != (5 if self.tubelet else 4):
            kind = "a video has" if image.ndim == 5 else "an image has no"
            raise UserError(f"masked_image.tubelet={self.tubelet}: {self.modality} is {image.shape}, and {kind} frames")
        (ph, pw), (height, width) = self.patch, image.shape[-3:-1]
        if height % ph or width % pw:
            raise UserError(f"masked_image.patch={self.patch} does not divide an image of {height} x {width} pixels")
        if self.tubelet and image.shape[1] % self.tubelet:
            raise UserError(f"masked_image.tubelet={self.tubelet} does not divide a video of {image.shape[1]} frames")
        return grid_of(image.shape, self.patch, self.tubelet)

    def patches(self, image: Array) -> Array:
        """[B, P, pixels of a patch], in reading order.

        Raises:
          UserError: the patch does not divide the image.
        """
        self.grid(image)
        return patches_of(image, self.patch, self.tubelet)

    def target(self, image: Array) -> Array:
        """[B, P, pixels of a patch] float32: what is to be painted."""
        image = image.astype(jnp.float32)
        if self.std:
            if len(self.std) != image.shape[-1]:
                raise UserError(
                    f"masked_image.std={self.std}: {self.modality} has {image.shape[-1]} colours, give one for each"
                )
            shape = (1,) * (image.ndim - 1) + (-1,)
            image = image * jnp.asarray(self.std, jnp.float32).reshape(shape) + jnp.asarray(self.mean).reshape(shape)
        patches_BPX = self.patches(image)
        if not self.norm_pixels:
            return patches_BPX
        shape, axis, channels = patches_BPX.shape, -1, image.shape[-1]
        if self.norm_channels:
            patches_BPX, axis = patches_BPX.reshape(*shape[:2], -1, channels), -2
        mean = jnp.mean(patches_BPX, axis=axis, keepdims=True)
        variance = jnp.var(patches_BPX, axis=axis, keepdims=True, ddof=1)
        deviation = jnp.sqrt(variance) + 1e-6 if self.norm_channels else jnp.sqrt(variance + 1e-6)
        return ((patches_BPX - mean) / deviation).reshape(shape)

    def _times(self, noise_BP: Array, grid: tuple[int, ...]) -> int:
        """At how many times each number of the noise hides a patch."""
        return grid[0] if self.tubelet and noise_BP.shape[1] == grid[1] * grid[2] else 1
