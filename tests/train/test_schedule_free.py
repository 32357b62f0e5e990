"""Schedule-free AdamW against optax and against its paper's three sequences; what is evaluated; what does not move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optimizer import RAW, SCALE, START, TARGET, gradient, run

from mmjax.core.errors import UserError
from mmjax.train import AdamW, ScheduleFree
from mmjax.train.schedule_free import averaged

PLAIN = {key: value for key, value in RAW.items() if key != "schedule"}


def bowl(params, _):
    return {"w": gradient(params["w"])}


@pytest.mark.parametrize("b1", [0.9, 0.5])
def test_steps_equal_optax(b1):
    """At a constant rate; over a warm-up optax weights a step by the rate of the next one."""
    ours = ScheduleFree(learning_rate=0.05, weight_decay=0.1, b1=b1, no_decay=(), **PLAIN)
    seen, state = run(ours, {"w": jnp.asarray(START)}, bowl, 20)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.contrib.schedule_free_adamw(0.05, b1=b1, weight_decay=0.1)
        params = {"w": jnp.asarray(START)}
        kept = theirs.init(params)
        for after in seen:
            updates, kept = theirs.update(bowl(params, 0), kept, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(after["w"], params["w"], rtol=1e-4, atol=1e-5)
        mean = optax.contrib.schedule_free_eval_params(kept, params)
    np.testing.assert_allclose(averaged(state, seen[-1])["w"], mean["w"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("warmup", "power"), [(0, 0.0), (5, 2.0), (5, 1.0)])
def test_the_three_sequences_of_the_paper(warmup, power):
    """Algorithm 1 in float64, with the decay at y; the mean of z written out as a weighted mean."""
    b1, b2, rate, decay, steps = 0.9, 0.99, 0.05, 0.1, 12
    x = y = z = START.astype(np.float64)
    v, rates, points = np.zeros_like(x), [], [z]
    ours = ScheduleFree(
        learning_rate=rate, warmup_steps=warmup, weight_decay=decay, b1=b1, b2=b2, weight_power=power, no_decay=(), **PLAIN
    )
    seen, state = run(ours, {"w": jnp.asarray(START)}, bowl, steps)
    for t in range(1, steps + 1):
        g = gradient(y)
        now = rate * min((t - 1) / warmup, 1) if warmup else rate
        v = b2 * v + (1 - b2) * g**2
        z = z - now * (g / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * y)
        rates.append(max([now, *rates]))
        points.append(z)
        weights = np.array(rates) ** power
        x = START if not weights.sum() else np.tensordot(weights, np.array(points[1:]), 1) / weights.sum()
        y = (1 - b1) * z + b1 * x
        np.testing.assert_allclose(seen[t - 1]["w"], y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(averaged(state, seen[-1])["w"], x, rtol=1e-4, atol=1e-5)


def test_the_mean_is_nearer_than_where_gradients_are_taken():
    """With noisy gradients, which is what the mean is for."""
    noise = np.random.default_rng(3).normal(size=(300, 3, 4)).astype(np.float32)
    ours = ScheduleFree(learning_rate=0.1, warmup_steps=10, b1=0.5, **PLAIN)
    seen, state = run(ours, {"w": jnp.asarray(START)}, lambda p, i: {"w": gradient(p["w"]) + 3 * noise[i]}, 300)
    y, x = (np.sum(SCALE * (np.asarray(p["w"]) - TARGET) ** 2) for p in (seen[-1], averaged(state, seen[-1])))
    assert x < 0.5 * y


def test_what_is_frozen_or_without_gradient_keeps_every_bit_and_is_its_own_mean():
    params = {"a": jnp.array([0.1, -0.0, 3.0]), "b": jnp.ones(2), "c": {"w": jnp.array([0.7, -0.0])}}
    some = {"a": jnp.array([0.0, 0.0, 1.0]), "b": jnp.ones(2), "c": {"w": jnp.ones(2)}}
    seen, state = run(ScheduleFree(learning_rate=0.1, freeze=("c/*",), **PLAIN), params, lambda *_: some, 7)
    mean = averaged(state, seen[-1])
    for tree in (seen[-1], mean):
        for old, new in ((params["a"][:2], tree["a"][:2]), (params["c"]["w"], tree["c"]["w"])):
            np.testing.assert_array_equal(np.asarray(old).view(np.int32), np.asarray(new).view(np.int32))
    assert float(mean["b"][0]) > float(seen[-1]["b"][0])  # it lags behind


def test_it_starts_from_any_parameters():
    """A run that starts from another's parameters has the state of the ones it was initialised with."""
    tx = ScheduleFree(learning_rate=0.1, **PLAIN).build({"w": START}, 5)
    first, other = {"w": jnp.asarray(START)}, {"w": jnp.asarray(TARGET)}
    tiny_gradient = {"w": jnp.full((3, 4), 1e-3, jnp.float32)}
    with jax.numpy_dtype_promotion("standard"):
        updates = [tx.update(tiny_gradient, tx.init(start), other)[0] for start in (first, other)]
    jax.tree.map(np.testing.assert_array_equal, *updates)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, averaged(tx.init(first), other), other))


def test_other_optimizers_have_no_mean():
    params = {"w": jnp.asarray(START)}
    assert averaged(AdamW().build(params, 3).init(params), params) is not None
    np.testing.assert_array_equal(averaged(AdamW().build(params, 3).init(params), params)["w"], START)


def test_shapes_stay_shapes():
    shapes = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)}
    tx = ScheduleFree().build(shapes, 3)
    assert averaged(jax.eval_shape(tx.init, shapes), shapes) == shapes


def test_it_has_no_moving_average_beside_its_own():
    with pytest.raises(UserError, match=r"optimizer\.ema=0\.9: schedule_free evaluates an average of its own; use 0"):
        ScheduleFree(ema=0.9)
