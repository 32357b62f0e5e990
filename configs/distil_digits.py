"""A digit classifier a quarter as wide as its teacher, with a tenth of the labels; the teacher speaks of all digits.

    mmjax train digits
    mmjax train digits_finetune
    mmjax train distil_digits              (or --teachers.teacher.path OTHER_RUN)

About 1 minute on 2 CPU cores. benchmarks/distil.py says what the teacher is worth.
"""

from mmjax.data import Data, Digits, HideLabels, Normalise, Resize
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.heads import Classifier
from mmjax.nn.augment import ImageAugment
from mmjax.objectives import Classification, DistilLogits
from mmjax.train import AdamW, Checkpoint, Experiment, Task, Teacher


def data(split: str) -> Data:
    transforms = (Resize((16, 16), "bilinear"), Normalise((0.3,) * 3, (0.35,) * 3))
    if split == "train":
        return Data(HideLabels(Digits(split), keep=0.1), transforms, batch_size=128)
    return Data(Digits(split), transforms, batch_size=120)


def experiment() -> Experiment:
    return Experiment(
        model=Multimodal(
            encoders={"image": ViT(image_size=(16, 16), patch=(4, 4), width=16, depth=3, heads=4, unroll=True)},
            heads={"classes": Classifier(classes=10, input="image")},
            augment={"image": ImageAugment(rotate=10.0, shift=0.08, scale=(0.9, 1.1))},
        ),
        data={split: data(split) for split in ("train", "validation", "test")},
        tasks={"classes": Task(Classification()), "distil": Task(DistilLogits(temperature=2.0))},
        teachers={"teacher": Teacher("runs/digits_finetune", dtype="float32")},
        optimizer=AdamW(learning_rate=3e-3, warmup_steps=50, weight_decay=0.05, ema=0.99),
        steps=600,
        evaluate={"report": Report()},
        evaluate_every=100,
        checkpoint=Checkpoint(every=100, best="report/accuracy"),
    )
