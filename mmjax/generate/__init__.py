"""Rung 4: texts written with a cache: greedy and sampling, the processors of `transformers` in its order."""

from mmjax.generate.decode import Texts, decode
from mmjax.generate.settings import Settings, settings_of

__all__ = ["Settings", "Texts", "decode", "settings_of"]
