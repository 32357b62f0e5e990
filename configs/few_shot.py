"""A few stamps of each of seven classes that the towers of `stamps` have never seen; here both are fine-tuned by prompts.

    mmjax train stamps
    mmjax train few_shot --data.train.source.shots 4

About 1 minute on 2 CPU cores. It also gives, of the same shots and in its own evaluators, the zero-shot accuracy of what was
trained (`prompted`, an ensemble of five prompts) and Tip-Adapter's (`tip`). Other methods are flags, which docs/few_shot.md
lists: CoOp, a linear probe, Tip-Adapter-F, and the mean of this run and the one that it starts from (WiSE-FT).
"""

from mmjax.data import Data, Normalise, PadSquare, Resize, Stamps, Subset
from mmjax.evaluate import TipAdapter, ZeroShot
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.nn.augment import ImageAugment
from mmjax.objectives import Prompted
from mmjax.train import AdamW, Experiment, Task

HELD_OUT = (
    *("animals/birds", "animals/mammals", "food/fruit", "plants/flowers"),
    *("symbols/alphabets", "symbols/money", "town/houses"),
)
TEMPLATES = ("a stamp of {}.", "a picture of {}.", "a drawing of {}.", "this is {}.", "{}.")
SIDE, WORDS, LENGTH = 48, 512, 32


def data(split: str) -> Data:
    return Data(
        # 16 stamps of the smallest class to learn from.
        Subset(Stamps(split=split, level=2, fractions=(0.64, 0.0, 0.36)), HELD_OUT, shots=4 if split == "train" else 0),
        (PadSquare((255, 255, 255)), Resize((SIDE, SIDE)), Normalise((0.8,) * 3, (0.3,) * 3)),
        batch_size=32 if split == "train" else 50,
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
        data={split: data(split) for split in ("train", "test")},
        tasks={"classes": Task(Prompted(TEMPLATES))},
        optimizer=AdamW(learning_rate=2e-4, warmup_steps=10, weight_decay=0.05),
        steps=100,
        evaluate={"prompted": ZeroShot(TEMPLATES, data="test"), "tip": TipAdapter(TEMPLATES, data="test")},
        init_from="runs/stamps",
    )
