"""What the chips send each other in one run of a compiled program, and over which axes of the mesh.

Bytes are those that one chip sends, by the algorithms that move least: of n chips, each sends (n-1)/n of a whole to gather or
scatter it, and twice that to reduce it everywhere: a scatter and then a gather (Thakur, Rabenseifner & Gropp 2005, section 4).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np

from mmjax.plan.hlo import Computation, Instruction, Module, executed

KINDS = {  # what one chip of n sends, in units of its operand's bytes
    "all-gather": lambda n: Fraction(n - 1),
    "all-reduce": lambda n: Fraction(2 * (n - 1), n),
    "reduce-scatter": lambda n: Fraction(n - 1, n),
    "all-to-all": lambda n: Fraction(n - 1, n),
    "ragged-all-to-all": lambda n: Fraction(n - 1, n),
    "collective-broadcast": lambda n: Fraction(1),
    "collective-permute": lambda n: Fraction(1),
}
SLICE = "slice"  # the mesh axis whose neighbours only the data centre's network joins


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      bytes: what one chip sends in one run of the program, all executions together.
      axes: the mesh axes along which its groups extend, in mesh order; () where every chip is alone.
      ways: chips in a group; for a `collective-permute`, those along its axes.
      count: executions in one run of the program.
      op_name: where in the traced function it comes from.
      certain: False in a loop whose trips depend on data, of which one trip is counted.
    """

    opcode: str
    bytes: int
    axes: tuple[str, ...]
    ways: int
    count: int
    op_name: str = ""
    certain: bool = True


def collective_bytes(module: Module, mesh_axes: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program, in the order in which they begin.

    Args:
      mesh_axes: axis -> size, in the order of the mesh; device i of the program is the i-th of the mesh, the last axis fastest.
    """
    found: list[Collective] = []
    seen: set[tuple[str, str, str]] = set()
    for run in executed(module, lambda c, i: sum(part.bytes for part in _parts(module, c, i, mesh_axes))):
        for part, channel in _channels(module, run.computation, run.instruction, mesh_axes):
            key = (run.computation.name, part.opcode, channel)
            if channel and run.instruction.opcode == "fusion" and key in seen:
                continue  # an asynchronous one stands in the fusion that starts it, those beside it and the one that ends it
            seen.add(key)
            found.append(dataclasses.replace(part, bytes=part.bytes * run.count, count=run.count, certain=run.certain))
    return found


def by_axes(collectives: list[Collective]) -> dict[tuple[str, ...], int]:
    """Bytes that one chip sends in one run, by the axes they go along."""
    sums: dict[tuple[str, ...], int] = {}
    for collective in collectives:
        sums[collective.axes] = sums.get(collective.axes, 0) + collective.bytes
    return sums


def _parts(module: Module, computation: Computation, i: Instruction, mesh_axes: Mapping[str, int]) -> list[Collective]:
    return [part for part, _ in _channels(module, computation, i, mesh_axes)]


def _channels(
    module: Module, computation: Computation, i: Instruction, mesh_axes: Mapping[str, int]
) -> Iterator[tuple[Collective, str]]:
    """The collectives in an instruction, a fusion's among them, each with its channel."""
    if i.opcode == "fusion":
        inner = module.computations[i.called[0]]
        for fused in inner.instructions.values():
            yield from _channels(module, inner, fused, mesh_axes)
    elif i.opcode == "send" and "_xla_megascale_transfer_type" in i.attributes.get("frontend_attributes", ""):
        yield _between_slices(computation, i, mesh_axes), ""
    elif i.kind in KINDS and not i.is_done:
        yield _collective(computation, i, mesh_axes), i.attributes.get("channel_id", "")


def _collective(computation: Computation, i: Instruction, mesh_axes: Mapping[str, int]) -> Collective:
    opcode, size = i.kind, math.prod(mesh_axes.values())
    if opcode == "all-reduce" and [user.opcode for user in computation.users.get(i.name, ())] == ["dynamic-slice"]:
        opcode = "reduce-scatter"  # the chip keeps its slice of the sum and no more
    if "source_target_pairs" in i.attributes:
        groups = [pair for pair in _lists(i.attributes["source_target_pairs"]) if pair[0] != pair[1]]
        axes = _axes(groups, mesh_axes)
        ways = math.prod(mesh_axes[axis] for axis in axes)
    else:
        groups = replica_groups(i, size)
        axes, ways = _axes(groups, mesh_axes), max(map(len, groups))
    operand = sum(shape.bytes for o in computation.operands(i) for shape in o.shapes)
    sent = int(KINDS[opcode](ways) * operand) if axes else 0
    return Collective(opcode, sent, axes, ways, 1, i.op_name)


def _between_slices(computation: Computation, i: Instruction, mesh_axes: Mapping[str, int]) -> Collective:
    """One that the data centre's network carries: the program hands the host its operand and is handed the result."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes["frontend_attributes"])
    said = found[1].lower().replace("_", "-") if found else ""
    opcode = said if said in KINDS else "collective-permute"  # ONE_TO_ONE
    ways = mesh_axes.get(SLICE, 2)
    operand = computation.operands(i)[0].shapes[0].bytes
    return Collective(opcode, int(KINDS[opcode](ways) * operand), (SLICE,), ways, 1, i.op_name)


def replica_groups(i: Instruction, size: int) -> list[list[int]]:
    """The devices that act together, from any of the three ways of writing them; all `size` of them where none are written.

    `{{0,1},{2,3}}` lists them, `[2,2]<=[2,2]T(1,0)` reshapes and transposes 0, 1, 2 .., `mesh['a'=2,'b'=2] {'b'}` names axes.
    """
    text = i.attributes.get("replica_groups", "{}")
    if text.startswith("mesh"):
        order = i.attributes.get("device_ids", "")
        return _mesh_groups(text + order, _order(order) if order else list(range(size)))
    if "<=" in text:
        shape, _, order = text.partition("<=")
        return np.array(_iota(order)).reshape(_lists(shape)[0]).tolist()
    return _lists(text) or [list(range(size))]


def _lists(text: str) -> list[list[int]]:
    """The innermost brackets' integers."""
    return [[int(d) for d in inner.split(",")] for inner in re.findall(r"[{(\[]([\d,\s]+)[})\]]", text)]


def _order(text: str) -> list[int]:
    """The devices of a mesh that are not 0, 1, 2 ..: `(3,2,1,0)` lists them, `([2,2]T(1,0))` transposes them."""
    return _iota(text[1:]) if text.startswith("([") else _lists(text)[0]


def _iota(text: str) -> list[int]:
    """`[2,2]T(1,0)`: 0, 1, 2 .. in that shape, transposed, in a row."""
    dims, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return (ids.transpose(_ints(order)) if order else ids).ravel().tolist()


def _ints(text: str) -> list[int]:
    return [int(d) for d in text.split(",")]


def _mesh_groups(text: str, order: list[int]) -> list[list[int]]:
    """`mesh['a'=2,'b'=8] {'b'}`; `{'b':(2)4}` is the part of 4 of axis b that 2 of it come before."""
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", text)}
    grouped = {
        name: (int(before or 1), int(n) if n else sizes[name]) for name, before, n in _AXIS.findall(text.rpartition("{")[2])
    }
    dims: list[int] = []
    inside: list[int] = []
    for name, n in sizes.items():
        before, part = grouped.get(name, (1, 1))
        inside += [len(dims) + 1] if name in grouped else []
        dims += [before, part, n // before // part]
    outside = [d for d in range(len(dims)) if d not in inside]
    ids = np.array(order).reshape(dims).transpose(outside + inside)
    return ids.reshape(-1, math.prod(dims[d] for d in inside)).tolist()


_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def _axes(groups: list[list[int]], mesh_axes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which members of a group differ."""
    sizes = tuple(mesh_axes.values())
    differs = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.array(np.unravel_index(group, sizes))
        differs |= (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, d in zip(mesh_axes, differs, strict=True) if d)
