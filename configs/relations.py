"""The relation that one entity of a text has to another, both between markers (Baldini Soares 2019).

    mmjax train relations --data.train.source.path relations.jsonl --data.validation.source.path relations.jsonl

A line is {"text": ..., "head": [first character, the one after the last], "tail": [...], "label": ...}. From nothing, small;
for real texts start from a BERT as `texts` says, with Pretrained(path, special=MARKERS) where MARKERS are `[unused0]` to
`[unused3]`, which its vocabulary has. On the texts about scenes that `benchmarks/text_tasks.py` writes (where is one digit from
another?): accuracy 1.00 (0.33 by the most frequent), a few minutes on a 2-core Intel Xeon that others shared.
`mmjax predict RUN "[E1] Anna [/E1] lives in [E2] Rome [/E2]" --text` says it of a new text, which has the markers already.
"""

from mmjax.data import Data, Manifest, Markers, WordPiece
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.train import AdamW, Checkpoint, Experiment, Task

LENGTH, WORDS, CLASSES, WIDTH = 40, 2000, 5, 64
MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")


def data(split: str) -> Data:
    source = Manifest("relations.jsonl", split, fields={"head": "head", "tail": "tail"})
    return Data(source, (Markers(tokens=MARKERS),), batch_size=64, max_length=LENGTH)


def experiment() -> Experiment:
    size = {"vocab_size": WORDS, "max_length": LENGTH, "width": WIDTH, "depth": 3, "heads": 4, "unroll": True}
    text = TextTransformer(norm_placement="post", embed_norm=True, segments=2, **size)  # as BERT's
    head = Classifier(classes=CLASSES, input="text", pool="cls", hidden_width=WIDTH)
    return Experiment(
        model=Multimodal(encoders={"text": text}, heads={"classes": head}),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=WordPiece(WORDS, special=MARKERS),
        tasks={"relations": Task(Classification())},
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=100, weight_decay=0.01),
        steps=500,
        evaluate={"relations": Report()},
        evaluate_every=250,
        checkpoint=Checkpoint(every=250, best="relations/accuracy"),
    )
