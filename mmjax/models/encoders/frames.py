"""A video frame by frame: an image encoder reads each, and one token of each is what attention over time reads."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.models.encoders.convnext import ConvNeXt
from mmjax.models.encoders.video import check_video
from mmjax.models.encoders.vit import ViT
from mmjax.nn.pool import Pool
from mmjax.nn.position import Table
from mmjax.nn.stack import StackFields

FRAME_ENCODERS = {"convnext": ConvNeXt, "vit": ViT}


class VideoFrames(StackFields):
    """video [B, T, H, W, channels] -> Tokens [B, T, D]: a token for each frame.

    With `depth=0`, the default, that is all: a head that takes their mean averages over time. With more, a Transformer over
    the frames follows (Arnab 2021, ViViT, model 2), whose `width` is that of the image encoder.

    Attributes:
      encoder: of a frame: `ViT` or `ConvNeXt`. Its parameters are those of such an encoder, under `encoder`.
      frames: how many a video has at most, where there is a Transformer over them.
      pool: how the tokens of a frame become one, see `nn.pool`: `mean`, or `cls` for the first.
      depth: layers over time; 0 for none.
      final_norm: normalise after the last of these layers.

    Its part: `mask` [B, T] bool, True where a frame is the video's own; others are hidden.

    Raises:
      UserError: no encoder, an input that is no video, widths that differ, or more frames than `frames`.
    """

    encoder: Any = setting(FRAME_ENCODERS, needed=True, default=None)
    frames: int = setting(everyday=True, least=1, default=16)
    pool: str = "mean"
    depth: int = setting(everyday=True, least=0, default=0)
    final_norm: bool = True

    @nn.compact
    def __call__(self, video: Array, mask: Array | None = None) -> Tokens:
        if self.encoder is None:
            raise UserError("encoder=None: give what reads a frame, ViT(image_size=(224, 224)) for instance")
        check_video(video, self.encoder.channels, mask)
        B, T = video.shape[:2]
        x_BTD = Pool(self.pool, name="pool")(self.encoder(video.reshape(B * T, *video.shape[2:]))).reshape(B, T, -1)
        mask_BT = jnp.ones((B, T), bool) if mask is None else mask
        places_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        if self.depth:
            if x_BTD.shape[-1] != self.width:
                raise UserError(f"width={self.width}: the encoder of frames gives {x_BTD.shape[-1]}; make them equal")
            if self.frames < T:
                raise UserError(f"frames={self.frames}: a video has {T}")
            table_TD = Table(self.frames, self.width, name="position").all()
            x_BTD = x_BTD + table_TD[None, :T].astype(x_BTD.dtype)
            x_BTD = self.stack(final_norm=self.final_norm, name="stack")(x_BTD, mask_BT, None, places_BT)
        return Tokens(x_BTD, mask_BT, places_BT)

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        if self.encoder is None:
            raise UserError("encoder=None: give what reads a frame, ViT(image_size=(224, 224)) for instance")
        image = self.encoder.example()
        return jnp.zeros((1, min(2, self.frames), *image.shape[1:]), jnp.float32)
