"""Decoders: Tokens -> logits of text, or pixels."""

from mmjax.models.decoders.pixels import PixelDecoder
from mmjax.models.decoders.spliced import SplicedDecoder
from mmjax.models.decoders.text import TextDecoder

DECODERS = {"pixels": PixelDecoder, "spliced": SplicedDecoder, "text": TextDecoder}
