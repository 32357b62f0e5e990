"""What writing texts costs: bytes of the cache, the time of the prompts and of a token, by the roofline. Nothing is compiled.

A turn of `generate.decode` reads each weight of the decoder once, whatever the batch, and every slot of the cache, empty ones
among them (Pope 2022, section 2). Activations, and the latency of collectives, are not counted. What XLA keeps in on-chip
memory between turns (up to about 100 MB) is counted as if it were read from HBM: `docs/tpu.md` has what the compiler says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, match_any
from mmjax.models import Multimodal
from mmjax.parallel.mesh import BATCH, fit
from mmjax.plan.decode_program import Asked, trace, writer
from mmjax.plan.estimate import bytes_a_chip

TABLES = ("*/words/table", "*/position/table", "*/segment/table")  # of which a token looks up a row
BEFORE = ("*/cross_attention/[kv]/*", "*/project_in/*", "*/project_out/*")  # of what the prompts and the context are read by
LOGITS = 4  # bytes of one: float32


@dataclasses.dataclass(frozen=True)
class Work:
    """What the prompts or one token of each text take. Bytes are of one chip.

    Attributes:
      flops: of the busiest chip.
      traffic: bytes across HBM, by what they are.
      collectives: `opcode axis` -> bytes sent.
    """

    flops: float
    traffic: Mapping[str, float]
    collectives: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What is known of writing texts before it is timed.

    Attributes:
      decoder: its name.
      dtype: that it computes in, which is the cache's.
      mesh: axis -> size.
      weights: bytes of the decoder that a token reads, all chips together.
      cache: bytes of keys and values of all layers and texts, all chips together, and of those `context`'s own.
      memory: bytes of a chip: `parameters` as they are kept (float32), `weights` the decoder's, which the program
        makes: in the compute dtype, layers apart; `cache`.
      prefill, token: what the prompts take, and one token of each text.
    """

    decoder: str
    dtype: str
    mesh: Mapping[str, int]
    asked: Asked
    weights: int
    cache: Mapping[str, int]
    memory: Mapping[str, int]
    prefill: Work
    token: Work


def decoding(model: Multimodal, mesh: Mapping[str, int], ask: Asked) -> Decoding:
    """Count what is asked on a mesh of axis -> size.

    Raises:
      UserError: a model that writes no text, or not so long ones; a batch that does not divide over the mesh.
    """
    name = writer(model)
    spec, ways = model.decoders[name], math.prod(mesh[axis] for axis in BATCH)
    _check(name, spec, ask, ways, mesh["tensor"])
    traced = trace(model, name, ask)
    kept = {f"params/{path}": leaf for path, leaf in leaves_by_path(traced.params).items()}
    cast = {f"params/{path}": leaf for path, leaf in leaves_by_path(traced.cast).items()}
    rooms = (f"params/decoders_{name}/", *[f"params/encoders_{spec.words_of}/words/"] * bool(spec.words_of))
    own = {path: leaf for path, leaf in cast.items() if path.startswith(rooms)}
    rows, tensor, size = ask.batch // ways, mesh["tensor"], jnp.dtype(traced.dtype).itemsize
    cache = {"text": _cache(spec, ask.batch, ask.slots, size), "context": _cache(spec, ask.batch, traced.context, size)}
    parts = math.prod(_ways((ask.batch, spec.kv_heads or spec.heads), mesh))
    cache_here = sum(cache.values()) // parts
    gathered = dict(mesh) | {"fsdp": 1}  # a layer's weights are whole along fsdp when they are used
    read = sum(_read(path, leaf, spec, rows, gathered) for path, leaf in own.items())
    copied = {path for path, leaf in own.items() if leaf.dtype != jnp.float32 or "/layers/" in path}
    needed = {path for path in cast if path.split("/")[1] in traced.parts}
    once = sum(bytes_a_chip(path, cast[path], gathered) for path in needed)
    apart = sum(bytes_a_chip(path, own[path], gathered) for path in copied)
    logits = 2 * LOGITS * rows * _words_here(spec, tensor)  # written, and read by what chooses a token
    again = 1 + 1 / mesh["fsdp"] if mesh["fsdp"] > 1 else 0  # a gathered weight is read in part and written before it is used
    return Decoding(
        decoder=name,
        dtype=traced.dtype,
        mesh=dict(mesh),
        asked=ask,
        weights=sum(_read(path, leaf, spec, ask.batch, {}) for path, leaf in own.items()),
        cache=cache,
        memory={
            "parameters": sum(bytes_a_chip(path, leaf, mesh) for path, leaf in kept.items()),
            "weights": sum(bytes_a_chip(path, own[path], mesh) for path in copied),
            "cache": cache_here,
        },
        prefill=Work(
            traced.prefill_flops / (ways * tensor * mesh["sequence"]),
            {
                "parameters": sum(bytes_a_chip(path, kept[path], mesh) for path in needed),
                # In the compute dtype made and read; the decoder's once more, when its layers are laid apart for the turns.
                "weights": (2 * once if traced.dtype != "float32" else 0) + 2 * apart,
                "cache": (cache["text"] * ask.prompt // ask.slots + cache["context"]) // parts,
            },
            _sent(spec, rows * ask.prompt / mesh["sequence"], once, mesh, size, traced.context > 0),
        ),
        token=Work(
            traced.token_flops / (ways * tensor),
            {"weights": read * (1 + again), "cache": cache_here, "logits": logits},
            _sent(spec, rows, read, mesh, size, traced.context > 0),
        ),
    )


def _check(name: str, spec: Any, ask: Asked, ways: int, tensor: int) -> None:
    path, most = f"model.decoders.{name}", spec.max_length
    for field in ("heads", "kv_heads"):
        if getattr(spec, field) % tensor:
            raise UserError(f"{path}.{field}={getattr(spec, field)} does not divide over mesh.tensor={tensor}")
    if ask.slots > most:
        least = f"at most {most - ask.prompt} new tokens" if ask.prompt < most else f"a prompt shorter than {most}"
        raise UserError(
            f"--decode {ask}: a prompt of {ask.prompt} and {ask.new} new tokens are more than "
            f"{path}.max_length={most}: use {least}"
        )
    if ask.batch % ways:
        raise UserError(
            f"--decode {ask}: a batch of {ask.batch} does not divide over {ways} devices; use a multiple of {ways}, or split "
            f"less by --mesh.data and --mesh.fsdp and more by --mesh.tensor"
        )


def _cache(spec: Any, batch: int, slots: int, size: int) -> int:
    """Bytes of keys and values, all layers."""
    head_width = spec.head_width or spec.width // spec.heads
    return 2 * spec.depth * batch * slots * (spec.kv_heads or spec.heads) * head_width * size


def _ways(shape: tuple[int, int], mesh: Mapping[str, int]) -> list[int]:
    """How many ways texts and key heads of the cache are split, as `nn.Attention` constrains them."""
    split = fit(P(BATCH, "tensor"), shape, dict(mesh))
    return [math.prod(mesh[axis] for axis in ((e,) if isinstance(e, str) else e or ())) for e in split]


def _read(path: str, leaf: Any, spec: Any, rows: int, axes: Mapping[str, int]) -> int:
    """Bytes of a parameter that a turn reads: none, a row for each text, or the whole."""
    if match_any(BEFORE, path):
        return 0
    whole = bytes_a_chip(path, leaf, axes)
    looked_up = match_any(TABLES, path) and not (spec.tied and match_any(TABLES[:1], path))
    return min(whole, rows * leaf.shape[-1] * leaf.dtype.itemsize) if looked_up else whole


def _words_here(spec: Any, tensor: int) -> int:
    """Of the vocabulary, those whose logits a chip makes."""
    return spec.vocab_size // (1 if spec.vocab_size % tensor else tensor)


def _sent(spec: Any, tokens: float, weights: float, mesh: Mapping[str, int], size: int, crosses: bool) -> dict[str, float]:
    """What a chip sends: over `tensor` each layer's two sums (Shoeybi 2019, section 3), three where it reads a context, and
    that of the looked-up words; over `fsdp` the weights."""
    tensor, fsdp = mesh["tensor"], mesh["fsdp"]
    sums = (2 + crosses) * spec.depth + (_words_here(spec, tensor) < spec.vocab_size)
    sent = {
        "all-reduce tensor": 2 * (tensor - 1) / tensor * sums * tokens * spec.width * size,
        "all-gather fsdp": (fsdp - 1) / fsdp * weights,
    }
    return {name: float(one) for name, one in sent.items() if one}
