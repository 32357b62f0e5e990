import jax
import pytest
from plan_tiny import experiment

from mmjax.core.trees import size_bytes
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.plan.candidates import Candidate
from mmjax.plan.compile import Measured
from mmjax.plan.estimate import Calibration, axes_of, estimate, least_bytes, logits_bytes, sent_bytes, state_sizes
from mmjax.plan.topology import parse_topology
from mmjax.plan.worker import carried_bytes, sizes
from mmjax.train.setup import abstract_state

V5E = parse_topology("v5e:2x2")
DATA, FSDP = Mesh(4, 1, 1, 1, 1), Mesh(1, 4, 1, 1, 1)
STATE = {"params": 1000, "optimizer": 2000, "ema": 0, "gradients": 1000}


def candidate(mesh=DATA, batch=8, **changes):
    return Candidate(mesh, batch, "none", "auto", **changes)


def base(batch=8):
    measured = Measured(
        mesh=axes_of(DATA),
        examples=4 * batch,
        sizes={**STATE, "batch": 5, "parameters": 250},
        model_flops=10.0,
        hardware_flops=12.0,
        memory={"arguments": 3000, "temporaries": 1000 + 80 * batch},
        traffic={"read": 11_000.0, "written": 500.0 * batch},
    )
    return Calibration(candidate(batch=batch), measured)


@pytest.mark.parametrize("mesh", [Mesh(2, 2, 2), Mesh(1, 8), Mesh(8)])
def test_sizes_without_a_mesh_are_those_of_the_state_on_it(mesh):
    with use_mesh(mesh.build()) as _:
        on_mesh = sizes(abstract_state(experiment(mesh=mesh), mesh.build()))
    one = Mesh().build(jax.devices()[:1])
    state = abstract_state(experiment(), one)
    found = state_sizes(state, axes_of(mesh) | {"slice": 1})
    assert found == {name: on_mesh[name] for name in found}
    if mesh.fsdp == mesh.tensor == 1:
        assert found["params"] == size_bytes(state.params)


def test_the_same_candidate_costs_what_it_was_measured_to():
    found = estimate(candidate(), base(), STATE, V5E)
    assert found.hbm == base().measured.hbm
    assert sum(found.traffic.values()) == 15_000
    assert (found.model_flops, found.hardware_flops) == (10.0, 12.0)


def test_twice_the_batch_adds_an_example_s_share_and_no_more_of_the_state():
    found = estimate(candidate(batch=16), base(), STATE, V5E)
    assert found.hbm == 3000 + 1000 + 80 * 16
    assert sum(found.traffic.values()) == 11_000 + 500 * 16
    assert found.hardware_flops == 24.0


def test_sharding_the_state_shrinks_it_its_gradients_and_its_update():
    split = {"params": 250, "optimizer": 500, "ema": 0, "gradients": 250}
    found = estimate(candidate(FSDP), base(), split, V5E)
    assert found.hbm == 750 + 250 + 80 * 8
    assert sum(found.traffic.values()) == 8.5 * 250 + 2.5 * 1000 + 500 * 8  # each chip still reads all weights
    assert found.collectives == {"all-gather fsdp": 3 * 1.5 * 250}


def test_what_is_sent_over_each_axis():
    assert sent_bytes(candidate(), 1000, 2.0) == {"all-reduce data": 3 / 4 * 1000}
    assert sent_bytes(candidate(Mesh(1, 1, 2, 2, 1)), 1000, 2.0) == {
        "all-reduce tensor": 4 * 2 * 1 * 8 * 2.0,
        "all-gather sequence": 6 * 1 * 8 * 2.0,
    }
    assert sent_bytes(candidate(Mesh(2, 1, 1, 1, 2)), 1000, 2.0) == {"all-reduce slice": 250, "all-reduce data": 500}


def test_the_logits_of_a_plain_loss_grow_with_the_chips_and_those_of_a_ring_do_not():
    assert logits_bytes(candidate(), V5E) == 0
    assert logits_bytes(candidate(exchange="plain"), V5E) == 4 * 4 * 8 * 32
    assert logits_bytes(candidate(exchange="ring", tile=16), V5E) == 4 * 4 * 8 * 16


def test_the_least_is_the_state_and_each_layer_s_input():
    assert least_bytes(candidate(Mesh(1, 1, 4, 1, 1)), STATE, 2.0) == 3000 + 8 * 4 * 2


def test_what_scans_carry_counts_once_a_step_also_inside_jit():
    def run(x):
        return jax.lax.scan(lambda x, _: (x * 2.0, x), x, length=5)[0]

    x = jax.ShapeDtypeStruct((3, 4), jax.numpy.float32)
    assert carried_bytes(jax.make_jaxpr(jax.jit(run))(x).jaxpr) == 5 * 3 * 4 * 4
