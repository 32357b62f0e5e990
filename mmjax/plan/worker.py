"""The process that compiles: `python -m mmjax.plan.worker` reads a job, one JSON object a line, and answers each with one.

It is a process of its own because libtpu writes to the terminal, holds a lock, and wants its variables set before JAX loads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from mmjax.convert.teaching import teacher
from mmjax.core.config import from_json
from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.parallel.mesh import AXES, use_mesh
from mmjax.plan import collectives, hlo, traffic
from mmjax.plan.batches import Shapes, any_tokenizer
from mmjax.plan.decode_program import Asked, lower_decode
from mmjax.plan.depths import plainest
from mmjax.plan.topology import GIB, parse_topology
from mmjax.train.asked import only_asked
from mmjax.train.setup import Setup, abstract_state, check_mesh, task_shapes
from mmjax.train.state import TEACHERS, State
from mmjax.train.step import make_step, task_losses
from mmjax.train.teachers import known_teachers
from mmjax.train.trained import ALL, Trained

UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": GIB, "T": GIB << 10}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job.

    A job has `experiment` (JSON), `topology`, `slices`, `shapes` (see `batches.Spec`), `group` (the streams of the step) and
    `wants`: any of `sizes`, `flops`, `memory` and `traffic`; the latter two compile the step. Or it has, in place of the last
    three, `decode`: [batch, prompt, new], and the program that writes texts is compiled.
    """
    experiment = from_json(job["experiment"])
    mesh = experiment.mesh.build(_devices(job["topology"], job["slices"]))
    if "decode" in job:
        with use_mesh(mesh):
            return {"mesh": dict(mesh.shape)} | _compiled(lower_decode(experiment.model, mesh, Asked(*job["decode"])), mesh)
    wants, group = job["wants"], tuple(job["group"])
    with use_mesh(mesh):
        check_mesh(experiment, mesh)
        datasets: dict[str, Any] = {name: Shapes(spec) for name, spec in job["shapes"].items()}
        teachers = known_teachers(experiment, None, teacher)
        state = abstract_state(experiment, mesh, task_shapes(experiment, datasets), teachers)
        # Prompts of classes are of the length of all texts, whatever their words.
        reads = any(hasattr(task.objective, "bound") for task in experiment.tasks.values())
        setup, _ = only_asked(
            Setup(experiment, mesh, {"": any_tokenizer()} if reads else {}, datasets, state, teachers=teachers)
        )
        state = setup.abstract
        found: dict[str, Any] = {"mesh": dict(mesh.shape)}
        if "sizes" in wants:
            found["sizes"] = sizes(state, setup.trained()) | {"batch": _bytes_per_chip(setup.batch_shapes(group))}
        if "flops" in wants:
            found["flops"] = _flops(setup, group)
        if "memory" in wants or "traffic" in wants:
            found |= _compiled(setup.lower_step(group), mesh, wants)
    return found


def sizes(state: State, trained: Trained = ALL) -> dict[str, int]:
    """Bytes a chip of each part of the state and of a gradient of what is trained, and how many parameters there are in all."""
    parts = {name: _bytes_per_chip(getattr(state, name)) for name in ("params", "optimizer", "ema")}
    parts["gradients"] = _bytes_per_chip(trained.of(state.params))
    parts |= {TEACHERS: _bytes_per_chip(state.variables[TEACHERS])} if TEACHERS in state.variables else {}
    return parts | {"parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params))}


def _bytes_per_chip(tree: Any) -> int:
    def one(leaf: Any) -> int:
        size = leaf.dtype.itemsize
        for dim in leaf.sharding.shard_shape(leaf.shape):
            size *= dim
        return size

    return sum(map(one, jax.tree.leaves(tree)))


def _flops(setup: Setup, group: tuple[str, ...]) -> dict[str, float]:
    """Of all chips.

    `model`: three times the forward's, by the plain loss and attention, which compute nothing twice. `hardware`: those of the
    step as traced, which has what its backward and its kernels recompute. `carried`: bytes an example that enter layers, all
    layers together.
    """
    e, state = setup.experiment, setup.abstract
    tx, rate = e.updating.build(state.params, e.steps), e.optimizer.rate(e.steps)
    step = make_step(
        e.model, setup.tasks_of(group), e.weighting, e.updating, tx, rate, setup.group_number(group), setup.teachings
    )
    plain = dataclasses.replace(setup, experiment=plainest(e))
    model, tasks, teachers = plain.experiment.model, plain.tasks_of(group), plain.teachings

    def forward(params: Any, batches: Any, key: Any, variables: Any) -> Any:
        return task_losses(model, tasks, params, batches, key, variables=variables, teachers=teachers)

    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(forward)(state.params, setup.batch_shapes(group), key, state.variables)
    examples = sum(batch["index"].shape[0] for batch in setup.batch_shapes(group).values())
    return {
        "carried": carried_bytes(traced.jaxpr) / examples,
        "model": plain.step_flops(group),
        "hardware": count_flops(step, state, setup.batch_shapes(group)),
    }


def carried_bytes(jaxpr: Any) -> int:
    """Bytes of what the scans of a jaxpr hand from step to step, all their steps together."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            (body,) = core.jaxprs_in_params(equation.params)
            pairs: Any = zip(equation.outvars, body.outvars, strict=True)
            handed = (out.aval for out, inside in pairs if out.aval.shape == inside.aval.shape)  # the others are stacked
            total += equation.params["length"] * sum(aval.size * aval.dtype.itemsize for aval in handed if aval.ndim)
        else:
            total += sum(map(carried_bytes, core.jaxprs_in_params(equation.params)))
    return total


def _compiled(
    lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, wants: Sequence[str] = ("memory", "traffic")
) -> dict[str, Any]:
    begun = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = exceeded(str(error))
        if used is None:
            raise
        return {"exceeds": used}
    found: dict[str, Any] = {"seconds": time.monotonic() - begun}
    if "memory" in wants:
        m = compiled.memory_analysis()
        assert m is not None
        # The size of all temporaries is no use here: on a TPU it is up to a sixth more than programs that fit can have had.
        outputs = m.output_size_in_bytes - m.alias_size_in_bytes
        found["memory"] = {
            "arguments": m.argument_size_in_bytes,
            "temporaries": max(0, m.peak_memory_in_bytes - m.argument_size_in_bytes - outputs),
            "outputs": outputs,
            "program": m.generated_code_size_in_bytes,
        }
    if "traffic" in wants:
        text = compiled.as_text()
        assert text is not None
        module = hlo.parse(text)
        crossed = traffic.hbm_bytes(module)
        found["traffic"] = {"read": crossed.read, "written": crossed.written}
        axes = {axis: mesh.shape[axis] for axis in AXES}
        sent = collectives.collective_bytes(module, axes)
        found["collectives"] = [[c.opcode, list(c.axes), c.bytes] for c in sent]
        # Of loops whose trips depend on data, one trip; of the program that writes texts, a token.
        found["trip"] = {
            "traffic": sum(row.total for row in crossed.rows if not row.certain),
            "collectives": [[c.opcode, list(c.axes), c.bytes] for c in sent if not c.certain],
        }
    return found


def exceeded(message: str) -> float | None:
    """Bytes that a program needs, from libtpu's message that it does not fit; None for any other message."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    number = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {number} of", message) or re.search(rf"\({number}\) exceeds available", message)
    return float(found.group(1)) * UNITS[found.group(2)] if found else None


def _devices(name: str, slices: int) -> list[jax.Device]:
    topology = parse_topology(name, slices)
    if topology.kind == "gpu":
        return jax.devices()[: topology.chips]
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **topology.libtpu_options()).devices)


def main() -> None:
    """Answer jobs until the input ends. Only answers reach standard output; libtpu's own words go to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except UserError as error:
            reply = {"mistake": str(error)}
        except jax.errors.JaxRuntimeError as error:
            reply = {"failed": " ".join(str(error).split())[:400]}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
