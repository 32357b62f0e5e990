"""configs/digits.py at a size that compiles in seconds; a config file as well, which the command-line tests run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmjax.data import Caption, Data, Digits, Normalise, Strings, WordPiece
from mmjax.evaluate import Captions, ZeroShot
from mmjax.generate import Settings
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.objectives import CausalLM, Classification, Contrastive, MaskedLM, Matching
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import SGD, Checkpoint, Experiment, Log, Task
from mmjax.train.run import Run
from mmjax.train.setup import Setup, set_up

WORDS, LENGTH = 64, 12
TEMPLATES = ("a photo of the digit {}.", "the number {}.")
OBJECTIVES = {
    "contrastive": Contrastive(),
    "matching": Matching(),
    "masked_lm": MaskedLM(vocab_size=WORDS, mask_id=4, special_ids=(0, 1, 2, 3), mask_probability=0.3, fusion="cross"),
    "caption": CausalLM(),
    "classify": Classification(),
}
FOUR = ("contrastive", "matching", "masked_lm", "caption")
ONE = Mesh(data=1)
SIZE = {"width": 16, "heads": 2, "depth": 1, "mlp_width": 32}
TEXT = {"vocab_size": WORDS, "max_length": LENGTH}


def data(split: str = "train", batch_size: int = 16, **changes: Any) -> Data:
    transforms = (Normalise((0.3,) * 3, (0.35,) * 3), Caption(TEMPLATES))
    return Data(Digits(split), transforms, batch_size=batch_size, max_length=LENGTH, threads=0, **changes)


def vit(**changes: Any) -> ViT:
    return ViT(image_size=(8, 8), patch=(4, 4), **(SIZE | changes))


def model() -> Multimodal:
    """All that the four objectives of digits need."""
    return Multimodal(
        encoders={"image": vit(), "text": TextTransformer(**TEXT, **SIZE)},
        fusions={"dual": Dual(width=16), "cross": Cross(**SIZE)},
        decoders={"caption": TextDecoder(**TEXT, **SIZE)},
        heads={
            "match": Classifier(classes=2, input="cross", pool="cls"),
            "masked_lm": TokenClassifier(classes=WORDS, input="cross", tied_to="text"),
        },
    )


def small_model(**changes: Any) -> Multimodal:
    """One layer on images and a bag of words: enough for `contrastive` and `classify`, and compiled in a few seconds."""
    return Multimodal(
        encoders={"image": vit(**changes), "text": TextTransformer(**TEXT, **(SIZE | {"depth": 0}), positions="none")},
        fusions={"dual": Dual(width=16, project=())},
        heads={"classes": Classifier(classes=10, input="image")},
    )


def tasks(*names: str, data: str = "train") -> dict[str, Task]:
    return {name: Task(OBJECTIVES[name], data=data) for name in names}


def four(**changes: Any) -> Experiment:
    """The four objectives of digits."""
    return _with(changes, model=model(), tasks=tasks(*FOUR))


def experiment(**changes: Any) -> Experiment:
    """The two tasks of `small_model`, which is what most tests need."""
    return _with(changes, model=small_model(), tasks=tasks("contrastive", "classify"))


def captioner(**changes: Any) -> Experiment:
    """Writes of each digit, and is held against its caption; what it writes in training, of a quarter of the data."""
    whole, columns = model(), {"references": Strings(rows=1, length=64, of="text")}
    evaluate = {"captions": Captions(settings=Settings(max_new_tokens=6), share_in_training=0.25)}
    chosen = experiment(
        model=whole.copy(fusions={"dual": whole.fusions["dual"]}, heads={}),
        tasks=tasks("contrastive", "caption"),
        data={"train": data(), **{split: data(split, 96, columns=columns) for split in ("validation", "test")}},
        evaluate=evaluate,
    )
    return dataclasses.replace(chosen, **changes)


def _with(changes: dict[str, Any], **chosen: Any) -> Experiment:
    base = Experiment(
        data={"train": data(), "validation": data("validation", 96), "test": data("test", 96)},
        tokenizer=WordPiece(WORDS),
        optimizer=SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0),
        steps=6,
        evaluate={"prompted": ZeroShot(TEMPLATES)},
        checkpoint=Checkpoint(every=2),
        log=Log(every=1, tensorboard=False, progress=False),
        **chosen,
    )
    return dataclasses.replace(base, **changes)


def prepared(made: Experiment, mesh: Mesh = ONE) -> tuple[Setup, Callable[..., Any]]:
    """The setup of an experiment on a mesh, and its compiled step."""
    sizes = mesh.shape(1 if mesh == ONE else jax.device_count())
    built = mesh.build(jax.devices()[: int(np.prod(sizes))])
    with use_mesh(built):
        setup = set_up(made, Run("nowhere"), built)
        return setup, setup.compile_step(made.groups()[0])[0]


def host(tree: Any) -> Any:
    """A copy on the host, safe from donation."""
    return jax.tree.map(np.array, tree)


def assert_identical(a: Any, b: Any) -> None:
    """Two trees of arrays, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def single_device(patch: Any) -> None:
    """Make every mesh one of one device, whatever the machine has; `patch` is pytest's monkeypatch."""
    build = Mesh.build
    patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))


def states(experiment: Experiment, steps: int, mesh: Mesh = ONE) -> tuple[Any, Any, np.ndarray]:
    """The state on the host before the first step and after the last, and the losses."""
    setup, step = prepared(experiment, mesh)
    with use_mesh(setup.mesh):
        state = setup.init()
    first, losses = host(state), []
    for i in range(steps):
        state, figures = step(state, {"train": setup.place(setup.datasets["train"].batch(i))})
        losses.append(float(figures["loss"]))
    return first, host(state), np.array(losses)
