"""Rung 4: texts written with a cache: greedy, beams and sampling, the processors of `transformers` in its order."""

from mmjax.generate.decode import decode
from mmjax.generate.rules import Rules
from mmjax.generate.settings import Settings, settings_of
from mmjax.generate.texts import Texts

__all__ = ["Rules", "Settings", "Texts", "decode", "settings_of"]
