"""A teacher as a config names it, and what must be known of one before a step is traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from mmjax.core.config import from_json, setting, to_json
from mmjax.core.errors import UserError, nearest
from mmjax.core.types import Params
from mmjax.models.casting import cast_params
from mmjax.models.forward import VARIABLES
from mmjax.models.multimodal import Multimodal, init_model

DTYPES = ("bfloat16", "float32")
Normalised = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model that objectives ask: `forward.teacher(NAME)`. Its parameters stay as they are.

    Attributes:
      path: a run, whose best checkpoint is taken (what adapts it is merged), or a HuggingFace folder. It is read when the run
        begins; going on needs it no more.
      dtype: its parameters are kept in, and it computes in: `bfloat16` or `float32`. Norms are float32.
      inputs: modality of the teacher -> that of the student's data which it takes in its place, with its parts: a second column
        of larger images, another name. The others it takes under their own names.
    """

    path: str = setting(everyday=True, path=True)
    dtype: str = "bfloat16"
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("path='': a teacher is a run or a HuggingFace folder; name one")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype!r}: use one of {', '.join(DTYPES)}{nearest(self.dtype, DTYPES)}")


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a teacher.

    Attributes:
      model: as its own config says it.
      classes: head -> the names of its classes in the order of its logits, where they are known.
      texts: modality -> the fingerprint of the tokenizer whose ids it was trained on, where that is known.
      images: modality -> the mean and deviation that its pixels were normalised with, where they are known.
      numbers: heads whose logits are no classes that exclude each other: they give numbers, or several classes.
      read: (mesh, dtype, the first names of those that are kept) -> the parameters, in their places on the mesh; None where
        only a run that has kept them goes on.
    """

    model: Multimodal
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Mapping[str, Normalised] = dataclasses.field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    read: Callable[[jax.sharding.Mesh, str, Collection[str]], Params] | None = None

    def to_json(self) -> dict[str, Any]:
        """All but `read`, for a file."""
        return {
            "model": to_json(self.model),
            "classes": {head: list(names) for head, names in self.classes.items()},
            "texts": dict(self.texts),
            "numbers": list(self.numbers),
            "images": {name: [list(mean), list(deviation)] for name, (mean, deviation) in self.images.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], find: Callable[[str], Any]) -> Known:
        """The reverse; `find` imports a module by its name."""
        return Known(
            model=from_json(data["model"], "model", find),
            classes={head: tuple(names) for head, names in data["classes"].items()},
            texts=dict(data["texts"]),
            numbers=tuple(data.get("numbers", ())),
            images={name: (tuple(mean), tuple(deviation)) for name, (mean, deviation) in data["images"].items()},
        )

    def shapes(self, dtype: str) -> Params:
        """Shapes and dtypes of what `read` gives."""

        def made() -> Params:
            return kept_params(*init_model(self.model, jax.random.key(0)), dtype)

        return jax.eval_shape(made)


def kept_params(params: Params, variables: Mapping[str, Any], dtype: str) -> Params:
    """A teacher's parameters as they are kept: cast, without those that no forward pass reads, and with what modules keep."""
    own = {name: tree for name, tree in params.items() if name not in (VARIABLES, "unread")}
    cast = cast_params(own, jax.numpy.dtype(dtype))
    return {**cast, VARIABLES: dict(variables)} if variables else dict(cast)
