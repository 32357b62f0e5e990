"""Decoders: Tokens -> logits of text, or pixels."""

from mmjax.models.decoders.pixels import PixelDecoder
from mmjax.models.decoders.spliced import SplicedDecoder
from mmjax.models.decoders.text import TextDecoder


def writes_texts(decoder: object) -> bool:
    """Whether a decoder gives logits of the next token, and so can write."""
    return isinstance(decoder, TextDecoder) and not getattr(decoder, "headless", False)


DECODERS = {"pixels": PixelDecoder, "spliced": SplicedDecoder, "text": TextDecoder}
