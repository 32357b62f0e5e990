"""BLIP base at its published size (Li 2022): ViT-B/16 at 224 pixels, BERT-base text; contrastive, matching and captioning.

    mmjax train blip_base --data.train.source.path captions.jsonl --data.validation.source.path captions.jsonl

The text encoder's layers read the image for matching and run alone for the contrastive loss, as published. Unlike the published
model, the captioner shares nothing with the text encoder, and there is no momentum teacher. Sized for a TPU v4-32 or larger. No
metric has been measured here.
"""

from mmjax.data import Data, Flip, Manifest, Normalise, RandomCrop, Resize, WordPiece
from mmjax.evaluate import Perplexity, Retrieval
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier
from mmjax.objectives import CausalLM, Contrastive, Matching
from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task

SIZE, WORDS, LENGTH = (224, 224), 30524, 40
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def data(split: str) -> Data:
    geometry = (RandomCrop(SIZE, scale=(0.5, 1.0)), Flip()) if split == "train" else (Resize(SIZE),)
    source = Manifest("captions.jsonl", split)
    return Data(
        source, (*geometry, Normalise(MEAN, STD)), batch_size=2880 if split == "train" else 240, max_length=LENGTH, workers=8
    )


def experiment() -> Experiment:
    size = {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "remat": "cheap"}
    bert = {**size, "norm_placement": "post", "norm_epsilon": 1e-12}
    words = {"vocab_size": WORDS, "max_length": 512, "embed_norm": True, **bert}
    dual = Dual(width=256, pool={"image": "cls", "text": "cls"}, bias=True, through={"text": "cross"}, scale_init=1 / 0.07)
    return Experiment(
        model=Multimodal(
            encoders={
                "image": ViT(image_size=SIZE, patch=(16, 16), cls_token=True, **size),
                "text": TextTransformer(**{**words, "depth": 0}),  # the words; the layers are the fusion's
            },
            fusions={"dual": dual, "cross": Cross(**bert)},
            decoders={"caption": TextDecoder(**words)},
            heads={"match": Classifier(classes=2, input="cross", pool="cls")},
        ),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=WordPiece(WORDS),
        tasks={
            "contrastive": Task(Contrastive()),
            "matching": Task(Matching()),
            "caption": Task(CausalLM(label_smoothing=0.1)),
        },
        optimizer=AdamW(learning_rate=3e-4, warmup_steps=3_000, weight_decay=0.05),
        steps=100_000,
        evaluate={"retrieval": Retrieval(), "caption": Perplexity(CausalLM())},
        evaluate_every=5_000,
        checkpoint=Checkpoint(every=2_500, best="retrieval/mean_recall"),
        log=Log(every=100),
    )
