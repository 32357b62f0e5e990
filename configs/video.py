"""Moving digits: which way they go, and how many there are; two tasks on one encoder of tubelets.

    mmjax train video

About 2 minutes on 2 CPU cores, to 0.99 of the directions and 0.97 of the counts of digits that it has not seen.
"""

from mmjax.data import Class, Data, Moving, Normalise, Video
from mmjax.data.sources.moving import COUNTS, DIRECTIONS
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.encoders import VideoTransformer
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.train import AdamW, Checkpoint, Experiment, Task

NAMES = {"direction": DIRECTIONS, "count": COUNTS}


def data(split: str, count: int) -> Data:
    columns = {"video": Video(frames=8), **{key: Class(names) for key, names in NAMES.items()}}
    return Data(Moving(split, count), (Normalise((0.2,) * 3, (0.25,) * 3, field="video"),), columns, batch_size=64)


def encoder() -> VideoTransformer:
    return VideoTransformer(
        frames=8, image_size=(32, 32), tubelet=2, patch=(8, 8), width=64, depth=3, heads=4, final_norm=False, unroll=True
    )


def experiment() -> Experiment:
    return Experiment(
        model=Multimodal(
            encoders={"video": encoder()},
            heads={key: Classifier(len(names), input="video", pool_norm=True) for key, names in NAMES.items()},
        ),
        data={"train": data("train", 20_000), "validation": data("validation", 500), "test": data("test", 1000)},
        tasks={key: Task(Classification(head=key, label=key)) for key in NAMES},
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=40, weight_decay=0.05),
        steps=240,
        evaluate={key: Report(head=key, label=key) for key in NAMES},
        evaluate_every=120,
        checkpoint=Checkpoint(every=120, best="count/accuracy"),
    )
