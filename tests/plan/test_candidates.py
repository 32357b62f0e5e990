import dataclasses

from plan_tiny import experiment

from mmjax.parallel.mesh import Mesh
from mmjax.plan.candidates import TILES, Candidate, candidates, meshes
from mmjax.plan.depths import stacks
from mmjax.plan.topology import parse_topology
from mmjax.train.config_file import apply_flags

V5E = parse_topology("v5e:2x2")


def test_tensor_divides_the_heads_of_every_stack():
    found = meshes(experiment(), parse_topology("v5e:4x4"))
    assert {mesh.tensor for mesh in found} == {1, 2}
    assert all(mesh.data * mesh.fsdp * mesh.tensor * mesh.sequence == 16 for mesh in found)
    assert Mesh(16, 1, 1, 1, 1) in found and Mesh(1, 8, 2, 1, 1) in found
    assert len(set(found)) == len(found) == 15 + 10  # ways to write 16, and 8, as an ordered product of three


def test_slices_stay_the_outer_axis():
    assert {mesh.slice for mesh in meshes(experiment(), parse_topology("v5e:2x2", 2))} == {2}


def test_every_exchange_and_tile_is_tried():
    found = {(c.exchange, c.tile) for c in candidates(experiment(), V5E)}
    assert found == {("plain", 0), *(("ring", tile) for tile in TILES)}


def test_batches_divide_over_the_mesh_and_micro_batches():
    made = experiment()
    made = dataclasses.replace(made, optimizer=dataclasses.replace(made.optimizer, accumulate=4))
    assert min(c.batch_per_chip for c in candidates(made, V5E) if c.mesh.tensor == c.mesh.sequence == 1) == 4


def test_flags_rebuild_what_was_applied():
    candidate = Candidate(Mesh(2, 1, 2, 1, 1), 16, "full", "plain", "ring", 256)
    base = experiment()
    applied = candidate.apply(base, V5E)
    assert applied.data["train"].batch_size == 64
    assert applied.data["test"].batch_size == 6
    assert all((s.remat, s.attention) == ("full", "plain") for s in stacks(applied.model).values())
    assert applied.tasks["contrastive"].objective.tile == 256
    assert apply_flags(base, candidate.flags(base, V5E).split()) == applied


def test_evaluation_batches_are_rounded_up_to_the_mesh():
    applied = Candidate(Mesh(4, 1, 1, 1, 1), 16, "none", "auto", "plain").apply(experiment(), V5E)
    assert applied.data["test"].batch_size == 8
