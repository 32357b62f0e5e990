"""Bytes between chips of real TPU programs (see programs.py), and the axes they go along."""

from pathlib import Path

import pytest

from mmjax.plan.collectives import by_axes, collective_bytes, replica_groups
from mmjax.plan.hlo import parse

TEXTS = Path(__file__).parent / "hlo"
MESH = {"a": 2, "b": 8}
F32, BF16 = 4, 2


def measure(name, mesh=MESH):
    return collective_bytes(parse((TEXTS / f"{name}.txt").read_text()), mesh)


@pytest.mark.parametrize("axis, n", [("a", 2), ("b", 8)])
def test_each_collective_sends_what_it_must(axis, n):
    reduced, gathered, scattered, permuted, exchanged = (1024 * 128 * (i + 1) * F32 for i in range(5))
    found = {c.opcode: c for c in measure(f"over_{axis}")}
    assert {c.axes for c in found.values()} == {(axis,)}
    assert {c.ways for c in found.values()} == {n}
    assert {opcode: c.bytes for opcode, c in found.items()} == {
        "all-reduce": 2 * (n - 1) * reduced // n,
        "all-gather": (n - 1) * gathered,
        "reduce-scatter": (n - 1) * scattered // n,
        "collective-permute": permuted,
        "all-to-all": (n - 1) * exchanged // n,
    }


def test_a_ring_in_a_loop_counts_every_hop():
    [hop] = measure("ring")
    assert (hop.opcode, hop.axes, hop.count, hop.bytes) == ("collective-permute", ("b",), 8, 8 * 1024 * 1024 * BF16)


def test_a_step_with_a_split_weight():
    whole = 8192 * 8192 * BF16
    found = measure("fsdp")
    assert [(c.opcode, c.axes, c.bytes) for c in found] == [
        ("all-gather", ("b",), whole * 7 // 8),
        ("reduce-scatter", ("b",), whole * 7 // 8),  # an all-reduce fused with the slice that is kept
        ("all-reduce", ("a",), whole // 8),
    ]
    assert by_axes(found) == {("b",): whole * 7 // 4, ("a",): whole // 8}


def test_a_gather_spread_over_several_fusions_counts_once():
    assert [(c.opcode, c.bytes) for c in measure("overlap")] == [("all-gather", 8192 * 8192 * BF16 * 7 // 8)] * 2


def test_between_slices_the_host_carries_it():
    [found] = measure("slices", {"slice": 2, "b": 16})
    assert (found.opcode, found.axes, found.ways, found.bytes) == ("all-reduce", ("slice",), 2, 256 * 1024 * F32)


def test_a_program_without_a_mesh_sends_nothing():
    assert measure("adam", {"a": 1, "b": 1}) == []


def instruction(groups):
    module = parse(f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  ROOT %r = f32[8]{{0}} all-reduce(%x){groups}, to_apply=%add\n}}")
    return module.computations["main"].root


@pytest.mark.parametrize(
    "text, groups",
    [
        ("", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (", replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (", replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (", replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (", replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (", replica_groups=[2,4]<=[2,2,2]T(1,0,2)", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (", replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (", replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (", replica_groups=mesh['a'=2,'b'=4] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (", replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        (", replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (", replica_groups=mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'b'}", [[7, 6, 5, 4], [3, 2, 1, 0]]),
        (", replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ],
)
def test_groups_are_read_however_they_are_written(text, groups):
    assert replica_groups(instruction(text), 8) == groups


@pytest.mark.parametrize(
    "groups, axes, ways",
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",), 2),
        ("{{0,2},{1,3},{4,6},{5,7}}", ("fsdp",), 2),
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp", "tensor"), 4),
        ("{{0,3,5,6},{1,2,4,7}}", ("data", "fsdp", "tensor"), 4),  # no axis of its own: all along which members differ
        ("{{0},{1},{2},{3},{4},{5},{6},{7}}", (), 1),
    ],
)
def test_axes_are_those_along_which_members_differ(groups, axes, ways):
    text = f"""
ENTRY %main (x: f32[1024]) -> f32[1024] {{
  %x = f32[1024]{{0:T(1024)}} parameter(0)
  ROOT %r = f32[1024]{{0:T(1024)}} all-reduce(%x), replica_groups={groups}, to_apply=%add
}}
"""
    [found] = collective_bytes(parse(text), {"slice": 1, "data": 2, "fsdp": 2, "sequence": 1, "tensor": 2})
    assert (found.axes, found.ways, found.bytes) == (axes, ways, 2 * (ways - 1) * 4096 // ways)
