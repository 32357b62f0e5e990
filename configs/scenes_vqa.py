"""Questions about scenes, answered in two ways: by choosing an answer (as ViLT does), and by writing one (as BLIP does).

    mmjax train scenes_vqa

About 9 minutes on 2 CPU cores, to 0.98 (see `benchmarks/scenes.py`). Captions teach the image encoder what there is: answers
are too few words for that, and with full weight they drown the captions' gradient. A patch is as large as a digit: a question
finds what it looks for. `mmjax predict RUN IMAGE --question "where is the three?"` chooses, `--decoder answer` writes.
"""

from mmjax.data import Data, Normalise, Scenes, Strings, Text, WordPiece
from mmjax.data.sources.language import ANSWERS
from mmjax.evaluate import Answers, Report
from mmjax.generate import Settings
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross
from mmjax.models.heads import Classifier
from mmjax.objectives import CausalLM, Classification
from mmjax.train import AdamW, Checkpoint, Experiment, Task

WORDS, QUESTION, ANSWER, CAPTION = 128, 12, 4, 28
SCENES = {"train": 1_000_000, "validation": 500, "test": 2000}


def data(split: str) -> Data:
    columns = {"text": Text(), "answer": Text(max_length=ANSWER), "caption": Text(max_length=CAPTION)}
    return Data(
        Scenes(split, SCENES[split], text="question"),
        (Normalise((0.2,) * 3, (0.25,) * 3),),
        batch_size=64 if split == "train" else 100,
        max_length=QUESTION,
        columns=columns if split == "train" else {**columns, "answers": Strings(of="answer")},
    )


def model() -> Multimodal:
    size = {"width": 128, "heads": 4, "unroll": True}
    text = {"vocab_size": WORDS, "depth": 1, **size}
    return Multimodal(
        encoders={
            "image": ViT(image_size=(32, 32), patch=(16, 16), depth=4, **size),
            "text": TextTransformer(max_length=QUESTION, **text),
        },
        fusions={"cross": Cross(depth=2, **size)},
        decoders={
            "answer": TextDecoder(writes="answer", context=("cross",), max_length=2 * ANSWER, **text),
            "caption": TextDecoder(writes="caption", context=("image",), max_length=2 * CAPTION, **text),
        },
        heads={"classes": Classifier(classes=len(ANSWERS), input="cross", pool="cls")},
    )


def experiment() -> Experiment:
    return Experiment(
        model=model(),
        data={split: data(split) for split in SCENES},
        tokenizer=WordPiece(WORDS),
        tasks={
            "caption": Task(CausalLM(text="caption")),
            "chosen": Task(Classification(), weight=0.02),
            "written": Task(CausalLM(decoder="answer", text="answer"), weight=0.02),
        },
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=200, weight_decay=0.05, ema=0.99),
        steps=3000,
        evaluate={
            "chosen": Report(),
            "written": Answers(decoder="answer", text="answer", settings=Settings(max_new_tokens=ANSWER)),
        },
        evaluate_every=500,
        checkpoint=Checkpoint(every=500, best="written/vqa_accuracy"),
    )
