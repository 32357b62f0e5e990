"""What may be done to a record. A new transform is one class in one of these files, one line in the table, one test."""

from mmjax.data.transforms.colour import ColourJitter, Noise, Normalise
from mmjax.data.transforms.geometry import CenterCrop, Flip, PadSquare, RandomCrop, Resize, ResizeShortest, ResizeWithin, Rotate
from mmjax.data.transforms.markers import Markers
from mmjax.data.transforms.text import Caption, NextSentence

TRANSFORMS = {
    "resize": Resize,
    "resize_shortest": ResizeShortest,
    "resize_within": ResizeWithin,
    "pad_square": PadSquare,
    "center_crop": CenterCrop,
    "random_crop": RandomCrop,
    "flip": Flip,
    "rotate": Rotate,
    "colour_jitter": ColourJitter,
    "noise": Noise,
    "normalise": Normalise,
    "caption": Caption,
    "next_sentence": NextSentence,
    "markers": Markers,
}

__all__ = [
    "TRANSFORMS",
    "Caption",
    "CenterCrop",
    "ColourJitter",
    "Flip",
    "Markers",
    "NextSentence",
    "Noise",
    "Normalise",
    "PadSquare",
    "RandomCrop",
    "Resize",
    "ResizeShortest",
    "ResizeWithin",
    "Rotate",
]
