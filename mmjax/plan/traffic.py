"""Bytes that cross a chip's HBM in one run of a compiled program, counted by memory space in its optimized HLO.

The rule: what an instruction outside fusions reads from HBM is counted once per operand, and what it writes to HBM once. An
operand in on-chip memory costs nothing here; the copy that brought it there, or took it back, was counted as such. So the
figures are those of a chip that reads every operand of an instruction once: a matmul whose operands do not fit on chip reads
some of them again, which no rule can see in this text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from mmjax.plan.hlo import Computation, Instruction, Module, executed

FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "recv",
)
FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast")  # name memory, move nothing
SLICES = ("slice", "dynamic-slice", "gather")  # read only what they return
IN_PLACE = {"dynamic-update-slice": 1, "scatter": -1}  # write only the update, which is this operand
MOVES = ("copy", "slice", "dynamic-slice", "bitcast")
ASYNC_TARGETS = ("AsyncCollectiveStart", "AsyncCollectiveDone")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
KERNEL = "tpu_custom_call"
NAMING = ("convolution", "dot", "scatter", "gather", "reduce", "all-gather", "all-reduce")  # a fusion has the first's name


@dataclasses.dataclass(frozen=True)
class Row:
    """One instruction's traffic, in bytes, over all its executions; of a loop whose trips depend on data, over one trip."""

    name: str
    opcode: str
    op_name: str
    read: int
    written: int
    count: int
    certain: bool = True  # not in such a loop

    @property
    def total(self) -> int:
        """Read and written."""
        return self.read + self.written


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of HBM traffic of one run of a program, on one chip.

    Attributes:
      by_opcode: read + written of each kind of instruction; a fusion is named by the heaviest thing in it.
      by_op_name: read + written by the place in the traced function; a copy between HBM and on-chip memory counts where its
        data are used, or, on their way out, made. "" is what remains.
      rows: the instructions, largest first.
      uncertain: loops were counted as one trip because their trip counts depend on data.
    """

    read: int
    written: int
    by_opcode: Mapping[str, int]
    by_op_name: Mapping[str, int]
    rows: tuple[Row, ...] = ()
    uncertain: bool = False

    @property
    def total(self) -> int:
        """Read and written."""
        return self.read + self.written

    def under(self, depth: int) -> dict[str, int]:
        """`by_op_name` summed over names that agree in their first `depth` parts, largest first."""
        sums: dict[str, int] = {}
        for name, value in self.by_op_name.items():
            prefix = "/".join(name.split("/")[:depth])
            sums[prefix] = sums.get(prefix, 0) + value
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


def hbm_bytes(module: Module, kernels: Mapping[str, tuple[int, int]] | None = None) -> Traffic:
    """Count the HBM traffic of a program.

    Args:
      kernels: name of a Pallas kernel -> (bytes read, bytes written) of one call, for a kernel that does not read its
        operands and write its results just once. The name is looked for in the instruction's name and in its op_name.
    """
    reader = _Reader(module, kernels or {})
    rows, uncertain = [], False
    for run in executed(module, lambda computation, i: sum(reader.instruction(computation, i))):
        read, written = reader.instruction(run.computation, run.instruction)
        if read or written:
            i = run.instruction
            place = _place(run.computation, i, forward=read > 0)
            rows.append(Row(i.name, reader.label(i), place, read * run.count, written * run.count, run.count, run.certain))
        uncertain |= not run.certain
    rows.sort(key=lambda row: -row.total)
    read, written = sum(row.read for row in rows), sum(row.written for row in rows)
    return Traffic(read, written, _sums(rows, "opcode"), _sums(rows, "op_name"), tuple(rows), uncertain)


def _for_next_run(computation: Computation, i: Instruction) -> bool:
    """A copy whose result nothing uses: the next run begins with it, instead of with the copy that this one began with."""
    if i.is_start:
        return all(user.is_done and _for_next_run(computation, user) for user in computation.users.get(i.name, ()))
    return i.opcode == "copy-done" and not i.root and i.name not in computation.users


def _goes_on(inner: Computation) -> bool:
    """A fusion in which an asynchronous collective that another began goes on, or ends: its buffers were counted there."""
    root = inner.root
    handed_on = root.opcode == "tuple" and any(element.opcode == "parameter" for element in inner.operands(root))
    return handed_on or root.target == "AsyncCollectiveDone"


def _place(computation: Computation, i: Instruction, forward: bool) -> str:
    """Its op_name; of a copy that the compiler added, that of what the copy is for, or (a write) of what was to be copied."""
    if i.op_name or (i.kind not in MOVES and i.opcode != "get-tuple-element" and i.target not in FREE_TARGETS):
        return i.op_name
    nexts = computation.users.get(i.name, ()) if forward else computation.operands(i)
    return next((place for following in nexts if (place := _place(computation, following, forward))), "")


def _sums(rows: list[Row], field: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for row in rows:
        key = getattr(row, field)
        sums[key] = sums.get(key, 0) + row.total
    return sums


class _Reader:
    """What each instruction reads from HBM and writes to it."""

    def __init__(self, module: Module, kernels: Mapping[str, tuple[int, int]]):
        self.module, self.kernels = module, kernels
        self.part_read = functools.cache(self._part_read)
        self.opcodes = functools.cache(self._opcodes)

    def instruction(self, computation: Computation, i: Instruction) -> tuple[int, int]:
        """(read, written) of one execution. An asynchronous pair reads at its start and writes at its end."""
        if i.opcode in FREE or i.target in FREE_TARGETS or _for_next_run(computation, i):
            return 0, 0
        if i.opcode == "fusion":
            return self._fusion(computation, i)
        if i.is_done:
            return 0, self._done(computation, i)
        if i.target == KERNEL and (said := self._kernel(i)) is not None:
            return said
        read = self._reads(computation, i)
        if i.is_start or i.opcode == "send":
            return read, 0
        if i.opcode in IN_PLACE and self._in_place(i, 0, 0):
            return read, computation.operands(i)[IN_PLACE[i.opcode]].shapes[0].bytes if i.hbm_bytes else 0
        return read, i.hbm_bytes

    def _reads(self, computation: Computation, i: Instruction) -> int:
        operands = {operand.name: operand for operand in computation.operands(i)}
        return sum(self._read(computation, i, operand) for operand in operands.values() if operand.hbm_bytes)

    def _read(self, computation: Computation, i: Instruction, operand: Instruction) -> int:
        """Of one operand in HBM, what an instruction that is not a fusion reads."""
        positions = [at for at, name in enumerate(i.operands) if name == operand.name]
        if positions == [0] and i.kind in SLICES:
            result = i.shapes[len(i.operands)] if i.is_start else i.shapes[0]
            return min(result.bytes, operand.hbm_bytes)
        if positions == [0] and i.kind in IN_PLACE and self._in_place(i, 0, 0):
            update = computation.operands(i)[IN_PLACE[i.kind]].shapes[0].bytes
            return update if i.kind == "scatter" else 0  # a scatter adds to the rows it writes
        return operand.hbm_bytes

    def _done(self, computation: Computation, i: Instruction) -> int:
        start = computation.instructions[i.operands[0]]
        if i.kind in IN_PLACE and start.is_start:
            return computation.operands(start)[IN_PLACE[i.kind]].shapes[0].bytes if i.hbm_bytes else 0
        return i.hbm_bytes

    def _in_place(self, i: Instruction, result: int, operand: int) -> bool:
        return i.aliases is None or i.aliases.get(result) == operand

    def _kernel(self, i: Instruction) -> tuple[int, int] | None:
        return next((said for name, said in self.kernels.items() if name in i.name or name in i.op_name), None)

    def _fusion(self, computation: Computation, i: Instruction) -> tuple[int, int]:
        inner = self.module.computations[i.called[0]]
        reads: dict[str, int] = {}
        for at, operand in enumerate(computation.operands(i)):
            if operand.hbm_bytes:
                part = min(self.part_read(inner.name, at), operand.hbm_bytes)
                reads[operand.name] = max(part, reads.get(operand.name, 0))
        written = 0
        for at, shape in enumerate(i.shapes):
            if shape.hbm_bytes:
                written += min(self._part_written(inner, i, at), shape.bytes)
        return sum(reads.values()), written

    def _part_read(self, name: str, at: int) -> int:
        """Bytes that a fusion reads of its parameter `at`: what its slices take, where nothing else uses it."""
        inner = self.module.computations[name]
        parameter = inner.parameters[at]
        return min(self._part_used(inner, parameter), sum(shape.bytes for shape in parameter.shapes))

    def _part_used(self, inner: Computation, value: Instruction) -> int:
        whole = sum(shape.bytes for shape in value.shapes)
        total = whole if value.root else 0
        for user in inner.users.get(value.name, ()):
            positions = [at for at, name in enumerate(user.operands) if name == value.name]
            if user.opcode == "bitcast":
                total += self._part_used(inner, user)
            elif user.opcode == "fusion":
                total += sum(self.part_read(user.called[0], at) for at in positions)
            elif user.opcode in SLICES and positions == [0]:
                total += user.shapes[0].bytes
            elif user.opcode in IN_PLACE and positions == [0]:
                update = inner.operands(user)[IN_PLACE[user.opcode]].shapes[0].bytes
                total += update if user.opcode == "scatter" else 0
            elif user.opcode in COLLECTIVES:
                total += 0 if _goes_on(inner) else whole
            elif user.opcode != "tuple" and user.target not in ASYNC_TARGETS:
                total += whole
        return total

    def _part_written(self, inner: Computation, i: Instruction, at: int) -> int:
        """Bytes that a fusion writes of its result `at`: of one that takes over an operand's memory, only the update."""
        value = self._element(inner, at)
        while value.opcode == "bitcast":
            value = inner.operands(value)[0]
        handed_on = value.opcode in ("parameter", *COLLECTIVES) or value.target in ASYNC_TARGETS
        if handed_on and at in (i.aliases or {}):
            return 0
        if value.opcode == "fusion" and len(value.shapes) == 1:
            return self._part_written(self.module.computations[value.called[0]], i, 0) if at == 0 else i.shapes[at].bytes
        if value.opcode in IN_PLACE and (i.aliases is None or at in i.aliases):
            return inner.operands(value)[IN_PLACE[value.opcode]].shapes[0].bytes
        return i.shapes[at].bytes

    def _element(self, inner: Computation, at: int) -> Instruction:
        root = inner.root
        return inner.operands(root)[at] if root.opcode == "tuple" else root

    def label(self, i: Instruction) -> str:
        """The opcode, and of a fusion, what in it says most."""
        if i.opcode != "fusion":
            return f"{i.opcode}:{i.target}" if i.target else i.kind
        opcodes = self.opcodes(i.called[0])
        found = [o for o in NAMING if o in opcodes]
        return f"fusion:{found[0]}" if found else "fusion"

    def _opcodes(self, name: str) -> set[str]:
        inner = self.module.computations[name].instructions.values()
        nested = [self.opcodes(i.called[0]) for i in inner if i.opcode == "fusion"]
        return {i.opcode for i in inner}.union(*nested)
