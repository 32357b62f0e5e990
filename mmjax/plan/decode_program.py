"""The program that writes texts (`generate.decode`): what is asked of it, the shapes of its inputs; traced, and lowered."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.core.types import Batch, Params
from mmjax.generate import Rules, decode
from mmjax.generate.settings import Settings
from mmjax.models import Multimodal, param_shapes
from mmjax.models.casting import cast_params
from mmjax.models.decoders import writes_texts
from mmjax.models.forward import BoundForward, spliced_tokens
from mmjax.models.parts import example_of, key_of
from mmjax.parallel.mesh import batch_sharding
from mmjax.parallel.rules import shardings
from mmjax.plan.depths import map_stacks

END, PAD = 1, 0  # whichever they are, the program does as much


@dataclasses.dataclass(frozen=True)
class Asked:
    """`--decode BATCH,PROMPT,NEW`.

    Attributes:
      batch: texts that are written at once, on all chips together.
      prompt: tokens of each prompt, places of an image among them.
      new: tokens that are written after each.
    """

    batch: int
    prompt: int
    new: int

    @property
    def slots(self) -> int:
        """Tokens that the cache has room for in each text."""
        return self.prompt + self.new

    def __str__(self) -> str:
        return f"{self.batch},{self.prompt},{self.new}"


def asked(word: str) -> Asked:
    """`8,128,64` -> what is asked. Raises `UserError` for anything else."""
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*,[1-9]\d*", word):
        raise UserError(f"--decode {word}: use BATCH,PROMPT,NEW, three whole numbers from 1 up, for instance --decode 8,128,64")
    return Asked(*map(int, word.split(",")))


def writer(model: Multimodal) -> str:
    """The name of the decoder that writes texts. Raises `UserError` for a model without one."""
    for name, part in model.decoders.items():
        if writes_texts(part):
            return name
    rooms = {"encoders": model.encoders, "fusions": model.fusions, "decoders": model.decoders, "heads": model.heads}
    has = ", ".join(f"{room} {', '.join(parts)}" for room, parts in rooms.items() if parts)
    raise UserError(
        f"--decode: no decoder writes texts, the model has {has}; use a config with a TextDecoder in model.decoders"
    )


@dataclasses.dataclass(frozen=True)
class Traced:
    """What the traced program says.

    Attributes:
      params, cast: the shapes of the parameters as they are kept and as they are used.
      parts: the names of the parameters' first level that the program reads.
      context: slots of the context's own keys and values; 0 for none.
      prefill_flops, token_flops: of all texts.
    """

    params: Any
    cast: Any
    dtype: str
    parts: tuple[str, ...]
    context: int
    prefill_flops: int
    token_flops: int


def trace(model: Multimodal, name: str, ask: Asked) -> Traced:
    """Trace the reading of the prompts and of one token more, by the plain attention, which computes nothing twice."""
    dtype = "bfloat16" if model.dtype == "auto" else model.dtype
    model = map_stacks(model, lambda stack: {"attention": "plain", "remat": "none"}).copy(dtype=dtype)
    spec, params = model.decoders[name], param_shapes(model)
    cast = jax.eval_shape(lambda params: cast_params(params, jnp.dtype(dtype)), params)
    batch = inputs(model, name, ask.batch)
    forward = BoundForward(model, {}, {})
    read = {part for one in spec.context for part in (one.partition(":")[0], *forward.modalities(one))}
    if hasattr(spec, "place") and (places := spliced_tokens(model, params, batch, name)) >= ask.prompt:
        raise UserError(
            f"--decode {ask}: a prompt holds the {places} tokens of its {spec.context[0]}: use {places + 1} or more"
        )

    def context(params: Any, batch: Any) -> Any:
        forward = BoundForward(model, params, batch)
        return {one: forward.tokens(one) for one in spec.context} or None

    def begin(params: Any, batch: Any, ids: Any) -> Any:
        own, there = cast_params(params, jnp.dtype(dtype)), jnp.ones(ids.shape, bool)
        return model.apply({"params": own}, name, ids, there, ids, context(params, batch), method="begin")

    def step(params: Any, real: Any, seen: Any, cache: Any, ids: Any, slot: Any) -> Any:
        return model.apply({"params": params}, name, ids, real, ids, seen, cache, slot, method="step")

    def shape(*dims: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype)

    attended = jax.eval_shape(lambda params, batch: spec.attended(context(params, batch)), params, batch)
    _, cache = jax.eval_shape(begin, params, batch, shape(ask.batch, ask.slots))  # as long as it will be
    seen = None if attended is None else attended[1]
    return Traced(
        params,
        cast,
        dtype,
        (f"decoders_{name}", *(f"{room}_{part}" for part in sorted(read) for room in ("encoders", "fusions"))),
        0 if attended is None else attended[1].shape[1],
        count_flops(begin, params, batch, shape(ask.batch, ask.prompt)),
        count_flops(step, cast, shape(ask.batch, ask.slots, dtype=bool), seen, cache, shape(ask.batch), shape()),
    )


def inputs(model: Multimodal, name: str, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what a decoder's context is encoded from: each encoder's example, a text as long as it may be."""
    forward, found = BoundForward(model, {}, {}), {}
    for modality in {m: 0 for one in model.decoders[name].context for m in forward.modalities(one)}:
        encoder = model.encoders[modality]
        for part, example in jax.eval_shape(lambda: example_of(encoder)).items():  # noqa: B023
            dims = (rows, encoder.max_length) if hasattr(encoder, "vocab_size") else (rows, *example.shape[1:])
            found[key_of(modality, part)] = jax.ShapeDtypeStruct(dims, example.dtype)
    return found


def lower_decode(model: Multimodal, mesh: jax.sharding.Mesh, ask: Asked) -> jax.stages.Lowered:
    """Greedy decoding of texts that may end early, on the current mesh, from parameters as a run keeps them."""
    name, params, rows = writer(model), param_shapes(model), batch_sharding(mesh)

    def write(params: Params, batch: Batch, ids: Any, mask: Any) -> Any:
        return decode(model, params, name, batch, ids, mask, Rules(Settings(max_new_tokens=ask.new), (END,), PAD))

    def placed(leaf: Any, sharding: Any = rows) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(placed, params, shardings(params, mesh))
    batch = {key: placed(leaf) for key, leaf in inputs(model, name, ask.batch).items()}
    prompts = (jax.ShapeDtypeStruct((ask.batch, ask.prompt), dtype, sharding=rows) for dtype in (jnp.int32, jnp.bool_))
    return jax.jit(write).lower(params, batch, *prompts)
