"""Rung 5: the bridge to and from HuggingFace. One family a file, a table of names and layouts each; `api` is the way in."""

from mmjax.convert.api import image_transforms, load, load_classifier, load_extractor, load_model, load_tagger, save_hf
from mmjax.convert.families import FAMILIES
from mmjax.convert.teaching import teacher

__all__ = [
    "FAMILIES",
    "image_transforms",
    "load",
    "load_classifier",
    "load_extractor",
    "load_model",
    "load_tagger",
    "save_hf",
    "teacher",
]
