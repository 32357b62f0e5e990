"""Two small towers that meet in one space, on Tux Paint's stamps. Seven classes are held out, for `few_shot`.

    mmjax train stamps

The stamps are Debian's package tuxpaint-stamps-default; where it is not installed but unpacked, add
`--data.train.source.source.path FOLDER --data.validation.source.source.path FOLDER`. About 10 minutes on 2 CPU cores.

Held out are all folders of 25 stamps and more, so that 16 can be learnt from and others remain; what is left are 391 stamps. A
text is a stamp's caption, its folder or both. Folders are named from their top (`animals`, `animals/insects`), so that the text
tower learns what is common to those that begin alike, which a new one (`animals/birds`) is then known by.
"""

from mmjax.data import BPE, Caption, Data, Normalise, PadSquare, Resize, Stamps, Subset
from mmjax.evaluate import Retrieval
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.nn.augment import ImageAugment
from mmjax.objectives import Contrastive
from mmjax.train import AdamW, Checkpoint, Experiment, Task

HELD_OUT = (
    *("animals/birds", "animals/mammals", "food/fruit", "plants/flowers"),
    *("symbols/alphabets", "symbols/money", "town/houses"),
)
TEMPLATES = ("a stamp of {}.", "a picture of {}.", "a drawing of {}.", "this is {}.", "{}.")
BOTH = ("a stamp of {}: {text}", "this is {}. {text}", "{}: {text}")
SIDE, WORDS, LENGTH = 48, 512, 32


def data(split: str) -> Data:
    pixels = (PadSquare((255, 255, 255)), Resize((SIDE, SIDE)), Normalise((0.8,) * 3, (0.3,) * 3))
    return Data(
        Subset(Stamps(split=split, level=2, fractions=(0.9, 0.1, 0.0)), but=HELD_OUT),
        (*pixels, Caption((*TEMPLATES, *BOTH), replaces=0.75, separator="/")) if split == "train" else pixels,
        batch_size=64 if split == "train" else 50,
        max_length=LENGTH,
    )


def experiment() -> Experiment:
    size = {"width": 128, "heads": 4, "dropout": 0.1, "unroll": True}
    return Experiment(
        model=Multimodal(
            encoders={
                "image": ViT(image_size=(SIDE, SIDE), patch=(8, 8), depth=4, **size),
                "text": TextTransformer(vocab_size=WORDS, max_length=2 * LENGTH, depth=2, **size),
            },
            fusions={"dual": Dual(width=128)},
            augment={"image": ImageAugment(rotate=15.0, shift=0.1, scale=(0.8, 1.2), flip=0.5, brightness=0.2, contrast=0.2)},
        ),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=BPE(WORDS),
        tasks={"contrastive": Task(Contrastive(label_smoothing=0.1))},
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, weight_decay=0.1, ema=0.99),
        steps=1500,
        evaluate={"retrieval": Retrieval()},
        evaluate_every=500,
        checkpoint=Checkpoint(every=500),
    )
