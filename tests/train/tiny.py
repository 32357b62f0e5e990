"""configs/digits.py at a size that compiles in seconds; a config file by itself, as the command-line tests use it."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.data import Caption, Data, Digits, Normalise, WordPiece
from mmjax.evaluate import ZeroShot
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.objectives import CausalLM, Classification, Contrastive, MaskedLM, Matching
from mmjax.train import SGD, Checkpoint, Experiment, Log, Task

WORDS, LENGTH = 64, 12
TEMPLATES = ("a photo of the digit {}.", "the number {}.")
OBJECTIVES = {
    "contrastive": Contrastive(),
    "matching": Matching(),
    "masked_lm": MaskedLM(vocab_size=WORDS, mask_id=4, special_ids=(0, 1, 2, 3), mask_probability=0.3, fusion="cross"),
    "caption": CausalLM(),
    "classify": Classification(),
}
FOUR = ("contrastive", "matching", "masked_lm", "caption")


def data(split: str = "train", batch_size: int = 16, **changes: Any) -> Data:
    transforms = (Normalise((0.3,) * 3, (0.35,) * 3), Caption(TEMPLATES))
    return Data(Digits(split), transforms, batch_size=batch_size, max_length=LENGTH, threads=0, **changes)


def model(small: bool = False, **changes: Any) -> Multimodal:
    """All that the four objectives of digits need; `small` is one image and one text tower, for contrastive and classify."""
    size = {"width": 16, "heads": 2, "depth": 1, "mlp_width": 32} | changes
    text = {"vocab_size": WORDS, "max_length": LENGTH, **size}
    towers = {"image": ViT(image_size=(8, 8), patch=(4, 4), **size), "text": TextTransformer(**text)}
    classes = Classifier(classes=10, input="image")
    if small:
        return Multimodal(encoders=towers, fusions={"dual": Dual(width=16, project=())}, heads={"classes": classes})
    return Multimodal(
        encoders=towers,
        fusions={"dual": Dual(width=16), "cross": Cross(**size)},
        decoders={"caption": TextDecoder(**text)},
        heads={
            "match": Classifier(classes=2, input="cross", pool="cls"),
            "masked_lm": TokenClassifier(classes=WORDS, input="cross", tied_to="text"),
            "classes": classes,
        },
    )


def tasks(*names: str, data: str = "train") -> dict[str, Task]:
    return {name: Task(OBJECTIVES[name], data=data) for name in names}


def experiment(*objectives: str, **changes: Any) -> Experiment:
    """The tiny experiment on some of the objectives (default: the four of digits), with fields changed."""
    return dataclasses.replace(
        Experiment(
            model=model(),
            data={"train": data(), "validation": data("validation", 96), "test": data("test", 96)},
            tokenizer=WordPiece(WORDS),
            tasks=tasks(*objectives or FOUR),
            optimizer=SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0, momentum=0.9),
            steps=6,
            evaluate={"prompted": ZeroShot(TEMPLATES)},
            evaluate_every=0,
            checkpoint=Checkpoint(every=2),
            log=Log(every=1, tensorboard=False, progress=False),
        ),
        **changes,
    )
