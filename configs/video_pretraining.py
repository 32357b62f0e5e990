"""Moving digits without their labels: an encoder of tubelets learns to paint what it is not shown (VideoMAE, Tong 2022).

    mmjax train video_pretraining
    mmjax train video --data.train.source.count 200 --init_from runs/video_pretraining

About 2 minutes on 2 CPU cores. So short it does not pay: with it 200 labels gave no better directions than without.
"""

from mmjax.data import Data, Moving, Normalise, Video
from mmjax.evaluate import HeldOut
from mmjax.models import Multimodal
from mmjax.models.decoders import PixelDecoder
from mmjax.models.encoders import VideoTransformer
from mmjax.objectives import MaskedImage
from mmjax.train import AdamW, Checkpoint, Experiment, Task

PAINT = MaskedImage(patch=(8, 8), tubelet=2, mask_ratio=0.75, norm_pixels=False, modality="video")
SIZE = {"frames": 8, "image_size": (32, 32), "tubelet": 2, "patch": (8, 8), "heads": 4, "unroll": True}


def data(split: str, count: int) -> Data:
    transforms = (Normalise((0.2,) * 3, (0.25,) * 3, field="video"),)
    return Data(Moving(split, count), transforms, {"video": Video(frames=8)}, batch_size=64)


def experiment() -> Experiment:
    return Experiment(
        model=Multimodal(
            encoders={"video": VideoTransformer(width=64, depth=3, final_norm=False, **SIZE)},
            decoders={
                "pixels": PixelDecoder(width=48, depth=2, context=("video",), writes="video", positions="sequence", **SIZE)
            },
        ),
        data={"train": data("train", 20_000), "validation": data("validation", 500)},
        tasks={"paint": Task(PAINT)},
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=40, weight_decay=0.05),
        steps=500,
        evaluate={"paint": HeldOut(PAINT)},
        evaluate_every=250,
        checkpoint=Checkpoint(every=250, best="paint/loss", mode="min"),
    )
