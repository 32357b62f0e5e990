"""Visual inspection: a photo of a part and what the operator wrote about it, to one defect; most parts have none.

    python examples/make_data.py inspection my/inspection
    mmjax train examples/inspection.py

The data, one JSON object a line (`label` may be left empty: no class; without `split` lines are split by a hash of the image):

    {"image": "images/0001.png", "text": "red ordered, no play, feels smooth", "label": "scratch", "split": "train"}
    {"image": "images/0002.png", "text": "nail catches, order says blue, sits firmly", "label": "good", "split": "test"}

1,000 steps took 2 minutes of processor time on an Intel Xeon (5 minutes where eight others shared its 2 cores), to an accuracy
of 0.990 and a macro F1 of 0.989 on the 1,000 test parts. Then

    mmjax evaluate runs/inspection --predictions said.jsonl        (per-class figures and the confusion matrix are printed)
    mmjax predict runs/inspection my/inspection/lines.jsonl --top_k 1
    mmjax train examples/inspection.py --workdir runs/by_image --model.heads.classes.input image     (or text: one part alone)
"""

from mmjax.data import Data, Manifest, Normalise, WordPiece
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import SingleStream
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.train import AdamW, Checkpoint, Experiment, Task

LINES = "my/inspection/lines.jsonl"
SIDE, WORDS, LENGTH = 32, 200, 24
WEIGHTS = (3.0, 1.0, 2.0, 1.0, 1.0)  # of crack, good, loose, scratch, wrong part: the alphabet's order, which the start says


def data(split: str) -> Data:
    return Data(
        Manifest(LINES, split, label_field="label"),
        (Normalise((0.5,) * 3, (0.25,) * 3),),  # photos of other sizes: a Resize((SIDE, SIDE)) before it
        batch_size=64 if split == "train" else 100,
        max_length=LENGTH,
    )


def experiment() -> Experiment:
    size = {"width": 64, "heads": 4, "unroll": True}
    return Experiment(
        model=Multimodal(
            encoders={
                "image": ViT(image_size=(SIDE, SIDE), patch=(8, 8), depth=2, **size),
                "text": TextTransformer(vocab_size=WORDS, max_length=LENGTH, depth=1, **size),
            },
            fusions={"both": SingleStream(depth=2, **size)},
            heads={"classes": Classifier(classes=5, input="both")},
        ),
        data={split: data(split) for split in ("train", "validation", "test")},
        tokenizer=WordPiece(WORDS),
        tasks={"classes": Task(Classification(class_weights=WEIGHTS))},
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, weight_decay=0.05, ema=0.99),
        steps=1000,
        evaluate={"report": Report()},
        evaluate_every=250,
        checkpoint=Checkpoint(every=250, best="report/macro_f1"),
    )
