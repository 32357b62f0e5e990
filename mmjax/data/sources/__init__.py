"""Where examples come from. A new source is one file here, one line in the table, one test."""

from mmjax.data.sources.array_record import ArrayRecord
from mmjax.data.sources.arrow import Arrow
from mmjax.data.sources.balanced import Balanced
from mmjax.data.sources.coco import Coco
from mmjax.data.sources.conll import Conll
from mmjax.data.sources.digits import Digits
from mmjax.data.sources.folder import Folder
from mmjax.data.sources.grouped import Grouped
from mmjax.data.sources.hide_labels import HideLabels
from mmjax.data.sources.manifest import Manifest
from mmjax.data.sources.mix import Mix
from mmjax.data.sources.moving import Moving
from mmjax.data.sources.parquet import Parquet
from mmjax.data.sources.scenes import Scenes
from mmjax.data.sources.spoken import Spoken
from mmjax.data.sources.squad import Squad
from mmjax.data.sources.stamps import Stamps
from mmjax.data.sources.streamed import Streamed
from mmjax.data.sources.subset import WHOLE, Subset
from mmjax.data.sources.tfds import TFDS
from mmjax.data.sources.web_dataset import WebDataset

SOURCES = {
    **WHOLE,
    "balanced": Balanced,
    "coco": Coco,
    "conll": Conll,
    "grouped": Grouped,
    "hide_labels": HideLabels,
    "mix": Mix,
    "spoken": Spoken,
    "squad": Squad,
    "streamed": Streamed,
    "subset": Subset,
}

__all__ = [
    "SOURCES",
    "TFDS",
    "ArrayRecord",
    "Arrow",
    "Balanced",
    "Coco",
    "Conll",
    "Digits",
    "Folder",
    "Grouped",
    "HideLabels",
    "Manifest",
    "Mix",
    "Moving",
    "Parquet",
    "Scenes",
    "Spoken",
    "Squad",
    "Stamps",
    "Streamed",
    "Subset",
    "WebDataset",
]
