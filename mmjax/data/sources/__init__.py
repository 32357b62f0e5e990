"""Where examples come from. A new source is one file here, one line in the table, one test."""

from mmjax.data.sources.conll import Conll
from mmjax.data.sources.digits import Digits
from mmjax.data.sources.folder import Folder
from mmjax.data.sources.hide_labels import HideLabels
from mmjax.data.sources.manifest import Manifest
from mmjax.data.sources.scenes import Scenes
from mmjax.data.sources.stamps import Stamps
from mmjax.data.sources.subset import WHOLE, Subset
from mmjax.data.sources.tfds import TFDS

SOURCES = {**WHOLE, "conll": Conll, "hide_labels": HideLabels, "subset": Subset}

__all__ = ["SOURCES", "TFDS", "Conll", "Digits", "Folder", "HideLabels", "Manifest", "Scenes", "Stamps", "Subset"]
