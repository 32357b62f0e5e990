"""Translation with a picture: English captions of scenes into Chinese, with the digits' names masked in the English.

    mmjax train translate

The text tells how many digits there are, their places and their colours, the picture alone which they are. About 10 minutes on
2 CPU cores. Without the picture, `--model.decoders.chinese.context text`, the digits can only be guessed.
`mmjax predict RUN lines.jsonl` translates lines such as {"image": "a.png", "text": "a red [MASK] top left"}.
"""

from mmjax.data import Characters, Data, Normalise, Scenes, Strings, Text, WordPiece
from mmjax.evaluate import Captions
from mmjax.generate import Settings
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.objectives import CausalLM
from mmjax.train import AdamW, Checkpoint, Experiment, Task

WORDS, CHARACTERS = 128, 64
ENGLISH, CHINESE = 28, 42  # four phrases of five words or nine characters, what joins them, and both ends
SCENES = {"train": 1_000_000, "validation": 500, "test": 2000}


def data(split: str) -> Data:
    columns = {"text": Text(), "chinese": Text(tokenizer="chinese", max_length=CHINESE)}
    return Data(
        Scenes(split, SCENES[split], text="masked"),
        (Normalise((0.2,) * 3, (0.25,) * 3),),
        batch_size=64 if split == "train" else 100,
        max_length=ENGLISH,
        columns=columns if split == "train" else {**columns, "references": Strings(of="chinese")},
    )


def experiment() -> Experiment:
    size = {"width": 128, "heads": 4, "unroll": True}
    text = {"depth": 1, "positions": "relative", **size}
    return Experiment(
        model=Multimodal(
            encoders={
                "image": ViT(image_size=(32, 32), patch=(8, 8), depth=4, **size),
                "text": TextTransformer(vocab_size=WORDS, max_length=ENGLISH, **text),
            },
            decoders={
                "chinese": TextDecoder(
                    vocab_size=CHARACTERS,
                    context=("image", "text"),
                    writes="chinese",
                    start_token=0,  # that of padding
                    max_length=2 * CHINESE,
                    **text,
                )
            },
        ),
        data={split: data(split) for split in SCENES},
        tokenizer=WordPiece(WORDS),
        tokenizers={"chinese": Characters(CHARACTERS)},
        tasks={"translate": Task(CausalLM("chinese", text="chinese"))},
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=200, weight_decay=0.05, ema=0.99),
        steps=2000,
        evaluate={
            "translations": Captions(
                decoder="chinese", text="chinese", scores=("exact_match",), settings=Settings(max_new_tokens=CHINESE)
            )
        },
        evaluate_every=500,
        checkpoint=Checkpoint(every=500, best="translations/exact_match"),
    )
