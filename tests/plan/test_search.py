import functools
import itertools
import time

import fake_worker
import jax
import pytest
from fake_worker import FakeWorker, measured
from plan_tiny import experiment

from mmjax.core.errors import UserError
from mmjax.parallel.mesh import Mesh
from mmjax.plan import candidates as grid
from mmjax.plan import search as searching
from mmjax.plan.batches import batch_shapes, resized
from mmjax.plan.candidates import Candidate, candidates
from mmjax.plan.compile import CompileError, measure, worker
from mmjax.plan.roofline import predict
from mmjax.plan.search import Search
from mmjax.plan.topology import parse_topology
from mmjax.train.config_file import apply_flags
from mmjax.train.setup import abstract_state

V5E = parse_topology("v5e:2x2")
BASE = experiment(image_depth=12, text_depth=12)


@functools.cache
def state():
    return abstract_state(BASE, Mesh().build(jax.devices()[:1]))


@functools.cache
def shapes():
    return batch_shapes(BASE)[0]


def run(fake, minutes=15.0, said=None):
    return Search(BASE, shapes(), V5E, fake, minutes, (said if said is not None else []).append).run()


def rate(fake, candidate):
    """Examples a second of a candidate compiled in full; 0 where it does not fit."""
    applied = candidate.apply(BASE, V5E)
    rows = applied.data["train"].batch_size
    reply = fake.ask(applied, resized(shapes(), {"train": rows}), ("train",), ())
    return 0.0 if "exceeds" in reply else predict(measured(reply, rows), V5E, 1).examples_per_second


def test_nothing_of_a_whole_grid_beats_what_is_found_by_more_than_5_percent(monkeypatch):
    monkeypatch.setattr(grid, "BATCHES", (32, 128, 256, 512))
    monkeypatch.setattr(grid, "TILES", (1024,))
    fake, said = FakeWorker(V5E, state()), []
    found = run(fake, said=said)
    tried = len(fake.asked)
    assert tried <= 5 * 2 + 12
    best = max(rate(fake, candidate) for candidate in candidates(BASE, V5E))
    assert found[0].compiled
    assert found[0].predicted.examples_per_second >= best / 1.05
    assert len(said) == tried
    assert sum(line.startswith("compiled") for line in said) == sum(one.compiled for one in found)


def test_the_best_is_compiled_and_its_flags_rebuild_it():
    found = run(FakeWorker(V5E, state()))
    best = found[0].candidate
    assert apply_flags(BASE, best.flags(BASE, V5E).split()) == best.apply(BASE, V5E)
    assert best.mesh.tensor == best.mesh.sequence == 1
    assert best.attention == "auto"
    rates = [one.predicted.examples_per_second for one in found if not one.compiled]
    assert all(earlier > 0.95 * later for earlier, later in itertools.pairwise(rates))


def test_where_candidates_tie_at_the_roofline_the_first_compiled_is_enough(monkeypatch):
    monkeypatch.setattr(grid, "BATCHES", (128, 256, 512))
    monkeypatch.setattr(fake_worker, "PER_LAYER", dict.fromkeys(fake_worker.PER_LAYER, (1e6, 1e5, 1.0)))  # bound by compute
    found = run(FakeWorker(V5E, state()))
    best = found[0].candidate
    assert found[0].predicted.bound == "compute"
    assert (best.batch_per_chip, best.mesh.tensor) == (128, 1)
    rates = [one.predicted.examples_per_second for one in found]
    assert max(rates) <= 1.01 * rates[0]


def test_one_that_is_refused_spares_those_that_would_take_as_much(monkeypatch):
    class Small(FakeWorker):
        """Refuses more than 128 examples a chip, whatever is estimated."""

        def ask(self, experiment, shapes, group, wants):
            reply = super().ask(experiment, shapes, group, wants)
            large = shapes["train"]["index"][0][0] > 128 * V5E.chips
            return {**reply, "exceeds": 1e11} if large else reply

    monkeypatch.setattr(grid, "BATCHES", (64, 128, 256))
    said = []
    found = run(Small(V5E, state()), said=said)
    assert found[0].candidate.batch_per_chip <= 128
    refused = [line for line in said if line.startswith("does not fit")]
    assert 0 < len(refused) <= 5 * 2  # once a choice, not once a mesh and tile


def test_what_cannot_fit_is_not_compiled():
    fake = FakeWorker(V5E, state())
    run(fake)
    largest = max(experiment.data["train"].batch_size for experiment, _ in fake.asked)
    assert largest < 4 * max(grid.BATCHES)


def test_time_that_is_over_ends_it(monkeypatch):
    now = itertools.count(0, 20)
    monkeypatch.setattr(searching.time, "monotonic", lambda: next(now))
    said = []
    found = run(FakeWorker(V5E, state()), minutes=10.0, said=said)
    assert found[0].compiled
    assert any(line.startswith("no time to try remat") for line in said)
    assert run(FakeWorker(V5E, state()), minutes=3.0)[0].compiled


def test_too_little_time_for_anything_is_one_line():
    class Slow(FakeWorker):
        def ask(self, *job):
            raise TimeoutError

    with pytest.raises(UserError, match="--minutes 15: not one program was compiled in that time; give it more"):
        run(Slow(V5E, state()))


def test_a_batch_that_is_given_is_kept():
    fake = FakeWorker(V5E, state())
    found = Search(BASE, shapes(), V5E, fake, 15.0, [].append, (48,)).run()
    assert {one.candidate.batch_per_chip for one in found} == {48}


def test_a_state_that_no_mesh_holds_is_one_line(monkeypatch):
    monkeypatch.setattr(searching, "state_sizes", lambda *_: dict.fromkeys(("params", "optimizer", "ema"), 1 << 34))
    with pytest.raises(UserError, match="the smallest v5e where it could be held is v5e:4x4"):
        run(FakeWorker(V5E, state()))


def test_a_choice_that_is_refused_is_left_out_and_if_all_are_the_reason_is_given():
    class Refusing(FakeWorker):
        def __init__(self, refused):
            super().__init__(V5E, state())
            self.refused = refused

        def ask(self, experiment, shapes, group, wants):
            if experiment.model.encoders["image"].remat in self.refused:
                raise CompileError("the kernel takes more VMEM than there is")
            return super().ask(experiment, shapes, group, wants)

    assert {one.candidate.remat for one in run(Refusing({"none", "dots"}))} <= {"cheap", "lean", "full"}
    with pytest.raises(CompileError, match="more VMEM"):
        run(Refusing(set(grid.REMAT)))


@pytest.mark.slow
def test_nothing_compiled_in_full_beats_the_best_by_more_than_5_percent(monkeypatch):
    """A grid of meshes, batches and rematerialisation on the real compiler, at a small size."""
    monkeypatch.setattr(grid, "BATCHES", (64, 256))
    monkeypatch.setattr(grid, "ATTENTION", ("auto",))
    monkeypatch.setattr(grid, "TILES", ())
    monkeypatch.setattr(grid, "REMAT", {"none": None, "full": None})
    made = experiment(image_depth=4, text_depth=4)
    given = batch_shapes(made)[0]
    begun = time.monotonic()
    with worker(V5E) as compiling:
        best = Search(made, given, V5E, compiling, 15.0, print).run()[0]
    assert time.monotonic() - begun < 15 * 60
    few = (Mesh(4, 1, 1, 1, 1), Mesh(1, 4, 1, 1, 1), Mesh(2, 1, 2, 1, 1))
    with worker(V5E) as compiling:
        for mesh, batch, remat in itertools.product(few, (64, 256), ("none", "full")):
            applied = Candidate(mesh, batch, remat, "auto", "plain").apply(made, V5E)
            found = measure(compiling, applied, resized(given, {"train": 4 * batch}), V5E)
            rate = 0.0 if found.exceeds else predict(found, V5E, 1).examples_per_second
            print(mesh, batch, remat, rate)
            assert best.predicted.examples_per_second >= rate / 1.05
