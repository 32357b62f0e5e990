"""A dataset in memory, a tokenizer of words and a model of a few matrices, for the tests of evaluators."""

import dataclasses
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.types import Loss, Tokens
from mmjax.evaluate.evaluation import Evaluation

VOCABULARY = 64
INPUTS = {"classes": "image", "value": "image", "both": "heard"}
SPECS = {f"heads.{head}": types.SimpleNamespace(input=name) for head, name in INPUTS.items()}


@dataclasses.dataclass
class FakeDataset:
    """Columns of [N, ...]; the last batch is padded by repeating its last row, as the pipeline does it."""

    columns: dict
    batch_size: int = 4
    classes: tuple = ()
    unreadable: tuple = ()

    @property
    def size(self):
        return len(next(iter(self.columns.values())))

    def epoch(self, rows=None):
        for start in range(0, self.size, self.batch_size):
            row = np.arange(start, start + self.batch_size)
            kept = np.minimum(row, self.size - 1)
            batch = {name: np.asarray(column)[kept] for name, column in self.columns.items()}
            yield batch | {"index": (row - start).astype(np.int32), "valid": (row < self.size) & ~np.isin(row, self.unreadable)}


class FakeTokenizer:
    """One id a word, its checksum; 0 is padding."""

    def encode(self, texts, max_length):
        ids = np.zeros((len(texts), max_length), np.int32)
        for row, text in enumerate(texts):
            words = [zlib.crc32(word.encode()) % (VOCABULARY - 1) + 1 for word in text.split()][:max_length]
            ids[row, : len(words)] = words
        return {"ids": ids, "mask": ids > 0}


class FakeForward:
    """`image` is [B, F] -> one token; text is a table lookup; an embedding is the unit-length mean of the tokens."""

    train = lacking = False

    def __init__(self, params, batch):
        self.params, self.batch = params, batch

    def complete(self, ask=None):
        return None  # no row lacks anything

    def encode(self, modality, inputs=None, key=""):
        batch = {**self.batch, **(inputs or {})}
        if modality == "text":
            return Tokens(self.params["table"][batch["text"]], batch["text_mask"])
        embeddings = (batch[modality] @ self.params[modality])[:, None]
        return Tokens(embeddings, jnp.ones(embeddings.shape[:2], bool))

    def embed(self, modality, fusion="dual", inputs=None, key=""):
        tokens = self.encode(modality, inputs, key)
        weights = tokens.mask.astype(jnp.float32)
        mean = (tokens.embeddings * weights[..., None]).sum(axis=1) / weights.sum(axis=1, keepdims=True)
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)

    def fuse(self, fusion, tokens, key):
        parts = list(tokens.values())
        return Tokens(
            jnp.concatenate([part.embeddings for part in parts], axis=1),
            jnp.concatenate([part.mask for part in parts], axis=1),
        )

    def spec(self, path):
        return SPECS[path]

    def modalities(self, name):
        return ("image", "audio") if name == "heard" else (name,)

    def head(self, head, tokens=None, key=""):
        if tokens is None:
            names = self.modalities(SPECS[f"heads.{head}"].input)
            parts = {name: self.encode(name) for name in names}
            tokens = parts[names[0]] if len(names) == 1 else self.fuse("heard", parts, key)
        return tokens.embeddings.sum(axis=1) @ self.params[head]


@dataclasses.dataclass(frozen=True)
class UnigramLoss:
    """Cross entropy of text under one distribution over words, the simplest language model."""

    needs = ("text",)
    in_batch = False

    def __call__(self, forward, batch, rng):
        real = (batch["text_mask"] & batch["valid"][:, None]).astype(jnp.float32)
        log_likelihood = jax.nn.log_softmax(forward.params["unigram"])[batch["text"]]
        right = (batch["text"] == forward.params["unigram"].argmax()).astype(jnp.float32)
        return Loss(-(log_likelihood * real).sum(), real.sum(), {"accuracy": ((right * real).sum(), real.sum())})


def make_params(seed=0, features=6, width=8, classes=3):
    """Parameters of `FakeForward`, as numpy."""
    rng = np.random.default_rng(seed)
    shapes = {"image": (features, width), "table": (VOCABULARY, width), "classes": (width, classes), "unigram": (VOCABULARY,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def make_evaluation(columns, batch_size=4, classes=(), bind=FakeForward, tokenizer=None, place=None, seed=0):
    """An evaluation of one dataset, `validation`."""
    return Evaluation(
        bind=bind,
        datasets={"validation": FakeDataset(columns, batch_size, classes)},
        texts={"text": (tokenizer or FakeTokenizer(), 8)},
        place=place or jax.device_put,
        seed=seed,
    )


def unit(x):
    """Rows of unit length."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
