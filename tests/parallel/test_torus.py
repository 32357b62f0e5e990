"""The ring through a slice visits every chip once, over links only."""

import dataclasses
import itertools

import pytest

from mmjax.parallel.torus import closed_path, ring_order


@dataclasses.dataclass(frozen=True)
class Chip:
    coords: tuple[int, int, int]
    core_on_chip: int = 0


def grid(x, y, z=1):
    return list(itertools.product(range(x), range(y), range(z)))


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (16, 16), (2, 2), (3, 4), (4, 3), (2, 2, 4), (4, 4, 4), (3, 2, 3)])
def test_neighbours_are_one_link_apart(shape):
    path = closed_path(set(grid(*shape)))
    assert sorted(path) == grid(*shape)
    for a, b in zip(path, path[1:] + path[:1], strict=True):
        assert sum(abs(i - j) for i, j in zip(a, b, strict=True)) == 1


@pytest.mark.parametrize("places", [grid(1, 4), grid(3, 3), grid(2, 2)[:3], [(0, 0)], [()]])
def test_where_there_is_none_devices_stay_as_they_are(places):
    assert closed_path(set(places)) == []
    devices = [Chip(place) for place in places]
    assert ring_order(devices) == devices


def test_the_cores_of_a_chip_stay_together():
    devices = [Chip(place, core) for core in (0, 1) for place in grid(2, 2)]
    ordered = ring_order(devices)
    assert [(d.coords[:2], d.core_on_chip) for d in ordered] == [
        (place, core) for place in ((0, 0), (0, 1), (1, 1), (1, 0)) for core in (0, 1)
    ]
