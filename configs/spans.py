"""Answers that stand in a passage, or that there is none: files of SQuAD's format (SQuAD 1 and 2, CMRC, DRCD, JSQuAD, KorQuAD).

    mmjax train spans --data.train.source.path train.json --data.validation.source.path dev.json

From nothing, small; for real questions start from a BERT: `model=load_extractor("runs/bert")`, `init_from="runs/bert"`,
`init_fresh=("heads_spans/*",)`, `Pretrained(...)`, max_length=384 and Span()'s own stride. For Chinese or Japanese give
SpanAnswers(unit="characters"). On the questions about scenes that `benchmarks/text_tasks.py` writes, in windows of 28 tokens:
F1 0.91 (0.21 by the most frequent answer), about 10 minutes on a 2-core Intel Xeon that others shared.
`mmjax predict RUN "a red three top left" --text --question "what colour is the three?"` answers.
"""

from mmjax.data import Data, Span, Squad, WordPiece
from mmjax.evaluate import SpanAnswers
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import TokenClassifier
from mmjax.objectives import ExtractSpan
from mmjax.train import AdamW, Checkpoint, Experiment, Task

LENGTH, WORDS = 128, 2000


def data(split: str) -> Data:
    span = Span(stride=32)  # a question may have 64 tokens, as in BERT's run_squad
    return Data(Squad(f"spans/{split}.json"), (), {"answers": span}, batch_size=64, max_length=LENGTH)


def experiment() -> Experiment:
    size = {"vocab_size": WORDS, "max_length": LENGTH, "width": 64, "depth": 2, "heads": 4, "unroll": True}
    text = TextTransformer(norm_placement="post", embed_norm=True, segments=2, **size)  # as BERT's
    return Experiment(
        model=Multimodal(encoders={"text": text}, heads={"spans": TokenClassifier(classes=2, transform=False)}),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=WordPiece(WORDS),
        tasks={"answers": Task(ExtractSpan())},
        optimizer=AdamW(learning_rate=2e-3, warmup_steps=100, weight_decay=0.01),
        steps=1500,
        evaluate={"answers": SpanAnswers(impossible=True)},
        evaluate_every=500,
        checkpoint=Checkpoint(every=500, best="answers/f1"),
    )
