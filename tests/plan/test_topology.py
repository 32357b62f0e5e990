import pytest

from mmjax.core.errors import UserError
from mmjax.plan.topology import CHIPS, GIB, parse_topology, topologies


@pytest.mark.parametrize(
    ("name", "slices", "chips"),
    [("v5e:1x1", 1, 1), ("v5e:4x4", 1, 16), ("v6e:16x16", 2, 512), ("v4:2x2x4", 1, 16), ("v5p:4x4x8", 1, 128), ("gpu:8", 1, 8)],
)
def test_a_topology_has_the_product_of_its_dims(name, slices, chips):
    topology = parse_topology(name, slices)
    assert topology.chips == chips
    assert topology.name == name


def test_libtpu_is_told_of_slices_and_that_a_v4_chip_is_one_device():
    assert parse_topology("v4:2x2x1").libtpu_options() == {"chip_config_name": "megacore"}
    assert parse_topology("v5e:2x2", 2).libtpu_options() == {"num_slices": 2}
    assert parse_topology("v5e:2x2").libtpu_options() == {}


@pytest.mark.parametrize("kind", CHIPS)
def test_the_smallest_comes_first_and_a_chip_keeps_some_memory_for_itself(kind):
    sizes = [topology.chips for topology in topologies(kind)]
    assert sizes == sorted(sizes)
    assert 0 < CHIPS[kind].hbm - CHIPS[kind].usable < 2 * GIB


@pytest.mark.parametrize(
    ("name", "slices", "said"),
    [
        ("v5e:3x3", 1, "--topology v5e:3x3: v5e comes as 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        (
            "v5q:4x4",
            1,
            r"--topology v5q:4x4: there are v4, v5e, v5p, v6e and gpu \(did you mean 'v5p'\?\), for instance v5e:4x4",
        ),
        ("v5e", 1, "v5e comes as 1x1"),
        ("gpu:none", 1, "write gpu, or gpu:N"),
        ("v5e:4x4", 0, "--slices 0: use 1 or more"),
    ],
)
def test_what_does_not_exist_is_one_line(name, slices, said):
    with pytest.raises(UserError, match=said):
        parse_topology(name, slices)
