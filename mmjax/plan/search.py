"""`mmjax plan --search`: the fastest way to run an experiment on a topology, within a time budget.

Programs of one and two layers are compiled once for each rematerialisation and attention. From those every candidate is
estimated, what cannot fit is dropped unseen, and the best are compiled in full, in order, until the best compiled one beats
every estimate that is left, or the time is over.
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
from mmjax.plan.compile import CompileError, Measured, Worker, average, measure, measure_cut
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
CALIBRATING = 0.6  # of the time at most; the rest compiles the best in full
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
        compiled = self._compile_best(estimated)
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
        least = min(least_bytes(c, sizes[c.mesh], base.carried) for c in every)
        return nothing_fits(least, self._topology, "state and the least batch")

    def _left(self, share: float = 1.0) -> float:
        """Seconds until a share of the time is over."""
        return 60 * self._minutes * share - (time.monotonic() - self._begun)

    def _state_sizes(self, meshes: Iterable[Mesh]) -> dict[Mesh, dict[str, int]]:
        one = Mesh().build(jax.devices()[:1])
        with use_mesh(one):
            state = abstract_state(self._experiment, one)
        return {mesh: state_sizes(state, axes_of(mesh)) for mesh in meshes}

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
            if self._left(CALIBRATING) < longest:
                self._say(f"no time to try remat {choice[0]} with attention {choice[1]}")
                continue
            begun = time.monotonic()
            made = self._calibration(first)
            longest = max(longest, time.monotonic() - begun)
            if made:
                bases[choice] = made
                self._say(
                    f"compiled 1 and 2 layers: remat {choice[0]}, attention {choice[1]} ({time.monotonic() - begun:.0f} s)"
                )
        return bases

    def _calibration(self, candidate: Candidate) -> Calibration | None:
        """1 and 2 layers of a candidate; of half its batch where those do not fit, and so on; None once the time is over."""
        while candidate.batch_per_chip >= 1:
            experiment, shapes = self._applied(candidate)
            groups = dict.fromkeys(experiment.groups())
            try:
                found = [measure_cut(self._worker, experiment, shapes, group) for group in groups]
            except TimeoutError:
                return None
            except (UserError, CompileError) as error:
                self._failed = error
                self._say(f"not possible: {self._line(candidate)}: {error}")
                return None
            if all(measured.hbm for measured, _ in found):
                return Calibration(
                    candidate, average([measured for measured, _ in found]), max(carried for _, carried in found)
                )
            candidate = dataclasses.replace(candidate, batch_per_chip=candidate.batch_per_chip // 2)
        return None

    def _estimated(
        self, every: list[Candidate], bases: Mapping[Choice, Calibration], sizes: Mapping[Mesh, Mapping[str, int]]
    ) -> Iterable[Found]:
        usable = self._topology.chip.usable
        for candidate in every:
            base = bases.get((candidate.remat, candidate.attention))
            if base is None or least_bytes(candidate, sizes[candidate.mesh], base.carried) > usable:
                continue
            measured = estimate(candidate, base, sizes[candidate.mesh], self._topology)
            if measured.hbm <= usable:
                yield Found(candidate, measured, predict(measured, self._topology, self._experiment.steps), False)

    def _compile_best(self, estimated: list[Found]) -> list[Found]:
        compiled: list[Found] = []
        too_large: list[Candidate] = []
        for found in estimated:
            best = max(map(_score, compiled), default=0.0)
            if _score(found) <= NEAR * best or self._left() <= 0:
                break
            if any(_no_smaller(found.candidate, other) for other in too_large):
                continue
            begun = time.monotonic()
            try:
                measured = self._measure(found.candidate)
            except TimeoutError:
                break
            except (UserError, CompileError) as error:
                self._say(f"not possible: {self._line(found.candidate)}: {error}")
                continue
            self._say(f"compiled {self._line(found.candidate)} in full ({time.monotonic() - begun:.0f} s)")
            if measured.exceeds:
                too_large.append(found.candidate)
                continue
            compiled.append(Found(found.candidate, measured, predict(measured, self._topology, self._experiment.steps), True))
        return compiled

    def _measure(self, candidate: Candidate) -> Measured:
        experiment, shapes = self._applied(candidate)
        return measure(self._worker, experiment, shapes, self._topology)

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


def _no_smaller(candidate: Candidate, other: Candidate) -> bool:
    """Whether a candidate differs from one that did not fit in its batch alone, and not for the smaller."""
    return candidate.batch_per_chip >= other.batch_per_chip and candidate == dataclasses.replace(
        other, batch_per_chip=candidate.batch_per_chip
    )
