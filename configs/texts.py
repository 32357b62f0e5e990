"""A class of a text (its sentiment, its topic), or of a pair of texts (does the second follow from the first?).

    mmjax train texts --data.train.source.path texts.jsonl --data.validation.source.path texts.jsonl

A line is {"text": ..., "label": ...}, of pairs {"text": ..., "text_pair": ..., "label": ...}; of a pair that is too long the
longer text is cut. From nothing, small; for real texts start from a BERT: `model=load_classifier("runs/bert", classes=3)`,
`init_from="runs/bert"`, `init_fresh=("heads_classes/*",)`, `Pretrained(...)`. On the pairs about scenes that
`benchmarks/text_tasks.py` writes: accuracy 1.00
(0.33 by the most frequent), about 5 minutes on a 2-core Intel Xeon that others shared.
`mmjax predict RUN "a red three top left" --text --pair "there is a one"` says it of a new pair.
"""

from mmjax.data import Data, Manifest, WordPiece
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.train import AdamW, Checkpoint, Experiment, Task

LENGTH, WORDS, CLASSES, WIDTH = 48, 2000, 3, 64


def data(split: str) -> Data:
    return Data(Manifest("texts.jsonl", split), batch_size=64, max_length=LENGTH)


def experiment() -> Experiment:
    size = {"vocab_size": WORDS, "max_length": LENGTH, "width": WIDTH, "depth": 3, "heads": 4, "unroll": True}
    text = TextTransformer(norm_placement="post", embed_norm=True, segments=2, **size)  # as BERT's
    head = Classifier(classes=CLASSES, input="text", pool="cls", hidden_width=WIDTH)
    return Experiment(
        model=Multimodal(encoders={"text": text}, heads={"classes": head}),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=WordPiece(WORDS),
        tasks={"classes": Task(Classification())},
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, weight_decay=0.01),
        steps=1500,
        evaluate={"classes": Report()},
        evaluate_every=500,
        checkpoint=Checkpoint(every=500, best="classes/accuracy"),
    )
