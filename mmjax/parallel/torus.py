"""A ring through the chips of a TPU slice: the order in which each device is one link away from the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Place = tuple[int, ...]


def ring_order(devices: Sequence[Any]) -> list[Any]:
    """The devices of one slice as a closed path over links of its network, the last next to the first.

    What goes round a ring then travels over one link a hop, all hops at once, while the chips compute. Devices without
    coordinates, or of a shape that has no such path (an odd number of chips, a line), come back as they are.
    """
    places = [tuple(getattr(device, "coords", None) or ()) for device in devices]
    rank = {place: i for i, place in enumerate(closed_path(set(places)))}
    if not rank:
        return list(devices)
    return [device for _, device in sorted(zip(places, devices, strict=True), key=lambda pair: rank[pair[0]])]


def closed_path(places: set[Place]) -> list[Place]:
    """A Hamiltonian cycle of a full grid of x, y and z, [] where this finds none.

    A snake through y and z makes one dim of the two. Over that and x: up and down all columns but the first, which is the way
    back.
    """
    if len({len(place) for place in places}) != 1 or len(next(iter(places))) != 3:
        return []
    xs, ys, zs = (sorted({place[dim] for place in places}) for dim in range(3))
    snake = [(y, z) for i, y in enumerate(ys) for z in (zs if i % 2 == 0 else zs[::-1])]
    if len(places) != len(xs) * len(snake) or min(len(xs), len(snake)) < 2 or len(places) % 2:
        return []
    grid = [[(x, *rest) for rest in snake] for x in xs]
    if len(grid) % 2:
        grid = [list(column) for column in zip(*grid, strict=True)]
    there = [place for i, row in enumerate(grid) for place in (row[1:] if i % 2 == 0 else row[:0:-1])]
    return [grid[0][0], *there, *(row[0] for row in grid[:0:-1])]
