import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from mmjax.core.flops import count_flops, step_flops_of


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def loss(x, w):
    return jnp.sin(x @ w).sum()


def test_a_product_is_a_multiply_and_an_add_for_each_term():
    assert count_flops(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7


def test_a_batched_product():
    assert count_flops(lambda q, k: jnp.einsum("bthk,bshk->bhts", q, k), shape(2, 3, 4, 5), shape(2, 6, 4, 5)) == (
        2 * (2 * 4) * 3 * 6 * 5
    )


def test_several_contracted_dims():
    assert count_flops(lambda x, w: jnp.einsum("bthk,hkd->btd", x, w), shape(2, 3, 4, 5), shape(4, 5, 6)) == 2 * 2 * 3 * 20 * 6


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups):
    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    x, w = shape(2, 9, 7, 4), shape(3, 3, 4 // groups, 6)
    assert count_flops(conv, x, w) == 2 * (2 * 4 * 3 * 6) * (3 * 3 * 4 // groups)


def test_a_scan_counts_once_for_each_of_its_steps():
    def deep(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert count_flops(deep, shape(3, 4), shape(5, 4, 4)) == 5 * 2 * 3 * 4 * 4


def test_nested_scans_multiply():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)[0], None

    assert count_flops(lambda x, w: jax.lax.scan(inner, x, w)[0], shape(2, 4), shape(5, 4, 4)) == 5 * 3 * 2 * 2 * 4 * 4


def test_a_gradient_costs_two_more_products_and_recomputation_a_third():
    one, arguments = 2 * 3 * 4 * 5, (shape(3, 4), shape(4, 5))
    assert count_flops(loss, *arguments) == one
    assert count_flops(jax.grad(loss, argnums=1), *arguments) == 2 * one
    assert count_flops(jax.grad(loss, argnums=(0, 1)), *arguments) == 3 * one
    assert count_flops(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), *arguments) == 4 * one


def test_inside_jit_and_custom_derivatives():
    assert count_flops(jax.jit(lambda x, w: jax.nn.relu(jax.jit(jnp.matmul)(x, w))), shape(3, 4), shape(4, 5)) == 2 * 3 * 4 * 5


def test_what_runs_on_each_device_counts_once_for_each(eight_devices):
    each = jax.shard_map(jnp.matmul, mesh=eight_devices, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"))
    devices = eight_devices.size
    ways = eight_devices.shape["fsdp"]
    assert count_flops(each, shape(8, 4), shape(4, 5)) == devices * 2 * (8 // ways) * 4 * 5


@pytest.mark.parametrize("stated", [None, pl.CostEstimate(flops=7, transcendentals=0, bytes_accessed=0)])
def test_a_kernel_counts_as_it_states_or_once_for_each_place_in_its_grid(stated):
    def square(x, out):
        out[...] = x[...] @ x[...]

    kernel = pl.pallas_call(square, out_shape=shape(8, 8), grid=(3,), cost_estimate=stated)
    assert count_flops(kernel, shape(8, 8)) == (7 if stated else 3 * 2 * 8 * 8 * 8)


def test_cudnns_attention_counts_as_its_products(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)

    def attention(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")

    def total(q, k, v):
        return attention(q, k, v).astype(jnp.float32).sum()

    q, k = (jax.ShapeDtypeStruct((2, n, 3, 8), jnp.bfloat16) for n in (4, 6))
    product = 2 * 2 * 3 * 4 * 6 * 8
    assert count_flops(attention, q, k, k) == 2 * product
    assert count_flops(jax.grad(total, argnums=(0, 1, 2)), q, k, k) == (2 + 5) * product


def test_elementwise_work_is_not_counted():
    assert count_flops(lambda x: jax.nn.softmax(x * 2.0), shape(8, 8)) == 0


def test_xla_counts_the_same_in_an_unrolled_program():
    def chain(x, w):
        for i in range(3):
            x = x @ w[i]
        return x

    def both_ways(x, w, g):
        y, vjp = jax.vjp(chain, x, w)
        return y, vjp(g)

    x, w = shape(16, 8), [shape(8, 8)] * 3
    compiled = jax.jit(both_ways).lower(x, w, x).compile().cost_analysis()["flops"]
    assert count_flops(both_ways, x, w, x) == compiled == 9 * 2 * 16 * 8 * 8


def trained_flops(fn, trained, *args):
    return step_flops_of(jax.make_jaxpr(fn)(*args).jaxpr, trained)


def layers(x, w):
    return jax.lax.scan(lambda x, w: (jax.nn.relu(jax.checkpoint(jnp.matmul)(x, w)), None), x, w)[0]


@pytest.mark.parametrize("trained, times", [((False, False), 1), ((True, False), 2), ((False, True), 3), ((True, True), 3)])
def test_a_loop_costs_what_its_derivatives_need(trained, times):
    """What goes from step to step depends on the kernels of the steps before."""
    one = 5 * 2 * 3 * 4 * 4
    assert trained_flops(layers, trained, shape(3, 4), shape(5, 4, 4)) == times * one


@pytest.mark.parametrize("trained", [(True, True, False), (False, True, False), (True, False, True), (False, False, True)])
def test_what_a_step_costs_is_what_jax_forms(trained):
    def loss(x, a, b):
        return jnp.sum(jnp.tanh(jax.jit(jnp.matmul)(jnp.sin(x @ a), b)))

    args = (shape(3, 4), shape(4, 5), shape(5, 6))
    grad = jax.grad(loss, argnums=[i for i, own in enumerate(trained) if own])
    assert trained_flops(loss, trained, *args) == count_flops(grad, *args)
