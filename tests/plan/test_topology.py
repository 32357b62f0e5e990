import os
import subprocess
import sys

import pytest
from programs import ENVIRONMENT

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
    assert parse_topology("v5e:1x1").libtpu_options() == {"chips_per_host_bounds": (1, 1, 1)}


def test_libtpu_knows_every_topology_that_is_listed():
    script = """
from jax.experimental.topologies import get_topology_desc
from mmjax.plan.topology import CHIPS, topologies
for topology in (t for kind in CHIPS for t in topologies(kind)):
    found = get_topology_desc(platform="tpu", topology_name=topology.name, **topology.libtpu_options())
    print(topology.name, len(found.devices) - topology.chips)
"""
    command = [sys.executable, "-c", script]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | ENVIRONMENT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {topology.name: "0" for kind in CHIPS for topology in topologies(kind)}


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
