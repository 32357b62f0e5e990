"""A text encoder like BERT's, from nothing: whole words are hidden and found again, several texts a row (Devlin, Cui 2019).

    mmjax train text_pretraining
    mmjax train text_pretraining --data.train.source manifest --data.train.source.path texts.jsonl \\
        --data.validation.source manifest --data.validation.source.path texts.jsonl --data.validation.source.split validation

A line is {"text": ...}; without a file it learns from the captions of `Scenes`, which need no download. Chinese words are those
of jieba (`pip install "mmjax[chinese]"`): `--data.train.columns.text.words jieba --data.validation.columns.text.words jieba`.

Then `mmjax train texts --init_from runs/text_pretraining --tokenizer none` begins with it, and so does `labels` with
`--model.encoders.text.max_length 48` as well; `mmjax convert to-hf` writes a BertForMaskedLM. For real texts give WIDTH,
WORDS and LENGTH a BERT's size (768, 30,000, 512).
On captions that it has not read: 0.69 of the hidden tokens found (which colour and which digit it is can only be guessed),
perplexity 1.97; 9 minutes on a 2-core Intel Xeon that others shared.
"""

from mmjax.data import Data, Packed, Scenes, Text, WordPiece
from mmjax.evaluate import Perplexity
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import TokenClassifier
from mmjax.objectives import MaskedLM
from mmjax.train import AdamW, Checkpoint, Experiment, Task

LENGTH, WORDS, WIDTH = 48, 2000, 64  # those of `texts`
SCENES = {"train": 100_000, "validation": 1000}


def data(split: str) -> Data:
    packing = Packed(length=128) if split == "train" else None
    words = {"text": Text(words="tokenizer")}
    return Data(Scenes(split, SCENES[split], pictures=False), (), words, batch_size=32, max_length=LENGTH, packing=packing)


def experiment() -> Experiment:
    size = {"vocab_size": WORDS, "max_length": LENGTH, "width": WIDTH, "depth": 3, "heads": 4, "unroll": True}
    text = TextTransformer(norm_placement="post", embed_norm=True, segments=2, **size)  # as BERT's
    hidden = MaskedLM(vocab_size=WORDS, mask_id=4, special_ids=(0, 1, 2, 3), whole_words=True)
    return Experiment(
        model=Multimodal(encoders={"text": text}, heads={"masked_lm": TokenClassifier(classes=WORDS, tied_to="text")}),
        data={split: data(split) for split in SCENES},
        tokenizer=WordPiece(WORDS),
        tasks={"words": Task(hidden)},
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100, weight_decay=0.01),
        steps=1000,
        evaluate={"hidden": Perplexity(hidden)},
        evaluate_every=500,
        checkpoint=Checkpoint(every=500, best="hidden/perplexity", mode="min"),
    )
