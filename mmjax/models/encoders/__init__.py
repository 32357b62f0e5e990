"""Encoders: raw modality -> Tokens."""

from mmjax.models.encoders.text import TextTransformer
from mmjax.models.encoders.vit import ViT

ENCODERS = {"text": TextTransformer, "vit": ViT}
