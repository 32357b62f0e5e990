"""Rung 1: from files to batches, on the host. No jax in here, and no model.

A record goes source -> transforms -> pipeline; `types.py` says what a record is, `pipeline.py` what a batch is.
"""

from mmjax.data.arrays import Array, Number, Pixels
from mmjax.data.audio import Audio
from mmjax.data.batches import Batches
from mmjax.data.bins import Fill
from mmjax.data.buckets import Buckets
from mmjax.data.classes import Class, Classes
from mmjax.data.clip import Clip
from mmjax.data.columns import COLUMNS
from mmjax.data.dataset import Dataset
from mmjax.data.inspect import describe
from mmjax.data.onward import OnwardRecords
from mmjax.data.packing import PACKINGS, Packed
from mmjax.data.pipeline import Data
from mmjax.data.sound import Recording
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
    Grouped,
    HideLabels,
    Manifest,
    Mix,
    Moving,
    Parquet,
    Scenes,
    Spoken,
    Squad,
    Stamps,
    Streamed,
    Subset,
    WebDataset,
)
from mmjax.data.spans import Span
from mmjax.data.strings import Strings, strings
from mmjax.data.tags import Tags
from mmjax.data.texts import Text
from mmjax.data.tokenizers import BPE, TOKENIZERS, Characters, Pretrained, Tokenizer, WordPiece, Words
from mmjax.data.transforms import (
    TRANSFORMS,
    Caption,
    CenterCrop,
    ColourJitter,
    Flip,
    Gain,
    GaussianBlur,
    Markers,
    ModalityDropout,
    NextSentence,
    Noise,
    Normalise,
    PadSquare,
    RandAugment,
    RandomCrop,
    RandomErasing,
    Resize,
    ResizeShortest,
    ResizeWithin,
    Rotate,
    Shift,
    SoundNoise,
    Speed,
    TrivialAugment,
)
from mmjax.data.types import BadRecordError, Record, Records, Source, Transform
from mmjax.data.video import Video

__all__ = [
    "BPE",
    "COLUMNS",
    "PACKINGS",
    "SOURCES",
    "TFDS",
    "TOKENIZERS",
    "TRANSFORMS",
    "Array",
    "ArrayRecord",
    "Arrow",
    "Audio",
    "BadRecordError",
    "Balanced",
    "Batches",
    "Buckets",
    "Caption",
    "CenterCrop",
    "Characters",
    "Class",
    "Classes",
    "Clip",
    "Coco",
    "ColourJitter",
    "Conll",
    "Data",
    "Dataset",
    "Digits",
    "Fill",
    "Flip",
    "Folder",
    "Gain",
    "GaussianBlur",
    "Grouped",
    "HideLabels",
    "Manifest",
    "Markers",
    "Mix",
    "ModalityDropout",
    "Moving",
    "NextSentence",
    "Noise",
    "Normalise",
    "Number",
    "OnwardRecords",
    "Packed",
    "PadSquare",
    "Parquet",
    "Pixels",
    "Pretrained",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "Record",
    "Recording",
    "Records",
    "Resize",
    "ResizeShortest",
    "ResizeWithin",
    "Rotate",
    "Scenes",
    "Shift",
    "SoundNoise",
    "Source",
    "Span",
    "Speed",
    "Spoken",
    "Squad",
    "Stamps",
    "Streamed",
    "Strings",
    "Subset",
    "Tags",
    "Text",
    "Tokenizer",
    "Transform",
    "TrivialAugment",
    "Video",
    "WebDataset",
    "WordPiece",
    "Words",
    "describe",
    "strings",
]
