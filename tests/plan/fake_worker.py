"""Answers jobs as a compiler would, by formulas that the test knows, and remembers what it was asked."""

import math

from mmjax.parallel.mesh import BATCH
from mmjax.plan.compile import Measured
from mmjax.plan.depths import stacks
from mmjax.plan.estimate import axes_of, state_sizes

PER_LAYER = {
    "none": (6e6, 9e6, 1.0),
    "cheap": (4e6, 8e6, 1.1),
    "dots": (4e6, 8e6, 1.15),
    "lean": (2e6, 7.5e6, 1.2),
    "full": (1e6, 7e6, 1.33),
}


class FakeWorker:
    """Memory, traffic and FLOPs of an example and layer depend on `remat` and `attention` as `PER_LAYER` says."""

    def __init__(self, topology, state, clock=lambda: None):
        self.topology, self.state, self.clock = topology, state, clock
        self.deadline = math.inf
        self.asked = []
        self.sizes = {}  # by mesh

    def ask(self, experiment, shapes, group, wants):
        self.asked.append((experiment, tuple(wants)))
        self.clock()
        rows = shapes["train"]["index"][0][0]
        axes = axes_of(experiment.mesh)
        split = math.prod(axes[axis] for axis in BATCH) * axes["sequence"]
        if (mesh := tuple(axes.values())) not in self.sizes:
            self.sizes[mesh] = state_sizes(self.state, axes)
        sizes = {**self.sizes[mesh], "batch": 0, "parameters": 0}
        layers = list(stacks(experiment.model).values())
        depth = sum(stack.depth for stack in layers)
        kept, moved, times = PER_LAYER[layers[0].remat]
        slow = 1.5 if layers[0].attention == "plain" else 1.0
        found = {"mesh": axes, "sizes": sizes, "seconds": 1.0}
        flops = rows * depth * 1e9
        found["flops"] = {"model": flops, "hardware": flops * times, "carried": 1e5 * depth}
        memory = {"arguments": sum(sizes[n] for n in ("params", "optimizer", "ema")), "temporaries": sizes["params"]}
        memory["temporaries"] += rows / split * depth * kept * slow
        if memory["arguments"] + memory["temporaries"] > self.topology.chip.usable:
            return found | {"exceeds": float(sum(memory.values()))}
        found["memory"] = {name: int(size) for name, size in memory.items()}
        found["traffic"] = {"read": 11.0 * sizes["params"], "written": rows / split * depth * moved * slow}
        tensor = 8 * (axes["tensor"] - 1) / axes["tensor"] * rows / split * depth * 1e5
        found["collectives"] = [["all-reduce", ["data"], sizes["params"]], ["all-reduce", ["tensor"], tensor]]
        return found


def measured(reply, rows):
    """A reply as `Measured`, for a test to predict from."""
    sent = {f"{opcode} {'+'.join(axes)}": size for opcode, axes, size in reply["collectives"]}
    flops = reply["flops"]
    return Measured(
        reply["mesh"], rows, reply["sizes"], flops["model"], flops["hardware"], reply["memory"], 0.0, reply["traffic"], sent
    )
