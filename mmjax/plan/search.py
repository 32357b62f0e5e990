"""`mmjax plan --search`: the fastest way to run an experiment on a topology, within a time budget.

The step is compiled once for each rematerialisation and attention. From those every candidate is estimated, what cannot fit is
dropped unseen, and the best are compiled in order, until the best compiled one beats every estimate that is left, or the time
is over.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax

from mmjax.core.errors import UserError
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.plan.batches import Spec, resized
from mmjax.plan.candidates import Candidate, candidates
from mmjax.plan.compile import CompileError, Measured, Worker, measure
from mmjax.plan.depths import stacks
from mmjax.plan.estimate import Calibration, axes_of, estimate, least_bytes, state_sizes
from mmjax.plan.fit import STATE, nothing_fits
from mmjax.plan.roofline import Prediction, predict
from mmjax.plan.topology import Topology
from mmjax.train.experiment import Experiment
from mmjax.train.setup import abstract_state

FIRST_BATCH = 128  # examples a chip that calibrations start from
EXPOSED = 0.02  # of each resource but the slowest; small, so that a ranking by it is one by the roofline within a few percent
NEAR = 1.01  # an estimate this near to what was compiled is not worth compiling
LAST = 2  # compilations that time is kept for when all choices are calibrated, or as many as could be
ROUGHLY = 0.99  # of the memory estimated for one that was refused, from which another of the same choice is not tried
RECOMPUTED = ("none", "cheap", "lean", "full", "dots")  # the less a choice recomputes, the sooner it is tried
Choice = tuple[str, str]  # rematerialisation and attention


@dataclasses.dataclass(frozen=True)
class Found:
    """A candidate and its cost; `compiled` tells whether its own step was, or its cost is estimated."""

    candidate: Candidate
    measured: Measured
    predicted: Prediction
    compiled: bool

    @property
    def kind(self) -> str:
        """How its cost is known."""
        return "compiled" if self.compiled else "estimated"


class Search:
    """A search under way."""

    def __init__(
        self,
        experiment: Experiment,
        shapes: Mapping[str, Spec],
        topology: Topology,
        worker: Worker,
        minutes: float,
        say: Callable[[str], None],
        batches: Sequence[int] = (),
    ) -> None:
        self._experiment, self._shapes, self._topology, self._worker = experiment, shapes, topology, worker
        self._minutes, self._say, self._batches = minutes, say, batches
        self._failed: Exception | None = None
        self._begun = time.monotonic()
        worker.deadline = self._begun + 60 * minutes

    def run(self) -> list[Found]:
        """Candidates, best first: the compiled ones that fit, then the estimated ones.

        Raises:
          UserError: nothing fits, or the time was too short for any estimate.
        """
        every = list(candidates(self._experiment, self._topology, self._batches))
        sizes = self._state_sizes({c.mesh for c in every})
        if all(sum(size[name] for name in STATE) > self._topology.chip.usable for size in sizes.values()):
            raise nothing_fits(min(sum(size[name] for name in STATE) for size in sizes.values()), self._topology)
        bases = self._calibrate(every, sizes)
        if not bases and self._failed:
            raise self._failed
        estimated = sorted(self._estimated(every, bases, sizes), key=_score, reverse=True)
        compiled = self._compile_best(estimated, [self._found(base) for base in bases.values()])
        if not compiled and not estimated:
            raise self._nothing(every, sizes, bases)
        seen = {found.candidate for found in compiled}
        return sorted(compiled, key=_score, reverse=True) + [found for found in estimated if found.candidate not in seen]

    def _nothing(
        self, every: list[Candidate], sizes: Mapping[Mesh, Mapping[str, int]], bases: Mapping[Choice, Calibration]
    ) -> UserError:
        if not bases:
            return UserError(f"--minutes {self._minutes:g}: not one program was compiled in that time; give it more")
        base = next(iter(bases.values()))
        least = min(least_bytes(c, sizes[c.mesh], base.measured.carried) for c in every)
        return nothing_fits(least, self._topology, "state and the least batch")

    def _left(self) -> float:
        """Seconds until the time is over."""
        return 60 * self._minutes - (time.monotonic() - self._begun)

    def _state_sizes(self, meshes: Iterable[Mesh]) -> dict[Mesh, dict[str, int]]:
        one = Mesh().build(jax.devices()[:1])
        with use_mesh(one):
            state = abstract_state(self._experiment, one)
        trained = self._experiment.updating.trained(state.params)
        return {mesh: state_sizes(state, axes_of(mesh), trained) for mesh in meshes}

    def _calibrate(self, every: list[Candidate], sizes: Mapping[Mesh, Mapping[str, int]]) -> dict[Choice, Calibration]:
        """A calibration of each choice that the time allows, the experiment's own choice first."""
        plain = [c for c in every if c.mesh.tensor == c.mesh.sequence == 1 and c.batch_per_chip <= FIRST_BATCH]
        roomy = [c for c in plain if sum(sizes[c.mesh][name] for name in STATE) < 0.6 * self._topology.chip.usable] or plain
        own = {(stack.remat, stack.attention) for stack in stacks(self._experiment.model).values()}
        choices = sorted(
            dict.fromkeys((c.remat, c.attention) for c in roomy),
            key=lambda c: (c not in own, c[1] == "plain", (*RECOMPUTED, c[0]).index(c[0])),
        )
        bases: dict[Choice, Calibration] = {}
        longest = 0.0
        for choice in choices:
            mine = [c for c in roomy if (c.remat, c.attention) == choice]
            first = min(mine, key=lambda c: (c.mesh.fsdp, -c.batch_per_chip, c.exchange != "plain"))
            if self._left() < (1 + LAST) * longest:
                self._say(f"no time to try remat {choice[0]} with attention {choice[1]}")
                continue
            begun = time.monotonic()
            made = self._calibration(first)
            longest = max(longest, time.monotonic() - begun)
            if made:
                bases[choice] = made
        return bases

    def _calibration(self, candidate: Candidate) -> Calibration | None:
        """A candidate's cost; of half its batch where that does not fit, and so on; None once the time is over."""
        while candidate.batch_per_chip >= 1:
            measured = self._tried(candidate)
            if measured is None:
                return None
            if not measured.exceeds:
                return Calibration(candidate, measured)
            candidate = dataclasses.replace(candidate, batch_per_chip=candidate.batch_per_chip // 2)
        return None

    def _estimated(
        self, every: list[Candidate], bases: Mapping[Choice, Calibration], sizes: Mapping[Mesh, Mapping[str, int]]
    ) -> Iterable[Found]:
        usable = self._topology.chip.usable
        for candidate in every:
            base = bases.get((candidate.remat, candidate.attention))
            if base is None or least_bytes(candidate, sizes[candidate.mesh], base.measured.carried) > usable:
                continue
            measured = estimate(candidate, base, sizes[candidate.mesh], self._topology)
            if measured.hbm <= usable:
                yield Found(candidate, measured, predict(measured, self._topology, self._experiment.steps), False)

    def _compile_best(self, estimated: list[Found], compiled: list[Found]) -> list[Found]:
        refused: dict[Choice, float] = {}  # the least memory that was estimated for one which did not fit
        seen = {found.candidate for found in compiled}
        for found in estimated:
            best = max(map(_score, compiled), default=0.0)
            if _score(found) <= NEAR * best or self._left() <= 0:
                break
            choice, taken = (found.candidate.remat, found.candidate.attention), found.measured.hbm
            if found.candidate in seen or taken >= ROUGHLY * refused.get(choice, float("inf")):
                continue
            measured = self._tried(found.candidate)
            if measured is None:
                continue
            if measured.exceeds:
                refused[choice] = min(taken, refused.get(choice, float("inf")))
                continue
            compiled.append(self._found(Calibration(found.candidate, measured)))
        return compiled

    def _tried(self, candidate: Candidate) -> Measured | None:
        """A candidate's cost; None where it cannot be run or the time is over."""
        begun = time.monotonic()
        experiment, shapes = self._applied(candidate)
        try:
            measured = measure(self._worker, experiment, shapes, self._topology)
        except TimeoutError:
            return None
        except (UserError, CompileError) as error:
            self._failed = error
            self._say(f"not possible: {self._line(candidate)}: {error}")
            return None
        verdict = "does not fit" if measured.exceeds else "compiled"
        self._say(f"{verdict}: {self._line(candidate)} ({time.monotonic() - begun:.0f} s)")
        return measured

    def _found(self, known: Calibration) -> Found:
        predicted = predict(known.measured, self._topology, self._experiment.steps)
        return Found(known.candidate, known.measured, predicted, True)

    def _applied(self, candidate: Candidate) -> tuple[Experiment, dict[str, Spec]]:
        experiment = candidate.apply(self._experiment, self._topology)
        return experiment, resized(self._shapes, {name: experiment.data[name].batch_size for name in self._shapes})

    def _line(self, candidate: Candidate) -> str:
        return candidate.flags(self._experiment, self._topology) or "the config as it is"


def _score(found: Found) -> float:
    """Examples a second if a little of what should hide behind the slowest resource does not: decides between what ties."""
    seconds = found.predicted.seconds.values()
    exposed = EXPOSED * (sum(seconds) - found.predicted.step_seconds)
    return found.measured.examples / (found.predicted.step_seconds + exposed)
