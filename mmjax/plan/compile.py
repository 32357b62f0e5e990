"""The real step, compiled for a TPU in a process beside this one, and what it says of its cost."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.core.config import to_json
from mmjax.core.errors import UserError
from mmjax.plan.batches import Spec, rows
from mmjax.plan.depths import cut, laid_out, stack_depths, whole
from mmjax.plan.topology import Topology
from mmjax.train.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the compiler and the program say of one step. Bytes are of one chip, FLOPs of all.

    Attributes:
      mesh: axis -> size.
      examples: of all streams in a step, on all chips.
      sizes: bytes of `params`, `optimizer`, `ema`, `batch`; and `parameters`, their number in all.
      memory: bytes, at the peak, of `arguments`, `temporaries`, `outputs` (those that reuse no argument) and `program`; {} on
        a GPU.
      exceeds: bytes that a program which does not fit would take; 0 for one that fits.
      model_flops: three times the forward's.
      hardware_flops: with what the backward recomputes.
      traffic: bytes `read` from and `written` to HBM.
      collectives: `opcode axis+axis` -> bytes sent.
      carried: bytes an example that enter layers, all layers together.
      seconds: of compiling.
    """

    mesh: Mapping[str, int]
    examples: int
    sizes: Mapping[str, int]
    model_flops: float
    hardware_flops: float
    memory: Mapping[str, int] = dataclasses.field(default_factory=dict)
    exceeds: float = 0.0
    traffic: Mapping[str, float] = dataclasses.field(default_factory=dict)
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    carried: float = 0.0
    seconds: float = 0.0

    @property
    def hbm(self) -> int:
        """Bytes of HBM in use at most."""
        return sum(self.memory.values())


class CompileError(RuntimeError):
    """The compiler refused a program, for another reason than that it does not fit HBM."""


class Worker:
    """A process that compiles, one job after the other.

    Attributes:
      deadline: by `time.monotonic`, when what it is doing is to be given up.
    """

    def __init__(self, topology: Topology) -> None:
        if topology.kind != "gpu" and importlib.util.find_spec("libtpu") is None:
            raise UserError(f"--topology {topology.name}: compiling for a TPU needs libtpu; pip install 'mmjax[tpu]' brings it")
        self.deadline = math.inf
        self._topology = topology
        self._noise = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmjax.plan.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
            env=_environment(topology),
        )

    def ask(
        self, experiment: Experiment, shapes: Mapping[str, Spec], group: Sequence[str], wants: Sequence[str]
    ) -> dict[str, Any]:
        """One job's answer; see `worker.answer`. Past `deadline` the process is ended.

        Raises:
          UserError: what the job found wrong.
          CompileError: the compiler refused, for another reason than HBM.
          TimeoutError: the deadline.
        """
        return self._answer(experiment, {"shapes": shapes, "group": list(group), "wants": list(wants)})

    def ask_decode(self, experiment: Experiment, batch: int, prompt: int, new: int) -> dict[str, Any]:
        """The same of the program that writes `new` tokens after each of `batch` prompts of `prompt` tokens."""
        return self._answer(experiment, {"decode": [batch, prompt, new]})

    def _answer(self, experiment: Experiment, asked: Mapping[str, Any]) -> dict[str, Any]:
        where = {"topology": self._topology.name, "slices": self._topology.slices}
        job = {"experiment": to_json(experiment), **where, **asked}
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(max(0.0, self.deadline - time.monotonic()), give_up)
        if self.deadline < math.inf:
            timer.start()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            if late.is_set():
                raise TimeoutError("the time is over")
            self._noise.seek(0)
            raise RuntimeError(f"the compiling process ended:\n{self._noise.read()[-4000:]}")
        reply = json.loads(line)
        if "mistake" in reply:
            raise UserError(reply["mistake"])
        if "failed" in reply:
            raise CompileError(reply["failed"])
        return reply

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._noise.close()


@contextlib.contextmanager
def worker(topology: Topology) -> Iterator[Worker]:
    """A `Worker`, ended at the end."""
    made = Worker(topology)
    try:
        yield made
    finally:
        made.close()


def measure(worker: Worker, experiment: Experiment, shapes: Mapping[str, Spec], topology: Topology) -> Measured:
    """Everything about an experiment's step; where steps take turns (`alternate`), the mean, and the most memory.

    Raises:
      UserError: the experiment, or its mesh on this topology.
    """
    found = [_measure(worker, experiment, shapes, group, topology) for group in dict.fromkeys(experiment.groups())]
    return average(found) if len(found) > 1 else found[0]


def _measure(
    worker: Worker, experiment: Experiment, shapes: Mapping[str, Spec], group: tuple[str, ...], topology: Topology
) -> Measured:
    compiles, long = topology.kind != "gpu", laid_out(experiment.model)
    wants = ["sizes", "flops", *["memory"] * compiles, *["traffic"] * (compiles and not long)]
    main = worker.ask(experiment, shapes, group, wants)
    made = dataclasses.replace(_traced(main, shapes, group), exceeds=main.get("exceeds", 0.0))
    if not compiles or made.exceeds:
        return made
    made = dataclasses.replace(made, memory=main["memory"], seconds=main["seconds"])
    if not long:
        return dataclasses.replace(made, traffic=main["traffic"], collectives=sent_in(main))
    cut = measure_cut(worker, experiment, shapes, group)
    seconds = made.seconds + cut.seconds
    return dataclasses.replace(made, traffic=cut.traffic, collectives=cut.collectives, seconds=seconds)


def measure_cut(worker: Worker, experiment: Experiment, shapes: Mapping[str, Spec], group: tuple[str, ...]) -> Measured:
    """As `measure`, with traffic and collectives from programs of one and two layers (see `depths`), and no memory."""
    depths = [depth for depth in stack_depths(experiment.model) if depth > 1]
    made = _traced(worker.ask(experiment, shapes, group, ["sizes", "flops"]), shapes, group)
    replies = [worker.ask(cut(experiment, two), shapes, group, ["traffic"]) for two in (0, *depths)]
    if any("exceeds" in reply for reply in replies):
        raise MemoryError("one or two layers do not fit")
    parts = [reply["traffic"] for reply in replies], [sent_in(reply) for reply in replies]
    traffic, collectives = (whole(part[0], part[1:], depths) for part in parts)
    return dataclasses.replace(
        made, traffic=traffic, collectives=collectives, seconds=sum(reply["seconds"] for reply in replies)
    )


def _traced(main: Mapping[str, Any], shapes: Mapping[str, Spec], group: tuple[str, ...]) -> Measured:
    return Measured(
        mesh=main["mesh"],
        examples=sum(rows(shapes, name) for name in group),
        sizes=main["sizes"],
        model_flops=main["flops"]["model"],
        hardware_flops=main["flops"]["hardware"],
        carried=main["flops"]["carried"],
    )


def sent_in(reply: Mapping[str, Any]) -> dict[str, float]:
    """`opcode axis+axis` -> bytes that a chip sends, of a reply's collectives."""
    sent: dict[str, float] = {}
    for opcode, axes, size in reply["collectives"]:
        name = f"{opcode} {'+'.join(axes)}"
        sent[name] = sent.get(name, 0.0) + size
    return sent


def average(found: Sequence[Measured]) -> Measured:
    """The mean over steps that take turns; the most memory of any."""

    def mean(field: str) -> dict[str, float]:
        names = dict.fromkeys(name for one in found for name in getattr(one, field))
        return {name: sum(getattr(one, field).get(name, 0.0) for one in found) / len(found) for name in names}

    most = max(found, key=lambda one: (one.exceeds, one.hbm))
    return dataclasses.replace(
        most,
        examples=sum(one.examples for one in found) // len(found),
        model_flops=sum(one.model_flops for one in found) / len(found),
        hardware_flops=sum(one.hardware_flops for one in found) / len(found),
        traffic=mean("traffic"),
        collectives=mean("collectives"),
        seconds=sum(one.seconds for one in found),
    )


def _environment(topology: Topology) -> dict[str, str]:
    """This process's, with what keeps libtpu from looking for a TPU and from waiting for another process's lock."""
    inherited, ours = dict(os.environ), {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    if topology.kind == "gpu":
        ours["XLA_FLAGS"] = f"{inherited.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={topology.chips}"
    else:
        inherited.pop("XLA_FLAGS", None)  # libtpu ends the process over a flag that it does not know
        ours |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": topology.chip.accelerator,
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    return inherited | ours
