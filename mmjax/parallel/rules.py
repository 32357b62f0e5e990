"""One table: where every parameter lives. Optimizer state, EMA and adapters follow from it by path.

Layers are stored stacked, so a layer's arrays have a leading dim L that is never split. The first matching row wins, and a
test holds that every parameter of every shipped config matches exactly one.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.core.trees import map_with_path, match
from mmjax.parallel.mesh import fit

CONVOLUTIONS = ("convolve", "convolve_first", "convolve_second", "position")

# Pattern of the path's end -> the dims from the last one backwards are named in the comment.
OWN: tuple[tuple[str, P], ...] = (
    # attention: q, k, v [.., D, H, K]; out [.., H, K, D]
    ("*/*attention/[qkv]/kernel", P("fsdp", "tensor", None)),
    ("*/*attention/[qkv]/bias", P("tensor", None)),
    ("*/*attention/out/kernel", P("tensor", None, "fsdp")),
    ("*/*attention/out/bias", P(None)),
    # feed-forward: up, gate [.., D, F]; down [.., F, D]
    ("*/mlp/up/kernel", P("fsdp", "tensor")),
    ("*/mlp/gate/kernel", P("fsdp", "tensor")),
    ("*/mlp/down/kernel", P("tensor", "fsdp")),
    ("*/mlp/up/bias", P("tensor")),
    ("*/mlp/gate/bias", P("tensor")),
    ("*/mlp/down/bias", P(None)),
    # tables: words [V, D], positions and segments [T, D]
    ("*/words/table", P("tensor", "fsdp")),
    ("*/position/table", P(None, "fsdp")),
    ("*/fixed_position/table", P(None, "fsdp")),
    ("*/segment/table", P(None, "fsdp")),
    # relative positions [buckets, H]
    ("*/relative/table", P(None, "tensor")),
    # every other projection [.., D, D'] and its bias: patches, dual's towers, heads
    ("*/project*/kernel", P("fsdp", None)),
    ("*/project*/bias", P(None)),
    # vocabulary-sized heads [D, V]
    ("*/logits/kernel", P("fsdp", "tensor")),
    ("*/logits/bias", P("tensor")),
    ("*/second_logits/kernel", P("fsdp", "tensor")),
    ("*/second_logits/bias", P("tensor")),
    ("*/tied_bias", P("tensor")),
    ("*/thresholds", P(None)),
    # small vectors and scalars
    ("*/norm/scale", P(None)),
    ("*/norm/bias", P(None)),
    ("*/*_norm/scale", P(None)),
    ("*/*_norm/bias", P(None)),
    ("*/cls", P(None, None)),
    ("*/extra", P(None, None)),
    ("*/mask_token", P(None, None)),
    ("*/probe", P(None, None)),
    ("*/cache_keys", P(None, None)),
    ("*/codebook", P(None, None)),
    ("*/*_type", P(None, None)),
    ("*/mix", P(None)),
    ("*/*_layer_scale", P(None)),
    ("*/scale_logit", P()),
    ("*/bias_logit", P()),
    # what no forward pass reads
    ("unread/*", P(None)),
    ("*/unread/*", P(None)),
)


def _adapters_of(pattern: str, spec: P) -> list[tuple[str, P]]:
    """Rows of what lies beside a kernel or a table (`nn.adapters`, `nn.narrow`): dims are split as there, the rank is not."""
    room, _, name = pattern.rpartition("/")
    if name not in ("kernel", "table") or room.endswith("/fixed_position"):
        return []
    axes = 2 if room.endswith("/out") else 1
    dims = tuple(spec)
    first, second = P(*dims[:axes], None), P(None, *dims[axes:])
    found = [("lora_a", first), ("lora_b", second)]
    if name == "kernel":
        found += [("lora_a0", first), ("lora_b0", second)]
        found += [("kernel_scale", P(*dims[axes:]))]  # `nn.narrow`
        found += [("dora_magnitude", P(*dims[axes:])), ("ia3_in", P(*dims[:axes])), ("ia3_out", P(*dims[axes:]))]
    return [(f"{room}/{leaf}", own) for leaf, own in found]


RULES: tuple[tuple[str, P], ...] = (
    *OWN,
    *(row for own in OWN for row in _adapters_of(*own)),
    # convolutions [.., height, width, C / groups, C'], and what batch normalisation keeps
    *((f"*/{name}/kernel", P(None, None, None, "fsdp")) for name in CONVOLUTIONS),
    *((f"*/{name}/bias", P(None)) for name in CONVOLUTIONS),
    ("*/position/magnitude", P(None)),
    ("*/norm/mean", P(None)),
    ("*/norm/variance", P(None)),
    ("*/norm/batches", P()),
    ("*/lora_scale", P()),
    ("*/lora_dropout", P()),
    # virtual tokens [n, D] and how many come before them; keys and values of a prefix [.., n, G, K]
    ("*/words/prompt_tokens", P(None, "fsdp")),
    ("*/project_patches/prompt_tokens", P(None, None)),
    ("*/prompt_place", P(None)),
    ("*/project_patches/prompt_room", P(None, None)),
    ("*/attention/q/prompt_layers", P(None, "fsdp")),
    ("*/attention/k/prefix_keys", P(None, "tensor", None)),
    ("*/attention/k/prefix_values", P(None, "tensor", None)),
    # a bottleneck after a branch [D, r], [r, D] (`nn.bottleneck`)
    ("*/bottleneck_down", P("fsdp", None)),
    ("*/bottleneck_down_bias", P(None)),
    ("*/bottleneck_up", P(None, "fsdp")),
    ("*/bottleneck_up_bias", P(None)),
    ("*/bottleneck_kind", P(None, None)),
)


def rows(path: str) -> list[int]:
    """The numbers of the rows that match a path: one for every parameter of ours."""
    return [i for i, (pattern, _) in enumerate(RULES) if match(pattern, path)]


def spec(path: str, shape: tuple[int, ...], axes: dict[str, int]) -> P:
    """The PartitionSpec of the array at `path`; a dim that its axis does not divide is not split.

    An array that no row knows (a user's own module) is split over `fsdp` along its largest dim.
    """
    found = rows(path)
    if found:
        wanted = tuple(RULES[found[0]][1])
        if len(shape) < len(wanted):  # a reduced statistic, for instance Adafactor's row and column means
            return P()
        return fit(P(*[None] * (len(shape) - len(wanted)), *wanted), shape, axes)
    if not shape:
        return P()
    largest = max(range(len(shape)), key=lambda i: shape[i])
    return fit(P(*["fsdp" if i == largest else None for i in range(len(shape))]), shape, axes)


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """A tree of NamedShardings for a tree of arrays or of their shapes; state that holds parameter-like trees included."""
    axes = dict(mesh.shape)
    return map_with_path(lambda path, leaf: NamedSharding(mesh, spec(path, leaf.shape, axes)), tree)


def place(mesh: jax.sharding.Mesh, path: str, x: np.ndarray) -> jax.Array:
    """A host array in its place on the mesh. Returns when it is there, so that the host may let go of it."""
    sharding = NamedSharding(mesh, spec(path, x.shape, dict(mesh.shape)))
    return jax.block_until_ready(jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]))
