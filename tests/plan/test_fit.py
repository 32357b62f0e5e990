import pytest

from mmjax.core.errors import UserError
from mmjax.plan.compile import Measured
from mmjax.plan.fit import nothing_fits, smallest, too_large
from mmjax.plan.topology import GIB, parse_topology

V5E = parse_topology("v5e:2x2")


def measured(state_gib, exceeds_gib, examples=4096, mesh=None):
    sizes = {"params": state_gib * GIB, "optimizer": 0, "ema": 0, "batch": 1, "parameters": 1}
    return Measured(mesh or {"data": 4}, examples, sizes, 1.0, 1.0, exceeds=exceeds_gib * GIB)


def test_state_and_activations_shrink_with_the_chips():
    # 8 GiB of state once, 4 x 24 GiB of activations: on n chips (8 + 96) / n, so 8 of 15.75 GiB
    topology, need = smallest(measured(8, 32), V5E, ["v5e"])
    assert (topology.name, need) == ("v5e:2x4", 13 * GIB)
    # already split over 4 chips, the whole state is 32 GiB: (32 + 96) / n, and on 8 chips that would be 16
    topology, need = smallest(measured(8, 32, mesh={"fsdp": 4}), V5E, ["v5e"])
    assert (topology.name, need) == ("v5e:4x4", 8 * GIB)


def test_a_batch_cannot_be_split_finer_than_its_examples():
    topology, least = smallest(measured(1, 161, examples=4), V5E, ["v5e"])
    assert topology is None
    assert least == (1 + 4 * 160) / 4 * GIB


def test_the_message_names_the_smallest_that_could():
    assert str(too_large("run", measured(8, 32), V5E)) == (
        "run on v5e:2x2 takes 32.00 GiB of the 15.75 GiB that a chip has; "
        "the smallest v5e where it could fit is v5e:2x4, with --mesh.fsdp 8"
    )
    elsewhere = str(too_large("run", measured(1, 81, examples=4), V5E))
    assert "it fits no v5e; the smallest where it could: v5p:2x2x1, with --mesh.fsdp 4" in elsewhere
    assert "at least 160.25 GiB a chip on any topology" in str(too_large("run", measured(1, 161, examples=4), V5E))


def test_a_state_that_no_mesh_of_a_topology_holds():
    with pytest.raises(UserError, match=r"the smallest v5e where it could be held is v5e:4x4, with --mesh\.fsdp 16"):
        raise nothing_fits(40 * GIB, V5E)
    with pytest.raises(UserError, match="no topology has as much"):
        raise nothing_fits(1e9 * GIB, V5E)
