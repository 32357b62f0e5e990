"""Your own images: a folder of class folders, contrastive captions from the folders' names.

    mmjax train folder --data.train.source.path PHOTOS --data.validation.source.path PHOTOS --data.test.source.path PHOTOS

or, shorter, with the folder in an environment variable:  PHOTOS=path mmjax train folder

A small ViT-S-like model from scratch at 128 pixels; start from a checkpoint with --init_from RUN.
"""

import os

from mmjax.data import Caption, Data, Flip, Folder, Normalise, RandomCrop, Resize, WordPiece
from mmjax.evaluate import Retrieval, ZeroShot
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.objectives import Contrastive
from mmjax.train import AdamW, Checkpoint, Experiment, Task

PHOTOS = os.environ.get("PHOTOS", "photos")
SIZE = (128, 128)
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "there is a {} here.", "{}")


def data(split: str) -> Data:
    geometry = (RandomCrop(SIZE), Flip()) if split == "train" else (Resize(SIZE),)
    transforms = (*geometry, Normalise((0.5,) * 3, (0.5,) * 3), Caption(TEMPLATES))
    return Data(Folder(PHOTOS, split), transforms, batch_size=64, max_length=16, bad_record_limit=0.05)


def experiment() -> Experiment:
    size = {"width": 384, "heads": 6}
    return Experiment(
        model=Multimodal(
            encoders={
                "image": ViT(image_size=SIZE, patch=(16, 16), depth=6, **size),
                "text": TextTransformer(vocab_size=1000, max_length=16, depth=3, **size),
            },
            fusions={"dual": Dual(width=384)},
        ),
        data={split: data(split) for split in ("train", "validation", "test")},
        tokenizer=WordPiece(1000),
        tasks={"contrastive": Task(Contrastive())},
        optimizer=AdamW(learning_rate=5e-4, warmup_steps=100, weight_decay=0.05),
        steps=1000,
        evaluate={"prompted": ZeroShot(TEMPLATES), "retrieval": Retrieval()},
        evaluate_every=200,
        checkpoint=Checkpoint(every=200, best="prompted/accuracy"),
    )
