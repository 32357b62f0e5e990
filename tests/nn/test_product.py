import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn import product as module
from mmjax.nn.product import multiplies_bfloat16, product

# Shapes, and dims as `dot_general` names them.
CASES = {
    "rows_by_matrix": ((24, 16), (16, 32), (((1,), (0,)), ((), ()))),
    "turned": ((16, 24), (32, 16), (((0,), (1,)), ((), ()))),
    "a_sum_over_rows": ((24, 16), (24, 4, 8), (((0,), (0,)), ((), ()))),
    "by_heads": ((3, 8, 16), (16, 2, 8), (((2,), (0,)), ((), ()))),
    "two_summed": ((24, 2, 8), (2, 8, 16), (((1, 2), (0, 1)), ((), ()))),
    "two_summed_in_another_order": ((8, 24, 2), (2, 16, 8), (((2, 0), (0, 2)), ((), ()))),
    "batched": ((3, 2, 16, 8), (3, 2, 24, 8), (((3,), (3,)), ((0, 1), (0, 1)))),
    "batched_in_the_middle": ((3, 16, 2, 8), (2, 24, 3, 8), (((3,), (3,)), ((0, 2), (2, 0)))),
    "narrow": ((5, 3), (3, 1), (((1,), (0,)), ((), ()))),
    "empty": ((0, 16), (16, 8), (((1,), (0,)), ((), ()))),
}


@pytest.fixture(params=["converted", "native"])
def cores(request, monkeypatch):
    """A machine without and one with instructions that multiply bfloat16."""
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: request.param == "native")
    return request.param


def drawn(shape, seed):
    """bfloat16 numbers, as float32: no narrow product of them is exact by chance."""
    x = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))


def by_einsum(dims, a, b):
    """The subscripts of a product."""
    (in_a, in_b), (each_a, each_b) = dims
    names = iter(string.ascii_lowercase)
    left = [next(names) for _ in range(a.ndim)]
    shared = dict(zip((*in_b, *each_b), (left[d] for d in (*in_a, *each_a)), strict=True))
    right = [shared[d] if d in shared else next(names) for d in range(b.ndim)]
    own = [left[d] for d in range(a.ndim) if d not in (*in_a, *each_a)]
    own += [right[d] for d in range(b.ndim) if d not in (*in_b, *each_b)]
    return f"{''.join(left)},{''.join(right)}->{''.join([left[d] for d in each_a] + own)}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_a_product_and_its_gradients_are_einsums(case, dtype, cores):
    shape_a, shape_b, dims = CASES[case]
    a, b = drawn(shape_a, 0), drawn(shape_b, 1)
    subscripts = by_einsum(dims, a, b)
    y, vjp = jax.vjp(lambda a, b: product(a, b, dims, dtype), *(jnp.asarray(x, jnp.bfloat16) for x in (a, b)))
    g = drawn(y.shape, 2)
    expected, exact = jax.vjp(lambda a, b: jnp.einsum(subscripts, a, b, precision="highest"), a, b)
    assert y.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 2**-8, "atol": 2**-8}
    np.testing.assert_allclose(y.astype(jnp.float32), expected, **tolerance)
    for x, found, wanted in zip((a, b), vjp(jnp.asarray(g, dtype)), exact(jnp.asarray(g)), strict=True):
        assert found.shape == x.shape and found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2**-8, atol=2**-8)


def test_in_float32_it_is_the_plain_product(cores):
    a, b, dims = jnp.ones((4, 8)), jnp.ones((8, 3)), (((1,), (0,)), ((), ()))
    both = [jax.make_jaxpr(jax.value_and_grad(lambda a, b, f=f: f(a, b).sum(), (0, 1)))(a, b) for f in (
        lambda a, b: product(a, b, dims), lambda a, b: jax.lax.dot_general(a, b, dims, preferred_element_type="float32")
    )]  # fmt: skip
    assert str(both[0]) == str(both[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_argument_that_is_not_differentiated_costs_nothing(dtype, cores):
    a, b, dims = jnp.ones((24, 16), jnp.bfloat16), jnp.ones((16, 32), jnp.bfloat16), (((1,), (0,)), ((), ()))

    def products(*wanted):
        return str(jax.make_jaxpr(jax.grad(lambda a, b: product(a, b, dims, dtype).sum(), wanted))(a, b)).count("dot_general")

    def kept(place):
        given = [a, b]
        _, vjp = jax.vjp(lambda x: product(*given[:place], x, *given[place + 1 :], dims, dtype), given[place])
        return {x.shape for x in jax.tree.leaves(vjp) if x.size > 1}

    assert (products(0), products(1), products(0, 1)) == (2, 2, 3)
    assert kept(0) == {b.shape} and kept(1) == {a.shape}


def test_a_frozen_kernel_in_a_scan_has_no_gradient_product(cores):
    """As a stack runs its layers, with what surrounds it: `stop_gradient`, recomputation, a batch by `vmap`."""
    x, kernels, dims = jnp.ones((5, 8, 16), jnp.bfloat16), jnp.ones((3, 16, 16), jnp.bfloat16), (((1,), (0,)), ((), ()))

    def loss(x, scales, kernels, frozen):
        kernels = jax.lax.stop_gradient(kernels) if frozen else kernels

        @jax.checkpoint
        def layer(x, own):
            return product(x * own[0], own[1], dims), None

        return jax.vmap(lambda x: jax.lax.scan(layer, x, (scales, kernels))[0])(x).astype(jnp.float32).sum()

    scales = jnp.ones(3, jnp.bfloat16)

    def gradient(frozen):
        return jax.grad(lambda *args: loss(*args, frozen), (0, 1, 2))

    texts = [str(jax.make_jaxpr(gradient(frozen))(x, scales, kernels)) for frozen in (False, True)]
    assert texts[0].count("dot_general") - texts[1].count("dot_general") == 1
    by_x, by_scales, by_kernels = jax.jit(gradient(True))(x, scales, kernels)
    whole = jax.jit(gradient(False))(x, scales, kernels)
    np.testing.assert_array_equal(by_x, whole[0])
    np.testing.assert_array_equal(by_scales, whole[1])
    assert not by_kernels.any() and whole[2].any()


def test_the_cpus_library_takes_every_product_of_a_layer(monkeypatch):
    """On cores that multiply bfloat16: both gradients too, which XLA would compute in float32 as they are written."""
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: True)
    x, kernel, dims = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((32, 4, 16), jnp.bfloat16), (((1,), (0,)), ((), ()))
    step = jax.jit(jax.value_and_grad(lambda x, k: product(x, k, dims).astype(jnp.float32).sum(), (0, 1)))
    lines = [line for line in step.lower(x, kernel).compile().as_text().splitlines() if " dot(" in line]
    assert len(lines) == 3 and all("lhs_contracting_dims={1}" in line for line in lines)


@pytest.mark.parametrize(("words", "found"), [("flags : avx2 avx512_bf16 fma", True), ("flags : avx2 avx512_bf16x", False)])
def test_the_system_says_what_its_cores_multiply(words, found, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    multiplies_bfloat16.cache_clear()
    assert not multiplies_bfloat16()  # no such file
    multiplies_bfloat16.cache_clear()
    (tmp_path / "cpuinfo").write_text(words)
    assert multiplies_bfloat16() is found
    multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(("wide", "kept"), [("float32", "int8"), ("float32", "bfloat16"), ("bfloat16", "int8")])
def test_what_is_kept_narrower_is_widened_here(wide, kept, cores):
    dims = CASES["rows_by_matrix"][2]
    a, b = jnp.asarray(drawn((24, 16), 0), wide), jnp.asarray(drawn((16, 32), 1) * 40, kept)
    one, vjp = jax.vjp(lambda a: product(a, b, dims), a)
    other, exact = jax.vjp(lambda a: product(a, b.astype(wide), dims), a)
    g = jnp.asarray(drawn((24, 32), 2), wide)
    assert (one == other).all() and (vjp(g)[0] == exact(g)[0]).all()
    if kept == "bfloat16":  # as anyone may differentiate what a run holds
        by_b = jax.grad(lambda b: product(a, b, dims).sum())(b)
        assert by_b.dtype == jnp.bfloat16
        np.testing.assert_allclose(by_b[:, 0], a.sum(0), rtol=1e-2)
