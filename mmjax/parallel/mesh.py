"""The device mesh: the only place that makes one, sets one, or constrains an activation to it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.core import quiet
from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.parallel.torus import ring_order

AXES = ("slice", "data", "fsdp", "sequence", "tensor")  # the slowest network first, neighbours last
BATCH = ("slice", "data", "fsdp")  # the axes that split the examples of a batch
TOKENS = (BATCH, "sequence")  # how the first two dims of [B, T, ..] are split


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices lie along each axis; -1 takes all that are left. One device needs nothing said.

    Attributes:
      data: copies of the model, each with its share of the batch.
      fsdp: like `data`, and parameters, optimizer state and EMA are split over it as well.
      tensor: heads and feed-forward width are split over it.
      sequence: the tokens of each example are split over it; attention gathers keys and values. A length that it does not
        divide stays whole.
      slice: TPU slices, joined by the data centre's network: more copies, like `data`. 0: as many as the devices lie in.
    """

    data: int = setting(everyday=True, default=-1)
    fsdp: int = setting(everyday=True, default=1)
    tensor: int = setting(everyday=True, default=1)
    sequence: int = 1
    slice: int = 0

    def build(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """Make the mesh over `devices` (default: all of them).

        Raises:
          UserError: the axes do not multiply to the number of devices, or `slice` is not how many slices these lie in.
        """
        devices = quiet.devices() if devices is None else list(devices)
        found = len({getattr(device, "slice_index", 0) for device in devices})
        if found > 1 and self.slice not in (0, found):
            raise UserError(f"mesh.slice={self.slice}: these devices lie in {found} slices; use {found}, or 0 to find out")
        shape = self.shape(len(devices), found)
        kinds = (AxisType.Auto,) * len(AXES)
        if found == 1 and max(shape) == len(devices):
            return jax.sharding.Mesh(np.array(ring_order(devices)).reshape(shape), AXES, axis_types=kinds)
        if found == 1:
            return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
        across = (shape[0],) + (1,) * (len(shape) - 1)
        grid = mesh_utils.create_hybrid_device_mesh((1, *shape[1:]), across, devices)
        return jax.sharding.Mesh(grid, AXES, axis_types=kinds)

    def fitting(self, devices: Sequence[jax.Device]) -> Mesh:
        """A mesh for these devices that splits parameters and tokens as this one does, as far as they divide."""
        slices = len({getattr(device, "slice_index", 0) for device in devices})
        left, sizes = len(devices) // slices, {}
        for axis in ("tensor", "sequence", "fsdp"):
            sizes[axis] = math.gcd(max(getattr(self, axis), 1), left)
            left //= sizes[axis]
        return Mesh(data=left, **sizes)

    def shape(self, device_count: int, slices: int = 1) -> tuple[int, ...]:
        """Sizes of the axes, in the order of `AXES`, with -1 (and a `slice` of 0: `slices`) resolved."""
        sizes, said = {axis: getattr(self, axis) for axis in AXES}, self.said()
        sizes["slice"] = self.slice or slices
        for axis, size in sizes.items():
            if size == 0 or size < -1 or (size == -1 and axis == "slice"):
                raise UserError(f"mesh.{axis}={size}: use a positive number, or -1 for all devices that are left")
        free = [axis for axis, size in sizes.items() if size == -1]
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if len(free) > 1 or device_count % fixed or (not free and fixed != device_count):
            raise UserError(f"mesh ({said}) does not multiply to the {device_count} devices here; one axis may be -1")
        if free:
            sizes[free[0]] = device_count // fixed
        return tuple(sizes.values())

    def said(self) -> str:
        """ "data=4, fsdp=2, tensor=1": the axes that are always there, and those that are used."""
        sizes = {axis: getattr(self, axis) for axis in AXES}
        return ", ".join(f"{axis}={size}" for axis, size in sizes.items() if axis in ("data", "fsdp", "tensor") or size > 1)


@contextlib.contextmanager
def use_mesh(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Make `mesh` the current one, so that `constrain` and bare PartitionSpecs refer to it."""
    with jax.set_mesh(mesh):
        yield


def axis_size(axis: str) -> int:
    """How many ways the current mesh splits along an axis; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else dict(mesh.shape).get(axis, 1)


def platform() -> str:
    """What the code being traced will run on, `cpu`, `gpu` or `tpu`: the mesh's devices, or without a mesh JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: Array, *spec: str | tuple[str, ...] | None) -> Array:
    """Ask for a sharding of an activation; a no-op when no mesh is set, so that a model runs in a notebook as it is.

    A dim that its axes do not divide is left to the compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    kept = fit(PartitionSpec(*spec), x.shape, dict(mesh.shape))
    return jax.lax.with_sharding_constraint(x, kept)


def constrain_batch(x: Array) -> Array:
    """Split the leading dim over the batch axes."""
    return constrain(x, BATCH, *[None] * (x.ndim - 1))


def constrain_tokens(x: Array) -> Array:
    """Split [B, T, ..]: examples over the batch axes, tokens over `sequence`."""
    return constrain(x, *TOKENS, *[None] * (x.ndim - 2))


def fit(spec: PartitionSpec, shape: Sequence[int], axes: dict[str, int]) -> PartitionSpec:
    """`spec` without the axes that the mesh lacks and without those that do not divide their dim."""
    entries = []
    for dim, entry in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        names = tuple(n for n in ((entry,) if isinstance(entry, str) else entry or ()) if axes.get(n, 1) > 1)
        ways = 1
        for name in names:
            ways *= axes[name]
        entries.append(names if names and dim % ways == 0 else None)
    return PartitionSpec(*[e[0] if e and len(e) == 1 else e for e in entries])


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Where the arrays of a batch live: rows over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts the examples of a batch are split."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)
