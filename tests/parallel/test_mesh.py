import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.core.errors import UserError
from mmjax.parallel.mesh import (
    BATCH,
    Mesh,
    batch_sharding,
    batch_ways,
    constrain,
    constrain_batch,
    fit,
    platform,
    replicated,
    use_mesh,
)


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [
        (Mesh(), 1, (1, 1, 1, 1, 1)),
        (Mesh(), 8, (1, 8, 1, 1, 1)),
        (Mesh(1, 4, 2), 8, (1, 1, 4, 1, 2)),
        (Mesh(2, -1, 2), 16, (1, 2, 4, 1, 2)),
        (Mesh(2, 1, 2, sequence=-1, slice=2), 16, (2, 2, 1, 2, 2)),
        (Mesh(data=-1, tensor=4), 8, (1, 2, 1, 1, 4)),
        (Mesh(fsdp=8), 8, (1, 1, 8, 1, 1)),
    ],
)
def test_minus_one_takes_what_is_left(mesh, devices, shape):
    assert mesh.shape(devices) == shape


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (Mesh(3), r"mesh \(data=3, fsdp=1, tensor=1\) does not multiply to the 8 devices"),
        (Mesh(-1, 3), r"mesh \(data=-1, fsdp=3, tensor=1\) does not multiply to the 8 devices"),
        (Mesh(-1, -1), "one axis may be -1"),
        (Mesh(1, 2, 2), "does not multiply to the 8 devices"),
        (Mesh(tensor=0), "mesh.tensor=0: use a positive number"),
        (Mesh(data=-2), "mesh.data=-2: use a positive number"),
        (Mesh(slice=-1), "mesh.slice=-1: use a positive number"),
        (Mesh(slice=3), r"mesh \(slice=3, data=-1, fsdp=1, tensor=1\) does not multiply to the 8 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, said):
    with pytest.raises(UserError, match=said):
        mesh.shape(8)


@pytest.mark.parametrize(
    ("mesh", "devices", "fitted"),
    [
        (Mesh(data=2, fsdp=4), 1, Mesh(data=1)),
        (Mesh(data=2, fsdp=4), 6, Mesh(data=3, fsdp=2)),
        (Mesh(data=1, fsdp=-1, tensor=4), 2, Mesh(data=1, tensor=2)),
        (Mesh(fsdp=8, tensor=2), 16, Mesh(data=1, fsdp=8, tensor=2)),
        (Mesh(fsdp=2, sequence=4, slice=2), 8, Mesh(data=1, fsdp=2, sequence=4)),
        (Mesh(data=4, tensor=3), 5, Mesh(data=5)),
    ],
)
def test_a_mesh_fitted_to_other_devices_splits_what_this_one_splits_as_far_as_they_divide(mesh, devices, fitted):
    assert mesh.fitting(jax.devices()[:devices] if devices <= 8 else jax.devices() * 2) == fitted
    assert math.prod(fitted.shape(devices)) == devices


def test_build_makes_automatic_axes_over_all_devices():
    mesh = Mesh(2, 2, 2).build()
    assert dict(mesh.shape) == {"slice": 1, "data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 5
    assert Mesh().build(jax.devices()[:3]).devices.shape == (1, 3, 1, 1, 1)


@pytest.mark.parametrize(
    ("spec", "shape", "axes", "expected"),
    [
        (P("fsdp", "tensor"), (8, 6), {"data": 1, "fsdp": 4, "tensor": 2}, P("fsdp", "tensor")),
        (P("fsdp", "tensor"), (6, 6), {"data": 1, "fsdp": 4, "tensor": 2}, P(None, "tensor")),
        (P("fsdp", "tensor"), (8, 6), {"data": 8, "fsdp": 1, "tensor": 1}, P(None, None)),
        (P("fsdp", "nowhere"), (8, 6), {"fsdp": 4}, P("fsdp", None)),
        (P(("data", "fsdp")), (8, 6), {"data": 2, "fsdp": 4}, P(("data", "fsdp"), None)),
        (P(("data", "fsdp")), (8, 6), {"data": 8, "fsdp": 1}, P("data", None)),
        (P(("data", "fsdp")), (4, 6), {"data": 2, "fsdp": 4}, P(None, None)),
        (P(), (), {"data": 8}, P()),
    ],
)
def test_fit_keeps_what_the_mesh_has_and_what_divides(spec, shape, axes, expected):
    assert fit(spec, shape, axes) == expected


def test_constrain_is_nothing_without_a_mesh():
    x = jnp.ones((8, 4))
    assert constrain(x, BATCH, "tensor") is x
    assert "sharding_constraint" not in str(jax.make_jaxpr(constrain_batch)(x))


def test_constrain_is_nothing_on_one_device(one_device):
    assert "sharding_constraint" not in str(jax.make_jaxpr(constrain_batch)(jnp.ones((8, 4))))


def test_constrain_splits_an_activation(eight_devices):
    y = jax.jit(lambda x: constrain(x + 1.0, BATCH, None, "tensor"))(jnp.zeros((8, 3, 4)))
    split = {"data": P("data", None, None), "fsdp": P("fsdp", None, "tensor")}
    expected = split["data" if eight_devices.shape["data"] == 8 else "fsdp"]
    assert y.sharding.is_equivalent_to(NamedSharding(eight_devices, expected), 3)
    assert y.addressable_shards[0].data.size == y.size // 8
    np.testing.assert_array_equal(y, np.ones((8, 3, 4)))


def test_constrain_drops_axes_that_do_not_divide():
    with use_mesh(Mesh(2, 2, 2).build()):
        y = jax.jit(lambda x: constrain(x + 1.0, BATCH, "tensor"))(jnp.zeros((8, 3)))
        z = jax.jit(lambda x: constrain_batch(x + 1.0))(jnp.zeros((6, 3)))
    assert {s.data.shape for s in y.addressable_shards} == {(2, 3)}
    assert z.shape == (6, 3)


def test_constrain_works_on_a_mesh_of_the_users_own():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x + 1.0, BATCH, "tensor"))(jnp.zeros((8, 3)))
    assert {s.data.shape for s in y.addressable_shards} == {(1, 3)}


def test_gradients_pass_through_a_constraint(eight_devices):
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(constrain_batch(x) ** 2)))(jnp.arange(8.0))
    np.testing.assert_array_equal(gradient, 2 * np.arange(8.0))


def test_use_mesh_ends():
    with use_mesh(Mesh().build()):
        assert not jax.sharding.get_abstract_mesh().empty
    assert jax.sharding.get_abstract_mesh().empty


def test_a_batch_is_split_by_rows(eight_devices):
    ways = batch_ways(eight_devices)
    assert ways == (8 if eight_devices.shape["data"] == 8 else 4)
    rows = jax.device_put(np.zeros((16, 3)), batch_sharding(eight_devices))
    assert {s.data.shape for s in rows.addressable_shards} == {(16 // ways, 3)}
    assert jax.device_put(np.zeros(3), replicated(eight_devices)).is_fully_replicated


def test_platform_is_that_of_the_mesh_or_the_default():
    assert platform() == "cpu"
    seen = []
    with use_mesh(Mesh().build()):
        jax.jit(lambda x: (seen.append(platform()), x)[1])(1.0)
    assert seen == ["cpu"]
