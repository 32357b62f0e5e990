"""A small two-tower experiment that the tests of this folder plan."""

from mmjax.data import Data, Digits, Manifest, Normalise, WordPiece
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.objectives import Contrastive
from mmjax.parallel.mesh import Mesh
from mmjax.train import AdamW, Experiment, Task

WIDTH, LENGTH, MESH = 128, 16, Mesh()


def experiment(image_depth=2, text_depth=2, batch_size=64, mesh=MESH, path="no/such/captions.jsonl"):
    size = {"width": WIDTH, "heads": 2}
    text = {"vocab_size": 256, "max_length": LENGTH}
    return Experiment(
        model=Multimodal(
            encoders={
                "image": ViT(image_size=(32, 32), patch=(8, 8), depth=image_depth, **size),
                "text": TextTransformer(**text, depth=text_depth, **size),
            },
            fusions={"dual": Dual(width=WIDTH, pool={"image": "mean", "text": "mean"})},
        ),
        data={
            "train": Data(Manifest(path), (Normalise((0.5,) * 3, (0.5,) * 3),), batch_size=batch_size, max_length=LENGTH),
            "test": Data(Digits("test"), (), batch_size=6),
        },
        tokenizer=WordPiece(256),
        tasks={"contrastive": Task(Contrastive())},
        optimizer=AdamW(ema=0.99),
        mesh=mesh,
        steps=3600,
    )
