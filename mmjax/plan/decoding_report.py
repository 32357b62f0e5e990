"""What `mmjax plan --decode` prints: the counts of `decoding`, timed by the roofline, as a table and one JSON object."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from mmjax.core.config import check_ranges
from mmjax.core.errors import UserError
from mmjax.parallel.mesh import AXES, BATCH
from mmjax.plan.compile import sent_in, worker
from mmjax.plan.decode_program import Asked, asked
from mmjax.plan.decoding import Decoding, Work, decoding
from mmjax.plan.report import Row, gib, giga, said
from mmjax.plan.roofline import collective_seconds
from mmjax.plan.topology import Topology
from mmjax.train.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Times:
    """As `roofline.Prediction`: nothing runs above its peak. Floors but for what is kept in on-chip memory (see `decoding`).

    Attributes:
      prefill, token: resource -> seconds that the prompts, or one token of each text, take of it.
      prefill_seconds, prefill_bound, token_seconds, token_bound: of the slowest, and its name.
      seconds: of the whole: the prompts give the first token, and each further one is a turn.
      tokens_per_second: of one chip, in the turns; `whole_tokens_per_second` with the prompts' time.
    """

    prefill: Mapping[str, float]
    token: Mapping[str, float]
    prefill_seconds: float
    prefill_bound: str
    token_seconds: float
    token_bound: str
    seconds: float
    tokens_per_second: float
    whole_tokens_per_second: float


def times(found: Decoding, topology: Topology) -> Times:
    """The roofline of what was counted."""
    prefill, token = _seconds(found.prefill, topology), _seconds(found.token, topology)
    (begun, first), (turn, then) = (max((much, name) for name, much in one.items()) for one in (prefill, token))
    ask, whole = found.asked, begun + (found.asked.new - 1) * turn
    rates = ask.batch / turn / topology.chips, ask.batch * ask.new / whole / topology.chips
    return Times(prefill, token, begun, first, turn, then, whole, *rates)


def _seconds(work: Work, topology: Topology) -> dict[str, float]:
    chip = topology.chip
    own = {"compute": work.flops / chip.flops, "hbm": sum(work.traffic.values()) / chip.hbm_rate}
    return own | collective_seconds(work.collectives, topology)


def report(name: str, experiment: Experiment, topology: Topology, word: str, compiles: bool) -> str:
    """The table, and on its last line the JSON object.

    Args:
      word: BATCH,PROMPT,NEW.
      compiles: compile the program as well, to hold the counts against.

    Raises:
      UserError: as `decoding`; a GPU; parameters and cache that no chip has room for.
    """
    ask = asked(word)
    if topology.kind == "gpu":
        raise UserError("--decode is timed by a chip's figures, and there are none of a gpu: name a TPU topology")
    check_ranges(experiment)
    mesh = dict(zip(AXES, experiment.mesh.shape(topology.chips, topology.slices), strict=True))
    found = decoding(experiment.model, mesh, ask)
    _check_fits(name, found, topology)
    predicted, compiled = times(found, topology), _compiled(name, experiment, topology, ask) if compiles else None
    head = {"config": name, "topology": topology.name, "slices": topology.slices, "chips": topology.chips}
    counted = dataclasses.asdict(found) | {"memory_total": sum(found.memory.values())}
    whole = head | {"decode": counted, "predicted": dataclasses.asdict(predicted), "compiled": compiled}
    return f"{_table(name, topology, found, predicted, compiled)}\n\n{json.dumps(whole)}"


def _check_fits(name: str, found: Decoding, topology: Topology) -> None:
    room, memory, ask = topology.chip.usable, found.memory, found.asked
    if sum(memory.values()) <= room:
        return
    ways = math.prod(found.mesh[axis] for axis in BATCH)
    left = room - sum(memory.values()) + memory["cache"]
    texts = max(0, left) * (ask.batch // ways) // memory["cache"] * ways
    takes = f"{gib(sum(memory.values()))} of the {gib(room)} that a chip has, {gib(memory['cache'])} of them its cache"
    use = f"a batch of at most {texts}" if texts else "more chips, with --mesh.tensor"
    raise UserError(f"{name} on {topology}: --decode {ask} takes {takes}; use {use}")


def _compiled(name: str, experiment: Experiment, topology: Topology, ask: Asked) -> dict[str, Any]:
    """What the compiler says of the same, of one chip: `memory`, and bytes across HBM and sent of the `prefill` and of a
    `token`."""
    with worker(topology) as compiling:
        reply = compiling.ask_decode(experiment, ask.batch, ask.prompt, ask.new)
    if exceeds := reply.get("exceeds"):
        room = gib(topology.chip.usable)
        raise UserError(f"{name} on {topology}: --decode {ask}, compiled, takes {gib(exceeds)} of the {room} that a chip has")
    trip, sent, turn = reply["trip"]["traffic"], sent_in(reply), sent_in(reply["trip"])
    once = {key: size - turn.get(key, 0) for key, size in sent.items()}
    return {
        "memory": reply["memory"],
        "traffic": {"prefill": sum(reply["traffic"].values()) - trip, "token": trip},
        "collectives": {"prefill": once, "token": turn},
        "seconds": reply["seconds"],
    }


def _table(name: str, topology: Topology, found: Decoding, predicted: Times, compiled: Mapping[str, Any] | None) -> str:
    ask, mesh = found.asked, " x ".join(f"{axis} {size}" for axis, size in found.mesh.items() if size > 1) or "one chip"
    lines = [
        f"{name} on {topology}: {topology.chips} chips, {mesh}; decoders.{found.decoder} writes {ask.new} tokens after each of "
        f"{ask.batch} prompts of {ask.prompt}, in {found.dtype}",
        "",
    ]
    rows = [*_memory(found, topology), *_work(found), *_time(predicted)]
    if compiled:
        rows += _beside(compiled)
    return "\n".join([*lines, *said(rows)])


def _memory(found: Decoding, topology: Topology) -> list[Row]:
    total, room = sum(found.memory.values()), topology.chip.usable
    kept = {
        "parameters": "a chip: all of the model's, float32",
        "weights": f"a chip: the decoder's once more, {found.dtype}, as the program lays them out",
    }
    cache = f"a chip; {gib(sum(found.cache.values()))} on all"
    if found.cache["context"]:
        cache += f", {gib(found.cache['context'])} of it of what the texts are about"
    return [
        *[(f"predicted {what}", gib(found.memory[what]), how) for what, how in kept.items() if found.memory[what]],
        ("predicted cache", gib(found.memory["cache"]), cache),
        ("predicted HBM in use", gib(total), f"a chip at least, {total / room:.0%} of {gib(room)}"),
    ]


def _work(found: Decoding) -> list[Row]:
    rows = [("predicted weights read", giga(found.weights), "a token of all texts, all chips")]
    for what, work in (("prompts", found.prefill), ("a token", found.token)):
        crossed = ", ".join(f"{giga(size)} {kind}" for kind, size in work.traffic.items() if size)
        rows += [
            (f"predicted FLOPs of {what}", f"{work.flops / 1e9:.2f} GFLOP", "a chip"),
            (f"predicted HBM traffic of {what}", giga(sum(work.traffic.values())), f"a chip: {crossed}"),
            *[(f"predicted {kind} of {what}", giga(size), "a chip sends") for kind, size in work.collectives.items()],
        ]
    return rows


def _time(predicted: Times) -> list[Row]:
    return [
        ("predicted prefill", f"{1e3 * predicted.prefill_seconds:.3f} ms", f"at peak; bound by {predicted.prefill_bound}"),
        (
            "predicted token",
            f"{1e3 * predicted.token_seconds:.3f} ms",
            f"at peak, of all texts; bound by {predicted.token_bound}",
        ),
        ("predicted tokens/s/chip", f"{predicted.tokens_per_second:.1f}", "at peak, once the prompts are read"),
        ("predicted tokens/s/chip in all", f"{predicted.whole_tokens_per_second:.1f}", "at peak, the prompts' time included"),
        ("predicted seconds", f"{predicted.seconds:.4f}", "at peak, the whole"),
    ]


def _beside(compiled: Mapping[str, Any]) -> list[Row]:
    return [
        (
            "compiled HBM in use",
            gib(sum(compiled["memory"].values())),
            "a chip; of the parameters, those that the program reads",
        ),
        *[
            (f"compiled HBM traffic of {what}", giga(compiled["traffic"][key]), "a chip")
            for what, key in (("prompts", "prefill"), ("a token", "token"))
        ],
    ]
