"""A digit classifier by LoRA: the image encoder of a `digits` run stays as it is, thin matrices beside its kernels are trained.

    mmjax train digits
    mmjax train digits_lora                (or --init_from OTHER_RUN, --adapt.all-linear.r 4)

About 1 minute on 2 CPU cores.
"""

from mmjax.adapt import LoRA
from mmjax.data import Data, Digits, Normalise, Resize
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.heads import Classifier
from mmjax.nn.augment import ImageAugment
from mmjax.objectives import Classification
from mmjax.train import AdamW, Checkpoint, Experiment, Task


def data(split: str) -> Data:
    transforms = (Resize((16, 16), "bilinear"), Normalise((0.3,) * 3, (0.35,) * 3))
    return Data(Digits(split), transforms, batch_size=128 if split == "train" else 120)


def experiment() -> Experiment:
    return Experiment(
        model=Multimodal(
            encoders={"image": ViT(image_size=(16, 16), patch=(4, 4), width=64, depth=3, heads=4, unroll=True)},
            heads={"classes": Classifier(classes=10, input="image")},
            augment={"image": ImageAugment(rotate=10.0, shift=0.08, scale=(0.9, 1.1))},
        ),
        data={split: data(split) for split in ("train", "validation", "test")},
        tasks={"classes": Task(Classification(label_smoothing=0.1))},
        adapt={"all-linear": LoRA(r=8, alpha=16)},
        optimizer=AdamW(learning_rate=3e-3, warmup_steps=50, weight_decay=0.05, ema=0.99, train=("heads_*",)),
        steps=600,
        evaluate={"report": Report()},
        evaluate_every=100,
        checkpoint=Checkpoint(every=100, best="report/accuracy"),
        init_from="runs/digits",
    )
