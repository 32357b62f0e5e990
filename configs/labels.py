"""Any number of classes of a text: topics, emotions, symptoms, each there or not by itself.

    mmjax train labels --data.train.source.path labels.jsonl --data.validation.source.path labels.jsonl

A line is {"text": ..., "labels": [...]}; the names stand in NAMES. It goes to HuggingFace with `problem_type`
multi_label_classification, so that its pipeline gives the same sigmoids. From nothing, small. On the texts about scenes that
`benchmarks/text_tasks.py` writes (which colours are in the lower half?): micro F1 1.00
(0.44 by the same colours for all), a few minutes on a 2-core Intel Xeon that others shared.
"""

from mmjax.data import Classes, Data, Manifest, WordPiece
from mmjax.evaluate import MultiLabels
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier
from mmjax.objectives import MultiLabel
from mmjax.train import AdamW, Checkpoint, Experiment, Task

LENGTH, WORDS, WIDTH = 32, 2000, 64
NAMES = ("red", "green", "blue", "yellow", "white")


def data(split: str) -> Data:
    source = Manifest("labels.jsonl", split, fields={"labels": "labels"})
    return Data(source, (), {"labels": Classes(NAMES)}, batch_size=64, max_length=LENGTH)


def experiment() -> Experiment:
    size = {"vocab_size": WORDS, "max_length": LENGTH, "width": WIDTH, "depth": 3, "heads": 4, "unroll": True}
    text = TextTransformer(norm_placement="post", embed_norm=True, segments=2, **size)  # as BERT's
    head = Classifier(classes=len(NAMES), input="text", pool="cls", hidden_width=WIDTH)
    return Experiment(
        model=Multimodal(encoders={"text": text}, heads={"classes": head}),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=WordPiece(WORDS),
        tasks={"labels": Task(MultiLabel())},
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=100, weight_decay=0.01),
        steps=500,
        evaluate={"labels": MultiLabels()},
        evaluate_every=250,
        checkpoint=Checkpoint(every=250, best="labels/micro_f1"),
    )
