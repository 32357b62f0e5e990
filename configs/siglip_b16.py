"""SigLIP-B/16 at its published size (Zhai 2023): 224 pixels, 64 tokens, a vocabulary of 32,000, sigmoid loss.

    mmjax train siglip_b16 --data.train.source.path captions.jsonl --data.validation.source.path captions.jsonl

Sized for v5e:16x16, 128 examples a chip; on fewer chips `mmjax plan siglip_b16 --topology ... --search` finds what fits. The
published run saw 40 billion pairs, batch 32,768. No metric has been measured here.
"""

from mmjax.data import BPE, Data, Flip, Manifest, Normalise, RandomCrop, Resize
from mmjax.evaluate import Retrieval
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.objectives import Contrastive
from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task

SIZE, WORDS, LENGTH = (224, 224), 32000, 64


def data(split: str) -> Data:
    geometry = (RandomCrop(SIZE, scale=(0.9, 1.0)), Flip()) if split == "train" else (Resize(SIZE),)
    transforms = (*geometry, Normalise((0.5,) * 3, (0.5,) * 3))
    source = Manifest("captions.jsonl", split)
    return Data(source, transforms, batch_size=32768 if split == "train" else 1024, max_length=LENGTH, workers=8)


def experiment() -> Experiment:
    tower = {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "activation": "gelu_tanh", "remat": "cheap"}
    return Experiment(
        model=Multimodal(
            encoders={
                "image": ViT(image_size=SIZE, patch=(16, 16), **tower),
                "text": TextTransformer(vocab_size=WORDS, max_length=LENGTH, **tower),
            },
            fusions={
                "dual": Dual(
                    width=768,
                    pool={"image": "attention", "text": "last"},
                    project=("text",),
                    bias=True,
                    heads=12,
                    mlp_width=3072,
                    activation="gelu_tanh",
                    scale_init=10.0,
                    bias_init=-10.0,
                )
            },
        ),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=BPE(WORDS),
        tasks={"contrastive": Task(Contrastive(kind="sigmoid"))},
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=20_000, weight_decay=1e-4, b2=0.95),
        steps=1_220_000,
        evaluate={"retrieval": Retrieval()},
        evaluate_every=10_000,
        checkpoint=Checkpoint(every=5_000, best="retrieval/mean_recall"),
        log=Log(every=100),
    )
