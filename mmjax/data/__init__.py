"""Rung 1: from files to batches, on the host. No jax in here, and no model.

A record goes source -> transforms -> pipeline; `types.py` says what a record is, `pipeline.py` what a batch is.
"""

from mmjax.data.columns import COLUMNS
from mmjax.data.inspect import describe
from mmjax.data.kinds import Array, Class, Classes, Number, Pixels
from mmjax.data.pipeline import Batches, Data, Dataset
from mmjax.data.sources import (
    SOURCES,
    TFDS,
    ArrayRecord,
    Arrow,
    Balanced,
    Coco,
    Conll,
    Digits,
    Folder,
    HideLabels,
    Manifest,
    Mix,
    Parquet,
    Scenes,
    Squad,
    Stamps,
    Subset,
    WebDataset,
)
from mmjax.data.spans import Span
from mmjax.data.strings import Strings, strings
from mmjax.data.tags import Tags
from mmjax.data.texts import Text
from mmjax.data.tokenizers import BPE, TOKENIZERS, Pretrained, Tokenizer, WordPiece
from mmjax.data.transforms import (
    TRANSFORMS,
    Caption,
    CenterCrop,
    ColourJitter,
    Flip,
    Markers,
    NextSentence,
    Noise,
    Normalise,
    PadSquare,
    RandomCrop,
    Resize,
    ResizeShortest,
    ResizeWithin,
    Rotate,
)
from mmjax.data.types import BadRecordError, Record, Records, Source, Transform

__all__ = [
    "BPE",
    "COLUMNS",
    "SOURCES",
    "TFDS",
    "TOKENIZERS",
    "TRANSFORMS",
    "Array",
    "ArrayRecord",
    "Arrow",
    "BadRecordError",
    "Balanced",
    "Batches",
    "Caption",
    "CenterCrop",
    "Class",
    "Classes",
    "Coco",
    "ColourJitter",
    "Conll",
    "Data",
    "Dataset",
    "Digits",
    "Flip",
    "Folder",
    "HideLabels",
    "Manifest",
    "Markers",
    "Mix",
    "NextSentence",
    "Noise",
    "Normalise",
    "Number",
    "PadSquare",
    "Parquet",
    "Pixels",
    "Pretrained",
    "RandomCrop",
    "Record",
    "Records",
    "Resize",
    "ResizeShortest",
    "ResizeWithin",
    "Rotate",
    "Scenes",
    "Source",
    "Span",
    "Squad",
    "Stamps",
    "Strings",
    "Subset",
    "Tags",
    "Text",
    "Tokenizer",
    "Transform",
    "WebDataset",
    "WordPiece",
    "describe",
    "strings",
]
