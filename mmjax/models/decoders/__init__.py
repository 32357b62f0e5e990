"""Decoders: Tokens -> logits of text."""

from mmjax.models.decoders.text import TextDecoder

DECODERS = {"text": TextDecoder}
