"""Which rows of a batch a process holds, and that it hands over those; processes are played by a sharding that says so."""

import jax
import numpy as np
import pytest

from mmjax.parallel import rows
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.rows import local_rows, place_rows

WAYS = 4


class Split:
    """Rows over `WAYS` parts, of which this process's devices hold some: one each, several sharing a part over `tensor`."""

    is_fully_addressable = False

    def __init__(self, parts: tuple[int, ...]):
        self.parts = parts

    def addressable_devices_indices_map(self, shape):
        each = shape[0] // WAYS
        return {
            f"device {i}": (slice(part * each, (part + 1) * each), *[slice(None)] * (len(shape) - 1))
            for i, part in enumerate(self.parts)
        }


def made(shape, sharding, part):
    """What `jax.make_array_from_callback` asks for: shape, and device -> its part."""
    return shape, {device: part(index) for device, index in sharding.addressable_devices_indices_map(shape).items()}


CASES = [
    ((0, 1), range(6)),
    ((2, 3), range(6, 12)),
    ((0, 2), (0, 1, 2, 6, 7, 8)),
    ((3, 1), (3, 4, 5, 9, 10, 11)),
    ((2, 2), (6, 7, 8)),
]


@pytest.mark.parametrize(("parts", "expected"), CASES)
def test_a_process_hands_over_the_rows_it_holds(parts, expected, monkeypatch):
    monkeypatch.setattr(rows, "batch_sharding", lambda mesh: Split(parts))
    monkeypatch.setattr(rows, "batch_ways", lambda mesh: WAYS)
    monkeypatch.setattr(jax, "make_array_from_callback", made)
    own = local_rows(None, 12)
    assert own == tuple(expected)
    whole = {"index": np.arange(12), "image": np.arange(24).reshape(12, 2)}
    placed = place_rows(None, {name: x[list(own)] for name, x in whole.items()})
    for name, (shape, found) in placed.items():
        assert shape == whole[name].shape
        for device, index in Split(parts).addressable_devices_indices_map(shape).items():
            np.testing.assert_array_equal(found[device], whole[name][index], err_msg=f"{name} on {device}")


def test_a_single_process_holds_all_rows():
    mesh = Mesh(2, 2, 2).build()
    assert local_rows(mesh, 8) == tuple(range(8))
    placed = place_rows(mesh, {"index": np.arange(8)})["index"]
    np.testing.assert_array_equal(placed, np.arange(8))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2,)}
