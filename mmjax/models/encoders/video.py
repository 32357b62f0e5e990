"""A Transformer over the tubelets of a video, all of space and time at once (Tong 2022, VideoMAE; Arnab 2021, model 1)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.patches import grid_of, patches_of
from mmjax.core.types import Array, Tokens
from mmjax.models.parts import take, with_added
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import dropout
from mmjax.nn.position import Table, sincos_sequence
from mmjax.nn.stack import StackFields


class VideoTransformer(StackFields):
    """video [B, T, H, W, channels] -> Tokens [B, P, D]: a token for each tubelet, `tubelet` frames of a patch.

    Attributes:
      frames: of a video.
      image_size: (height, width) in pixels.
      tubelet: frames of a token; they divide those of a video.
      patch: (height, width) of a patch, in pixels.
      channels: of a frame.
      positions: `sequence` (sines and cosines of a token's number in reading order: VideoMAE's), `learned` (one for each place
        of a video of `frames` and `image_size`), or `none`.
      embed_dropout: rate of the embeddings' dropout; None: `dropout`.
      final_norm: normalise after the last layer (VideoMAE normalises after pooling instead).
      take_layer: give what this layer gives, without the last norm; None: the whole stack. See `nn.stack`.
      taps: layers whose result is given beside that, as `Tokens.taps`.

    Its parts: `mask` [B, T] bool, True where a frame is the video's own: tubelets without one are hidden. `keep` [B, K] int32,
    the tubelets to read, in that order; the others cost nothing. `added` [B, P, D] is added to the embeddings.

    The result has `coordinates` [B, P, 3] int32: the tubelet's time, row and column.

    Raises:
      UserError: an input that is no video of these `channels`, one that tubelets or patches do not divide, unknown positions,
        or learned ones for a video of another size.
    """

    frames: int = setting(everyday=True, least=1, default=16)
    image_size: tuple[int, int] = setting(everyday=True, least=1, default=(224, 224))
    tubelet: int = setting(everyday=True, least=1, default=2)
    patch: tuple[int, int] = setting(everyday=True, least=1, default=(16, 16))
    channels: int = setting(least=1, default=3)
    positions: str = "sequence"
    embed_dropout: float | None = setting(least=0, below=1, default=None)
    final_norm: bool = True
    take_layer: int | None = None
    taps: tuple[int, ...] = ()

    entry = "project_patches/kernel"  # beside which a prompt lies

    @nn.compact
    def __call__(
        self, video: Array, mask: Array | None = None, keep: Array | None = None, added: Array | None = None
    ) -> Tokens:
        check_video(video, self.channels, mask)
        grid = grid_of(video.shape, self.patch, self.tubelet)
        project = Linear(self.width, name="project_patches")
        x_BPD = project(take(patches_of(video, self.patch, self.tubelet), keep))
        prompt = project.prompt(after=0)
        batch, count = video.shape[0], int(np.prod(grid))
        places_BP = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], (batch, count)) if keep is None else keep
        x_BPD = self._placed(x_BPD, grid, keep)
        mask_BP = jnp.ones((batch, count), bool) if mask is None else tubelets_seen(mask, self.tubelet, grid)
        where_BP3 = jnp.asarray(np.stack(np.unravel_index(np.arange(count), grid), axis=-1).astype(np.int32))[None]
        mask_BP, where_BP3 = take(mask_BP, keep), jnp.broadcast_to(take(where_BP3, keep), (*places_BP.shape, 3))
        if prompt is not None:
            x_BPD = prompt.among(x_BPD, prompt.rows)
        rate = self.dropout if self.embed_dropout is None else self.embed_dropout
        x_BPD = dropout(self, with_added(x_BPD, added, prompt), rate)
        if prompt is not None:
            mask_BP, places_BP, where_BP3 = prompt.mask(mask_BP), prompt.among(places_BP), prompt.among(where_BP3)
        norm = self.final_norm and self.depth > 0
        stack = self.stack(final_norm=norm, take_layer=self.take_layer, taps=self.taps, name="stack")
        y_BPD, taps = stack.tapped(x_BPD, mask_BP, None, places_BP)
        virtual = () if prompt is None else prompt.places
        return Tokens(y_BPD, mask_BP, places_BP, coordinates=where_BP3, taps=taps, virtual=virtual)

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        return jnp.zeros((1, self.frames, *self.image_size, self.channels), jnp.float32)

    def _placed(self, x_BPD: Array, grid: tuple[int, ...], keep: Array | None) -> Array:
        """With their positions."""
        count = int(np.prod(grid))
        if self.positions == "none":
            return x_BPD
        if self.positions == "sequence":
            table_PD = jnp.asarray(sincos_sequence(count, self.width))
        elif self.positions == "learned":
            own = grid_of((self.frames, *self.image_size, self.channels), self.patch, self.tubelet)
            if own != grid:
                raise UserError(
                    f"a video of {_by(grid)} tubelets, and the learned positions of frames={self.frames} and "
                    f"image_size={self.image_size} are {_by(own)}: use positions='sequence', or videos of that size"
                )
            table_PD = Table(count, self.width, name="position").all()
        else:
            raise UserError(f"positions={self.positions!r}: use sequence, learned or none")
        return x_BPD + take(table_PD[None], keep).astype(x_BPD.dtype)


def check_video(video: Array, channels: int, mask: Array | None) -> None:
    """Raises `UserError` for what is no video, or a mask that is not one of frames."""
    if video.ndim != 5 or video.shape[-1] != channels:
        raise UserError(f"channels={channels}: use videos [B, T, H, W, {channels}], found {video.shape}")
    if mask is not None and mask.shape != video.shape[:2]:
        raise UserError(f"a video's mask says of each frame whether it is its own, {video.shape[:2]}; found {mask.shape}")


def tubelets_seen(mask_BT: Array, tubelet: int, grid: tuple[int, ...]) -> Array:
    """[B, P] bool: the tubelets that have a frame of the video's own."""
    seen_BT = mask_BT.reshape(mask_BT.shape[0], grid[0], tubelet).any(axis=2)
    return jnp.repeat(seen_BT, grid[1] * grid[2], axis=1)


def _by(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
