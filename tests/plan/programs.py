"""Programs whose HBM traffic and collectives are known by hand, compiled for TPU v5e without one.

python tests/plan/programs.py [NAME ...]    writes tests/plan/hlo/NAME.txt (needs libtpu), for the tests to read
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TEXTS = Path(__file__).parent / "hlo"
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}


class Program(NamedTuple):
    """A function, its arguments as (shape, dtype, spec), and the mesh it runs on."""

    function: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], ...]
    mesh: tuple[int, ...] = (1, 1)
    axes: tuple[str, ...] = ("a", "b")
    donated: tuple[int, ...] = ()


def layers(x, w):
    return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w)[0]


def saved(x, w):
    """Every step's result, which the loop writes into one array, a part at a time."""
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w),) * 2, x, None, length=12)[1]


def adam(p, m, v, g):
    m = 0.9 * m + 0.1 * g
    v = 0.95 * v + 0.05 * g * g
    return p - 1e-3 * m / (jnp.sqrt(v) + 1e-8), m, v


def fsdp(w, x):
    """One step of gradient descent on a layer whose weight is split over b, and the batch over both axes."""
    return w - jax.grad(lambda w: (jnp.tanh(x @ w.astype(jnp.bfloat16)).astype(jnp.float32) ** 2).sum())(w)


def two_layers(x, v, w):
    """The second weight is gathered while the first is used."""
    return jnp.tanh(x @ v) @ w


def double(x):
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    block = pl.BlockSpec((512, 1024), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(x.shape[0] // 512,),
        in_specs=[block],
        out_specs=block,
        name="double",
    )(x)


@partial(jax.shard_map, in_specs=P(("a", "b")), out_specs=P(("a", "b")), check_vma=False)
def ring(x):
    def hop(carried, _):
        block, total = carried
        following = jax.lax.ppermute(block, "b", [(i, (i + 1) % 8) for i in range(8)])
        return (following, total + jnp.tanh(block @ x.T).sum(1)), None

    return jax.lax.scan(hop, (x, jnp.zeros(x.shape[0])), None, length=8)[0][1]


def over(axis):
    """One of each collective along an axis."""

    @partial(jax.shard_map, in_specs=P(("a", "b")), out_specs=P(("a", "b")), check_vma=False)
    def run(v, w, x, y, z):
        n = jax.lax.axis_size(axis)
        return (
            jax.lax.psum(v, axis),
            jax.lax.all_gather(w, axis, tiled=True),
            jax.lax.psum_scatter(x, axis, tiled=True),
            jax.lax.ppermute(y, axis, [(i, (i + 1) % n) for i in range(n)]),
            jax.lax.all_to_all(z, axis, 0, 0, tiled=True),
        )

    return run


@partial(jax.shard_map, in_specs=P(("slice", "b")), out_specs=P(("slice", "b")), check_vma=False)
def total(x):
    return jax.lax.psum(x, "slice")


def rows(t, i):
    return t[i]


def add_rows(t, i, g):
    return t.at[i].add(g)


def part(c, i):
    return jax.lax.dynamic_slice(c, (i, 0), (8, 4096)) * 2


def replace_part(c, x, i):
    return jax.lax.dynamic_update_slice(c, x, (i, 0))


def choose(c, x):
    return jax.lax.cond(c, lambda x: x[:8].repeat(512, 0), lambda x: x + 1, x)


F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32
BOTH, B = P(("a", "b")), P("b")
FIVE = tuple(((16 * 1024, 128 * (i + 1)), F32, BOTH) for i in range(5))
ROWS = (((4096,), I32), ((4096, 768), F32))
STATE = ((8192, 4096), F32)
X, W = ((16 * 4096, 8192), BF16, BOTH), ((8192, 8192), BF16, B)
PROGRAMS: dict[str, Program] = {
    "add_one": Program(lambda x: x + 1, (((4096, 8192), F32),)),
    "padded": Program(lambda x: x + 1, (((512, 196, 196), F32),)),
    "matmul": Program(lambda x, w: x @ w, (((8192, 8192), BF16),) * 2),
    "matmul_relu": Program(lambda x, w: jax.nn.relu(x @ w), (((16384, 4096), BF16), ((4096, 4096), BF16))),
    "sum": Program(lambda x: x.sum(), (((8192, 8192), F32),)),
    "softmax": Program(lambda x: jax.nn.softmax(x.astype(F32)).astype(BF16), (((16384, 4096), BF16),)),
    "scan": Program(layers, (((256, 4096), BF16), ((12, 4096, 4096), BF16))),
    "saved": Program(saved, (((4096, 4096), BF16),) * 2),
    "gather": Program(rows, (((320000, 768), F32), ROWS[0])),
    "gather_small": Program(rows, (((32000, 768), F32), ROWS[0])),
    "scatter": Program(add_rows, (((320000, 768), F32), *ROWS), donated=(0,)),
    "slice": Program(part, (STATE, ((), I32))),
    "update": Program(replace_part, (STATE, ((8, 4096), F32), ((), I32)), donated=(0,)),
    "adam": Program(adam, (STATE,) * 4, donated=(0, 1, 2)),
    "cond": Program(choose, (((), jnp.bool_), ((4096, 8192), F32))),
    "kernel": Program(double, (((8192, 1024), F32),)),
    "over_a": Program(over("a"), FIVE, (2, 8)),
    "over_b": Program(over("b"), FIVE, (2, 8)),
    "ring": Program(ring, (((16 * 1024, 1024), F32, BOTH),), (2, 8)),
    "fsdp": Program(fsdp, (((8192, 8192), F32, B), X), (2, 8), donated=(0,)),
    "overlap": Program(two_layers, (X, W, W), (2, 8)),
    "slices": Program(total, (((32 * 256, 1024), F32, P(("slice", "b"))),), (2, 16), ("slice", "b")),
}


def compile_text(program: Program) -> str:
    """The optimized HLO."""
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*")
    slices = 2 if "slice" in program.axes else 1
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=slices).devices
    count = int(np.prod(program.mesh))
    mesh = Mesh(np.array(devices[:count]).reshape(program.mesh), program.axes, axis_types=(AxisType.Auto,) * len(program.axes))
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, *spec or (P(),)))
        for shape, dtype, *spec in program.arguments
    ]
    with jax.set_mesh(mesh):
        return jax.jit(program.function, donate_argnums=program.donated).lower(*arguments).compile().as_text()


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)  # libtpu and JAX's backends are loaded below, not by importing
    for name in sys.argv[1:] or PROGRAMS:
        text = compile_text(PROGRAMS[name])
        (TEXTS / f"{name}.txt").write_text(text)
        print(name, len(text))
