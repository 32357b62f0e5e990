"""Reads the optimized HLO text of a compiled TPU program: arrays with their memory spaces, and how often instructions run.

Only what counting bytes needs is kept. A byte here is a byte that a transfer moves: a layout `T(8,128)` stores whole tiles, so
a dim that a tile does not divide is counted rounded up to one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

HBM = 0  # the memory space of a layout that names none; S(1) is on-chip vector memory, S(6) scalar, S(5) the host's
MAX_TRIPS = 100_000

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_CLOSED = re.compile(r"^\}(, execution_thread=.*)?\s*$")
_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_NAMES = re.compile(r"%([\w.\-]+)")
_CALLED = ("calls", "to_apply", "body", "condition", "branch_computations", "true_computation", "false_computation")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: `bytes` includes what its tiles pad, `space` is its memory space (0: HBM)."""

    dtype: str
    dims: tuple[int, ...]
    space: int
    bytes: int

    @property
    def hbm_bytes(self) -> int:
        """`bytes` if it lives in HBM, else 0; also 0 of a scalar, which moves with the instruction that uses it."""
        return self.bytes if self.space == HBM and self.dims else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      shapes: the arrays of the result, a nested tuple flattened.
      operands: names, in this computation.
      literal: what stands between the parentheses: of a `parameter` its number, of a scalar `constant` its value.
      attributes: `name -> text` as printed, for instance `replica_groups`, `calls`, `dimensions`.
      config: the backend's own settings, JSON as text.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: Mapping[str, str]
    config: str
    root: bool

    @property
    def is_start(self) -> bool:
        """It begins something asynchronous; its operands are in use until the `-done`."""
        return self.opcode.endswith("-start")

    @property
    def is_done(self) -> bool:
        """It ends something asynchronous, and gives its result."""
        return self.opcode.endswith("-done")

    @property
    def kind(self) -> str:
        """The opcode without `-start` and `-done`."""
        return self.opcode.removesuffix("-start").removesuffix("-done")

    @property
    def called(self) -> tuple[str, ...]:
        """The computations it names: a fusion's, a loop's, a conditional's, a reduction's."""
        return tuple(name for key in _CALLED for name in _NAMES.findall(self.attributes.get(key, "")))

    @property
    def target(self) -> str:
        """What a custom call runs."""
        return self.attributes.get("custom_call_target", "").strip('"')

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from, `jit(step)/..`; empty if the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes.get("metadata", ""))
        return found[1] if found else ""

    @property
    def hbm_bytes(self) -> int:
        """Bytes of the result that live in HBM; scalars are left out."""
        return sum(shape.hbm_bytes for shape in self.shapes)

    @functools.cached_property
    def aliases(self) -> Mapping[int, int] | None:
        """Array of the result -> the operand whose memory it takes over; None where the compiler says nothing of it."""
        found = re.search(r'"aliasing_operands":\{"lists":\[((?:\{[^}]*\},?)*)\]', self.config)
        if found is None:
            return None
        lists = [[int(i) for i in re.findall(r"\d+", entry)] for entry in re.findall(r"\[([^\[\]]*)\]", found[1])]
        count = len(self.operands)  # results are numbered after the operands
        return {result - count: operand for operand, *results in lists for result in results if result >= count}


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order in which they run."""

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(i for i in self.instructions.values() if i.root)

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """In the order of the caller's operands."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.literal)))

    @functools.cached_property
    def users(self) -> Mapping[str, Sequence[Instruction]]:
        """Name -> the instructions that take it as an operand, each once."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The operands of an instruction, in order."""
        return [self.instructions[name] for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: Mapping[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction outside fusions and how many times one run of the program executes it.

    Attributes:
      computation: where it stands.
      certain: False in a loop whose trip count could not be read: the count takes that loop as one trip.
    """

    computation: Computation
    instruction: Instruction
    count: int
    certain: bool


def parse(text: str) -> Module:
    """Read what `compiled.as_text()` gives.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] = {}
    name = entry = ""
    for line in _whole_lines(text):
        if name and _CLOSED.match(line):
            computations[name] = Computation(name, instructions)
            name, instructions = "", {}
        elif name:
            if instruction := _instruction(line):
                instructions[instruction.name] = instruction
        elif header := _COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
    if not entry:
        raise ValueError("no ENTRY computation in this text: is it what compiled.as_text() gives?")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """The lines of a program. A kernel's notes may be printed with line breaks in them: those are one with what is before."""
    whole = ""
    for line in text.splitlines():
        if whole and not (_INSTRUCTION.match(line) or _COMPUTATION.match(line) or _CLOSED.match(line)):
            whole += f" {line}" if _INSTRUCTION.match(whole) else ""
            continue
        yield whole
        whole = line
    yield whole


def executed(module: Module, weigh: Callable[[Computation, Instruction], int]) -> list[Executed]:
    """Every instruction outside fusions, with how often it runs; of a conditional, the branch of the largest total weight."""
    return list(_executed(module, module.entry, 1, True, weigh))


def _executed(
    module: Module, name: str, count: int, certain: bool, weigh: Callable[[Computation, Instruction], int]
) -> Iterator[Executed]:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            trips = trip_count(module, computation, instruction)
            times, known = count * (1 if trips is None else trips), certain and trips is not None
            for key in ("body", "condition"):
                inner = _NAMES.findall(instruction.attributes[key])[0]
                yield from _executed(module, inner, times, known, weigh)
        elif instruction.opcode == "conditional":
            branches = [list(_executed(module, branch, count, certain, weigh)) for branch in instruction.called]
            yield from max(branches, key=lambda rows: sum(r.count * weigh(r.computation, r.instruction) for r in rows))
        elif instruction.opcode in ("call", "async-start") and instruction.called:
            yield from _executed(module, instruction.called[0], count, certain, weigh)
        elif instruction.opcode not in ("async-update", "async-done"):
            yield Executed(computation, instruction, count, certain)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How many times a `while` runs: what the compiler says, else by running its counter; None if that needs data."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.config)
    if said:
        return int(said[1])
    initial = computation.instructions[loop.operands[0]]
    body, condition = (module.computations[_NAMES.findall(loop.attributes[key])[0]] for key in ("body", "condition"))
    state: dict[int, int] = {}

    def carried(index: int) -> int:
        if index not in state:
            state[index] = _scalar(module, computation, initial.operands[index], _unknown)
        return state[index]

    try:
        for trips in range(MAX_TRIPS):
            if not _scalar(module, condition, condition.root.name, carried):
                return trips
            following: dict[int, int] = {}
            while missing := state.keys() - following.keys():
                for index in missing:
                    following[index] = _scalar(module, body, body.root.operands[index], carried)
            state.update(following)
    except (KeyError, IndexError, ValueError):
        pass
    return None


def _unknown(index: int) -> int:
    raise KeyError(index)


def _scalar(module: Module, computation: Computation, name: str, carried: Callable[[int], int]) -> int:
    """The value of an integer, where `carried(i)` is element i of the tuple that the computation is given."""
    instruction = computation.instructions[name]
    if instruction.opcode == "constant":
        return int({"true": "1", "false": "0"}.get(instruction.literal, instruction.literal))
    if instruction.opcode == "get-tuple-element":
        if computation.instructions[instruction.operands[0]].opcode != "parameter":
            raise ValueError("an element of something other than what is carried")
        return carried(int(instruction.attributes["index"]))
    if instruction.opcode == "parameter":
        return carried(int(instruction.literal))
    values = [functools.partial(_scalar, module, computation, operand, carried) for operand in instruction.operands]
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called[0]]
        return _scalar(module, inner, inner.root.name, lambda index: values[index]())
    if instruction.opcode == "compare":
        return int(_COMPARE[instruction.attributes["direction"]](values[0](), values[1]()))
    return _ARITHMETIC[instruction.opcode](*[value() for value in values])


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "copy": lambda a: a,
    "convert": lambda a: a,
    "bitcast": lambda a: a,
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
}


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    at = head.end()
    end = _closing(line, at) + 1 if line[at] == "(" else line.index(" ", at)
    shapes = tuple(_shape(*found) for found in _SHAPE.findall(line, at, end))
    opens = line.index("(", end)
    closes = _closing(line, opens)
    literal = line[opens + 1 : closes]
    rest, _, config = line[closes + 1 :].partition(", backend_config=")
    operands = () if line[end + 1 : opens] == "constant" else tuple(_NAMES.findall(literal))
    return Instruction(head[2], line[end + 1 : opens], shapes, operands, literal, _attributes(rest), config, bool(head[1]))


def _attributes(text: str) -> dict[str, str]:
    """`, a={..}, b="..", c=1` -> name: text."""
    found = {}
    for part in _split(text):
        key, equals, value = part.strip().partition("=")
        if equals:
            found[key] = value
    return found


_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[(){}\[\],]')


def _split(text: str) -> Iterator[str]:
    depth = start = 0
    for mark in _BRACKET.finditer(text):
        if mark[0] in "({[":
            depth += 1
        elif mark[0] in ")}]":
            depth -= 1
        elif mark[0] == "," and depth == 0:
            yield text[start : mark.start()]
            start = mark.end()
    yield text[start:]


def _closing(text: str, opens: int) -> int:
    depth = 0
    for mark in _BRACKET.finditer(text, opens):
        depth += {"(": 1, ")": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.start()
    raise ValueError(f"a parenthesis is not closed: {text[opens : opens + 80]}")


@functools.lru_cache(maxsize=4096)
def _shape(dtype: str, dims: str, layout: str) -> Shape:
    sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
    order, _, rest = layout.partition(":")
    minor_first = [int(d) for d in order.split(",") if d]
    stored = [sizes[d] for d in reversed(minor_first)] if minor_first else list(sizes)
    tiles = re.match(r"T((?:\([^)]*\))+)", rest)
    for tile in re.findall(r"\(([^)]*)\)", tiles[1]) if tiles else ():
        stored = _tiled(stored, tile.split(","))
    space = re.search(r"S\((\d+)\)", rest)
    packed = re.search(r"E\((\d+)\)", rest)
    digits = re.search(r"\d+", dtype)
    bits = int(packed[1]) if packed else 8 if dtype == "pred" else int(digits[0]) if digits else 0
    return Shape(dtype, sizes, int(space[1]) if space else HBM, -(-math.prod(stored) * bits // 8))


def _tiled(stored: list[int], tile: list[str]) -> list[int]:
    """The dims, slowest first, after their last ones are cut into tiles, the last of which may be part empty."""
    stored = [1] * (len(tile) - len(stored)) + stored
    outer, inner = stored[: len(stored) - len(tile)], stored[len(stored) - len(tile) :]
    while "*" in tile:  # that dim is merged with the next
        at = tile.index("*")
        tile = tile[:at] + tile[at + 1 :]
        inner = [*inner[:at], inner[at] * inner[at + 1], *inner[at + 2 :]]
    return outer + [-(-dim // int(t)) for dim, t in zip(inner, tile, strict=True)] + [int(t) for t in tile]
