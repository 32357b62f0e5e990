"""Runs that are really trained: every class of HuggingFace's that we convert, on the same few pictures, texts and classes.

Where one of our objectives trains the class, that one does it; `Everything` trains the others.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmjax.convert.coverage import HOW
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.data import Data, Manifest, Normalise, Pretrained, Resize, Text, Tokenizer, WordPiece
from mmjax.models import Multimodal
from mmjax.objectives import CausalLM, Classification, Contrastive, MaskedImage, MaskedLM
from mmjax.train import AdamW, Experiment, Log, Task

TEXTS = ["a good and long film about cats", "bad cats", "a very long film"]
ANSWERS = ["long cats", "bad", "a film"]
VOCABULARY, ROOM = 60, 16  # at most; and tokens of a text
PLACE = "<image>"  # a token that stands for one of the image's, in LLaVA's texts


@functools.cache
def tokenizer() -> Tokenizer:
    """What training on the manifest learns: pad 0, unknown 1, first 2, last 3."""
    return WordPiece(VOCABULARY).train([*TEXTS, *ANSWERS])


@functools.cache
def with_places() -> Tokenizer:
    """The same, and one token more."""
    own = WordPiece(VOCABULARY).train([*TEXTS, *ANSWERS]).huggingface
    own.add_special_tokens({"additional_special_tokens": [PLACE]})
    return Tokenizer(own)


@functools.cache
def pictures() -> list[Image.Image]:
    """Three images of one size."""
    pixels = np.random.default_rng(3).integers(0, 255, (3, 24, 24, 3)).astype(np.uint8)
    return [Image.fromarray(x) for x in pixels]


def names(classes: int) -> list[str]:
    """Of so many classes, in the order of their labels."""
    return [f"kind {i}" for i in range(classes)]


@dataclasses.dataclass(frozen=True)
class Everything:
    """All that a model says, pulled towards one: [B]-weighted squares, so that every class can be trained.

    Attributes:
      encoders, heads, decoders: their names.
    """

    encoders: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()

    in_batch: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        said = [forward.tokens(name).embeddings for name in self.encoders]
        said += [forward.head(name, forward.tokens(forward.spec(f"heads.{name}").input), key=name) for name in self.heads]
        for name in self.decoders:
            writes = forward.spec(f"decoders.{name}").writes
            written = {key: batch[key] for key in (writes, f"{writes}_mask") if key in batch}
            context = {one: forward.tokens(one) for one in forward.spec(f"decoders.{name}").context}
            said.append(forward.decode(name, written, context, key=name))
        return Loss(sum(jnp.mean(jnp.square(x.astype(jnp.float32) - 1)) for x in said), jnp.ones((), jnp.float32), {})


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and itself upside down: [2, H, W, 3]."""

    def __call__(self, record: Any, rng: np.random.Generator, records: Any) -> Any:
        return {**record, "image": np.stack([record["image"], record["image"][::-1]])}


def objective(name: str, model: Multimodal) -> Any:
    """What trains a class by its HuggingFace name."""
    how, own = HOW.get(name, ""), tokenizer()
    if how in ("text-classification", "image-classification"):
        return Classification()
    if how == "fill-mask":
        return MaskedLM(vocab_size=own.vocab_size, mask_id=own.mask_id, special_ids=own.special_ids, mask_probability=0.5)
    if how == "zero-shot-image-classification":
        return Contrastive("sigmoid" if name.startswith("Siglip") else "softmax")
    if how == "generate (an answer)":
        return CausalLM("answer", text="answer")
    if how == "generate (a text of a text)":
        return CausalLM("target", text="target")
    if how in ("text-generation", "image-text-to-text"):
        return CausalLM()
    if name == "ViTMAEForPreTraining":
        return MaskedImage(patch=tuple(model.encoders["image"].patch))
    return Everything(tuple(model.encoders), tuple(model.heads), tuple(model.decoders))


def write_rows(home: Path, classes: int, keys: tuple[str, ...], before: str) -> Path:
    """A manifest with these of pictures, texts and answers, and with classes; `before` stands before each text."""
    for i, image in enumerate(pictures()):
        image.save(home / f"{i}.png")
    whole = [
        {
            "image": f"{i % 3}.png",
            "text": before + TEXTS[i % 3],
            "answer": ANSWERS[i % 3],
            "target": ANSWERS[i % 3],
            "label": kind,
            "split": "train",
        }
        for i, kind in enumerate(names(classes) * 8)
    ]
    file = home / "rows.jsonl"
    file.write_text("\n".join(json.dumps({key: row[key] for key in (*keys, "label", "split")}) for row in whole))
    return file


def transforms(size: tuple[int, int] | None) -> tuple[Any, ...]:
    return (Resize(size, "bilinear"), Normalise()) if size else ()


def experiment(
    name: str, model: Multimodal, home: Path, size: tuple[int, int] | None, start: Path | None, places: int = 0
) -> Experiment:
    """Twenty steps on the manifest, which this writes.

    Args:
      name: of its HuggingFace class.
      size: (height, width) of its images; None without.
      start: what it starts from, with its tokenizer; None for parameters and a tokenizer of its own.
      places: how many tokens of the image stand before each text.
    """
    trained = objective(name, model)
    classes = model.heads["classes"].classes if isinstance(trained, Classification) else 3
    texts = reads_texts(model)
    said = [trained.text] if isinstance(trained, CausalLM) and trained.text != "text" else []
    keys = (*["image"] * (size is not None), *["text"] * texts, *said)
    source = Manifest(str(write_rows(home, classes, keys, PLACE * places)), fields={name: name for name in said})
    return Experiment(
        model=model,
        data={
            "train": Data(
                source,
                (*transforms(size), *[Pair()] * (size is not None and getattr(model.encoders["image"], "images", 1) > 1)),
                batch_size=8,
                max_length=room(model) + places,
                columns={name: Text() for name in said},
            )
        },
        tasks={"task": Task(trained)},
        tokenizer=None if start is not None or not texts else vocabulary(home, places),
        init_from="" if start is None else str(start),
        optimizer=AdamW(learning_rate=1e-2, warmup_steps=0),
        steps=20,
        log=Log(every=1, tensorboard=False, progress=False),
    )


def vocabulary(home: Path, places: int) -> WordPiece | Pretrained:
    """Learned from the manifest; opened from a folder where a token stands for the image's."""
    if not places:
        return WordPiece(VOCABULARY)
    with_places().save(home / "tokens")
    return Pretrained(str(home / "tokens"))


def reads_texts(model: Multimodal) -> bool:
    return any(hasattr(part, "vocab_size") for part in (*model.encoders.values(), *model.decoders.values()))


def room(model: Multimodal) -> int:
    """Tokens of a text: where padding counts, as SigLIP's, as many as its pipelines pad to."""
    return ROOM if all(getattr(part, "mask_padding", True) for part in model.encoders.values()) else 64
