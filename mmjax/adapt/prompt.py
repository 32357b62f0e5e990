"""Prompts: learned tokens among those that a tower reads."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.adapt.method import Given, Method
from mmjax.adapt.places import TABLE, Place
from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array

INITS = ("normal", "words", "uniform")
LAYERS = re.compile(r"encoders_[^/]+/stack/layers/attention/q/kernel$")  # the first that reads what comes into a layer


@dataclasses.dataclass(frozen=True)
class Prompt(Method):
    """n learned tokens that a tower reads among its own: before a text (prompt tuning, Lester 2021), within it (`after=1`:
    CoOp, Zhou 2022), or after an image's first tokens (VPT-shallow, Jia 2022, eq. 4).

    Usage: `adapt={"encoders_text/words/table": Prompt(n=16)}`; of what a pattern matches it takes the word tables of texts and
    the kernels of patches, so "encoders_image/*" is the one of images. The leaf `prompt_tokens` [n, D] lies there.

    With `deep` an image's layers have n tokens each, which take the place of what the layer before gave (VPT-deep, Jia 2022,
    eq. 5): `prompt_layers` [L, n, D], beside the layers' kernels of queries.

    In a text the virtual tokens have positions and move what follows, so that texts have to be shorter than the table of
    positions by n; in an image they have none. `Tokens.virtual` says where they stand.

    Attributes:
      n: how many.
      after: how many tokens of a text come before them; 0 for what writes texts. An image's come after its first tokens.
      init: what they begin with: `normal`, rows of the word table drawn at random (`words`), or `uniform` (an image's, within
        sqrt(6 / (numbers of a patch + D)), as VPT's).
      deviation: of `normal` (peft's is 1).
      ids: n rows of the word table to begin with instead: the ids of "a photo of a", for instance.
      deep: tokens of its own for every layer of an image tower.
    """

    n: int = setting(least=1, default=16)
    after: int = setting(least=0, default=0)
    init: str = "normal"
    deviation: float = setting(least=0, default=0.02)
    ids: tuple[int, ...] = setting(least=0, default=())
    deep: bool = False

    slot = "prompt"

    def __post_init__(self) -> None:
        check_ranges(self, "Prompt.")
        if self.init not in INITS:
            raise UserError(f"Prompt.init={self.init!r}: use one of {', '.join(INITS)}")
        if self.ids and len(self.ids) != self.n:
            raise UserError(f"Prompt.ids are {len(self.ids)} and n={self.n}: give as many")

    def takes(self, place: Place, table: bool) -> bool:
        return place.entry or (self.deep and LAYERS.match(place.path) is not None)

    def check_all(self, pattern: str, places: Sequence[Place]) -> None:
        if not self.deep:
            return
        rooms = [{place.path.split("/")[0] for place in places if place.entry is entry} for entry in (True, False)]
        if alone := sorted(rooms[0] ^ rooms[1]):
            raise UserError(
                f"adapt: {pattern!r} gives Prompt.deep a part of {alone[0]}; it takes the kernel of patches and the layers: "
                f"use '{alone[0]}/*'"
            )

    def check(self, place: Place, whole: bool) -> None:
        if self.deep and (place.kind == TABLE or not whole):
            what = "a text" if place.kind == TABLE else "some layers"
            raise UserError(f"Prompt.deep of {what} ({place.path}): it is of all layers of an image tower")
        if place.kind != TABLE:
            if self.after or self.ids or self.init == "words":
                raise UserError(f"Prompt of {place.path}: after, ids and init='words' are of texts; an image has no words")
            return
        if self.init == "uniform":
            raise UserError(f"Prompt of {place.path}: init='uniform' is of images; use normal, words or ids")
        if self.after and place.path.startswith("decoders_"):
            raise UserError(
                f"Prompt.after={self.after} of {place.path}: what writes texts takes a prompt before them alone: use 0"
            )
        if self.ids and max(self.ids) >= place.inputs[0]:
            raise UserError(f"Prompt.ids has {max(self.ids)}, and {place.path} has the rows 0 to {place.inputs[0] - 1}")

    @staticmethod
    def leaves(place: Place, given: Sequence[Given], kernel: Array, key: Array) -> dict[str, Any]:
        spec = given[0].method
        if spec.deep and place.entry:
            return {"prompt_room": jnp.zeros((spec.n, *place.outputs))}
        rows = spec.rows(place, kernel, key)
        if not place.entry:
            return {"prompt_layers": rows}
        if place.kind != TABLE:
            return {"prompt_tokens": rows}
        # Its length says where the prompt stands, and so is known where its numbers are not.
        return {"prompt_tokens": rows, "prompt_place": jnp.zeros(spec.after + 1, jnp.float32).at[spec.after].set(1.0)}

    def rows(self, place: Place, kernel: Array, key: Array) -> Array:
        """[L?, n, D] float32: what the tokens begin with."""
        width = place.outputs[0] if place.entry else place.inputs[0]
        shape = (*place.lead, self.n, width)
        if self.ids or self.init == "words":
            ids = jnp.asarray(self.ids) if self.ids else jax.random.randint(key, (self.n,), 0, place.inputs[0])
            return jnp.take(kernel, ids, axis=0).astype(jnp.float32)
        if self.init == "uniform":
            bound = math.sqrt(6 / ((math.prod(place.inputs) if place.entry else width) + width))
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        return self.deviation * jax.random.normal(key, shape)

    @staticmethod
    def names(place: Place, given: Sequence[Given]) -> tuple[str, ...]:
        if not given[0].method.deep:
            return ("prompt_tokens",)
        return () if place.entry else ("prompt_layers",)
