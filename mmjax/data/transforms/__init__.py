"""What may be done to a record. A new transform is one class in one of these files, one line in the table, one test."""

from mmjax.data.transforms.automatic import RandAugment, TrivialAugment
from mmjax.data.transforms.colour import ColourJitter, GaussianBlur, Noise, Normalise, RandomErasing
from mmjax.data.transforms.dropout import ModalityDropout
from mmjax.data.transforms.geometry import CenterCrop, Flip, PadSquare, RandomCrop, Resize, ResizeShortest, ResizeWithin, Rotate
from mmjax.data.transforms.markers import Markers
from mmjax.data.transforms.sounds import Gain, Shift, SoundNoise, Speed
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
    "rand_augment": RandAugment,
    "trivial_augment": TrivialAugment,
    "gaussian_blur": GaussianBlur,
    "noise": Noise,
    "random_erasing": RandomErasing,
    "normalise": Normalise,
    "caption": Caption,
    "next_sentence": NextSentence,
    "markers": Markers,
    "modality_dropout": ModalityDropout,
    "sound_noise": SoundNoise,
    "gain": Gain,
    "shift": Shift,
    "speed": Speed,
}

__all__ = [
    "TRANSFORMS",
    "Caption",
    "CenterCrop",
    "ColourJitter",
    "Flip",
    "Gain",
    "GaussianBlur",
    "Markers",
    "ModalityDropout",
    "NextSentence",
    "Noise",
    "Normalise",
    "PadSquare",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "Resize",
    "ResizeShortest",
    "ResizeWithin",
    "Rotate",
    "Shift",
    "SoundNoise",
    "Speed",
    "TrivialAugment",
]
