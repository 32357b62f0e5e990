"""LoRA on a language model of 7 billion parameters (Llama 2's shape), its base kept in int8: a copy on each chip of 16 GB.

    mmjax convert from-hf LLAMA_FOLDER runs/llama
    mmjax train llama_lora --data.train.source.path texts.jsonl --data.validation.source.path texts.jsonl

Sized for v5e:2x2, texts of 2,048 tokens; `mmjax plan llama_lora --topology v5e:2x2` says what a step takes there without
the data or the folder. The result goes to peft: `mmjax convert to-peft RUN DIR`. No metric has been measured here.
"""

from mmjax.adapt import LoRA
from mmjax.data import Data, Manifest
from mmjax.evaluate import Perplexity
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.objectives import CausalLM
from mmjax.train import AdamW, Checkpoint, Experiment, Task


def data(split: str) -> Data:
    return Data(Manifest("texts.jsonl", split), batch_size=8, max_length=2048)


def experiment() -> Experiment:
    return Experiment(
        model=Multimodal(
            encoders={},
            decoders={
                "caption": TextDecoder(
                    vocab_size=32000,
                    max_length=4096,
                    width=4096,
                    depth=32,
                    heads=32,
                    mlp_width=11008,
                    activation="swiglu",
                    norm="rmsnorm",
                    norm_epsilon=1e-5,
                    positions="rotary",
                    context=(),
                    tied=False,
                    qkv_bias=False,
                    bias=False,
                    remat="full",
                )
            },
        ),
        data={split: data(split) for split in ("train", "validation")},
        tasks={"caption": Task(CausalLM())},
        adapt={"all-linear": LoRA(r=16, alpha=32)},
        frozen_dtype="int8",
        optimizer=AdamW(learning_rate=2e-4, warmup_steps=100, weight_decay=0.0),
        steps=1000,
        evaluate={"perplexity": Perplexity(CausalLM())},
        evaluate_every=200,
        checkpoint=Checkpoint(every=200, best="perplexity/perplexity", mode="min"),
        init_from="runs/llama",
    )
