"""Each weighting against its paper, on losses whose gradients are known."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.errors import UserError
from mmjax.train.weighting import WEIGHTINGS, DynamicWeightAverage, Fixed, GradNorm, PCGrad, Uncertainty
from mmjax.train.weighting.pcgrad import project

KEY = jax.random.key(0)
BASE = {"a": 1.0, "b": 0.5, "c": 2.0}
ALL = {
    "dynamic": DynamicWeightAverage(window=2),
    "fixed": Fixed(),
    "gradnorm": GradNorm(shared="encoders_*"),
    "pcgrad": PCGrad(shared="encoders_*"),
    "uncertainty": Uncertainty(regression=("c",)),
}


def scalars(**values):
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def linear(gradients):
    """The pullback of losses that are linear in the parameters: task -> its gradient, a tree."""

    def pullback(cotangents):
        parts = [jax.tree.map(lambda g, c=cotangents[task]: c * g, gradients[task]) for task in gradients]
        return jax.tree.map(lambda *leaves: sum(leaves), *parts)

    return pullback


def vectors(**values):
    return {name: {"encoders_image": {"w": jnp.asarray(value, jnp.float32)}} for name, value in values.items()}


def run(weighting, history, gradients, base=None):
    """Steps through a history of losses; the gradient of the last step, and the metrics of each."""
    state = weighting.init(tuple(gradients), base or dict.fromkeys(gradients, 1.0))
    update, seen = jax.jit(lambda s, losses: weighting.update(s, losses, linear(gradients), KEY)), []
    for losses in history:
        gradient, state, metrics = update(state, scalars(**losses))
        seen.append({name: float(value) for name, value in metrics.items()})
    return gradient, state, seen


def test_the_table_and_this_file_agree():
    assert {name: type(weighting) for name, weighting in ALL.items()} == WEIGHTINGS


def test_fixed_is_a_weighted_sum():
    gradient, _, (metrics,) = run(Fixed(), [{"a": 2.0, "b": 3.0}], vectors(a=[1, 0], b=[4, 2]), {"a": 1.0, "b": 0.5})
    np.testing.assert_allclose(gradient["encoders_image"]["w"], [3.0, 1.0])
    assert metrics == {"total": 3.5, "weight/a": 1.0, "weight/b": 0.5}


# Uncertainty


def test_uncertainty_starts_at_the_papers_formula():
    weighting = Uncertainty(regression=("b",))
    gradient, _, (metrics,) = run(weighting, [{"a": 2.0, "b": 3.0}], vectors(a=[1, 0], b=[4, 2]), {"a": 1.0, "b": 0.5})
    assert metrics == {"total": 2.0 + 0.5 * 1.5, "weight/a": 1.0, "weight/b": 0.25}
    np.testing.assert_allclose(gradient["encoders_image"]["w"], [2.0, 0.5])


@pytest.mark.parametrize(("regression", "rest"), [((), np.log(2 * 0.7)), (("a",), np.log(0.7))])
def test_uncertainty_rests_at_its_stationary_point(regression, rest):
    """d/ds (c exp(-s) L + s / 2) = 0 where s = log(2 c L)."""
    weighting = Uncertainty(learning_rate=0.02, regression=regression)
    _, state, metrics = run(weighting, [{"a": 0.7}] * 200, vectors(a=[1.0]))
    np.testing.assert_allclose(state["s"]["a"], rest, atol=2e-3)
    np.testing.assert_allclose(metrics[-1]["total"], 0.5 + rest / 2, atol=1e-4)


@given(s=st.floats(-3, 3), loss=st.floats(1e-6, 10), base=st.floats(0.1, 3), regression=st.booleans())
def test_uncertainty_slopes_are_the_derivative_of_its_total(s, loss, base, regression):
    weighting = Uncertainty(regression=("a",) if regression else ())

    def total(s):
        return base * ((0.5 if regression else 1.0) * np.exp(-s) * loss + s / 2)

    found = weighting.slopes(scalars(a=s), scalars(a=loss), scalars(a=base))["a"]
    np.testing.assert_allclose(found, (total(s + 1e-5) - total(s - 1e-5)) / 2e-5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("regression", [(), ("a",)])
@pytest.mark.parametrize("start", [1.0, 0.01])
def test_uncertainty_leaves_a_loss_of_zero_and_draws_back_one_below(start, regression):
    """Both have no best s but minus infinity, where the weight of the task would drown every other."""
    weighting = Uncertainty(learning_rate=0.05, regression=regression)
    history = [{"a": start}] * 60 + [{"a": 0.0}] * 60 + [{"a": -0.3}] * 400
    _, _, metrics = run(weighting, history, vectors(a=[1.0]))
    weights = np.array([m["weight/a"] for m in metrics])
    assert abs(weights[119] / weights[100] - 1) < 0.01  # by then Adam has no momentum left
    np.testing.assert_allclose(weights[-1], 0.5 if regression else 1.0, rtol=1e-2)


def test_uncertainty_is_bounded_where_a_loss_nears_zero():
    _, state, metrics = run(Uncertainty(learning_rate=1.0), [{"a": 1e-12}] * 30, vectors(a=[1.0]))
    assert state["s"]["a"] == -10 and np.isfinite(metrics[-1]["weight/a"])


# Dynamic weight average


def test_dynamic_weights_are_the_papers_over_windows():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1, 2, 8), rng.uniform(1, 2, 8)
    history = [{"a": x, "b": y} for x, y in zip(a, b, strict=True)]
    _, _, metrics = run(
        DynamicWeightAverage(window=2, temperature=0.5), history, vectors(a=[1.0], b=[1.0]), {"a": 3.0, "b": 1.0}
    )
    found = np.array([[m["weight/a"], m["weight/b"]] for m in metrics])
    means = np.stack([a, b], 1).reshape(4, 2, 2).mean(1)
    expected = np.ones((8, 2))
    for window in (2, 3):
        rates = means[window - 1] / means[window - 2]
        expected[2 * window : 2 * window + 2] = 2 * np.exp(rates / 0.5) / np.exp(rates / 0.5).sum()
    np.testing.assert_allclose(found, expected * [3.0, 1.0], rtol=1e-5)


def test_a_task_that_alternates_is_averaged_over_its_own_steps():
    weighting, gradients = DynamicWeightAverage(window=4), vectors(a=[1.0], b=[1.0])
    alternating = [{"a": 2.0}, {"b": 4.0}, {"a": 2.0}, {"b": 4.0}, {"a": 1.0}, {"b": 4.0}, {"a": 1.0}, {"b": 4.0}]
    state = weighting.init(("a", "b"), {"a": 1.0, "b": 1.0})
    for losses in alternating:
        present = {name: gradients[name] for name in losses}
        _, state, metrics = weighting.update(state, scalars(**losses), linear(present), KEY)
        assert metrics.keys() == {"total", *(f"weight/{name}" for name in losses)}
    shares = np.exp(np.array([0.5, 1.0]) / 2)
    np.testing.assert_allclose([state["weight"]["a"], state["weight"]["b"]], 2 * shares / shares.sum(), rtol=1e-6)


# GradNorm

GRADIENTS = vectors(a=[3.0, 4.0], b=[0.6, 0.8], c=[0.0, 2.0])


def test_gradnorm_slopes_are_the_derivative_of_its_own_loss():
    """sum_t |w_t n_t - target_t| with the target held, by finite differences of a plain numpy version."""
    weighting = GradNorm(alpha=1.5)
    w, n = np.array([1.2, 0.8, 1.0]), np.array([5.0, 1.0, 2.0])
    losses, initial = np.array([1.0, 2.0, 0.5]), np.array([2.0, 2.5, 3.0])
    rates = (losses / initial) / np.mean(losses / initial)
    targets = np.mean(w * n) * rates**1.5
    named = [scalars(a=x[0], b=x[1], c=x[2]) for x in (w, n, losses, initial)]
    found_targets = weighting.targets(*named)
    np.testing.assert_allclose([found_targets[t] for t in "abc"], targets, rtol=1e-6)
    found = weighting.slopes(named[0], named[1], found_targets)
    for i, task in enumerate("abc"):
        step = 1e-6 * np.eye(3)[i]
        up, down = (np.sum(np.abs((w + s) * n - targets)) for s in (step, -step))
        np.testing.assert_allclose(found[task], (up - down) / 2e-6, rtol=1e-5)


def test_gradnorm_first_step_by_hand():
    """All rates are 1: the target is the mean norm 8/3, so a (norm 5) steps down, b and c (1 and 2) up, each by Adam's rate."""
    history = [{"a": 1.0, "b": 2.0, "c": 3.0}] * 2
    gradient, _, metrics = run(GradNorm(learning_rate=0.1), history, GRADIENTS, BASE)
    assert [metrics[0][f"weight/{t}"] for t in "abc"] == [1.0, 0.5, 2.0]
    moved = np.array([0.9, 1.1, 1.1]) * 3 / 3.1
    np.testing.assert_allclose([metrics[1][f"weight/{t}"] for t in "abc"], moved * [1.0, 0.5, 2.0], rtol=1e-6)
    expected = moved @ (np.array([[3.0, 4.0], [0.6, 0.8], [0.0, 2.0]]) * [[1.0], [0.5], [2.0]])
    np.testing.assert_allclose(gradient["encoders_image"]["w"], expected, rtol=1e-6)


def test_gradnorm_without_alpha_makes_all_norms_equal():
    _, state, _ = run(GradNorm(alpha=0.0, learning_rate=0.01), [{"a": 1.0, "b": 2.0, "c": 3.0}] * 400, GRADIENTS)
    weights = np.array([float(state["weight"][t]) for t in "abc"])
    np.testing.assert_allclose(weights.sum(), 3, rtol=1e-5)
    np.testing.assert_allclose(weights * [5.0, 1.0, 2.0], np.mean(weights * [5.0, 1.0, 2.0]), rtol=0.06)


def test_gradnorm_looks_at_shared_parameters_only():
    gradients = {t: tree | {"heads_x": {"w": jnp.asarray([1e3], jnp.float32)}} for t, tree in GRADIENTS.items()}
    history = [{"a": 1.0, "b": 2.0, "c": 3.0}] * 3
    states = [run(GradNorm(), history, g)[1]["weight"] for g in (GRADIENTS, gradients)]
    assert states[0] == states[1]


def test_gradnorm_says_what_it_lacks():
    state = GradNorm().init(("a", "b"), BASE)
    with pytest.raises(UserError, match=r"GradNorm needs every task in every step, 'b' is missing: mix, do not alternate"):
        GradNorm().update(state, scalars(a=1.0), linear(vectors(a=[1.0])), KEY)


def test_gradnorm_counts_a_loss_below_zero_as_one_that_has_fallen_furthest():
    """Beside a task that has not moved it has a rate of 0, so a target of 0: its weight falls by Adam's rate a step."""
    weighting, w = GradNorm(learning_rate=0.1), scalars(a=1.0, b=1.0)
    initial = scalars(a=0.5, b=2.0)
    below, zero = (weighting.targets(w, w, scalars(a=loss, b=2.0), initial) for loss in (-0.2, 0.0))
    assert below == zero and float(below["a"]) == 0
    np.testing.assert_allclose(float(below["b"]), 2.0**1.5, rtol=1e-6)
    _, _, metrics = run(weighting, [{"a": 0.5, "b": 2.0}, {"a": -0.2, "b": 2.0}, {"a": 0.5, "b": 2.0}], vectors(a=[1], b=[1]))
    assert metrics[2]["weight/a"] < metrics[1]["weight/a"] == metrics[0]["weight/a"] == 1.0


def test_gradnorm_takes_the_first_loss_above_zero_as_a_tasks_first():
    history = [{"a": -0.5, "b": 2.0}, {"a": 0.0, "b": 2.0}, {"a": 4.0, "b": 2.0}, {"a": 3.0, "b": 2.0}]
    _, state, _ = run(GradNorm(), history, vectors(a=[1.0], b=[1.0]))
    assert (float(state["initial"]["a"]), float(state["initial"]["b"])) == (4.0, 2.0)


# PCGrad


def pcgrad_by_hand(gradients, orders):
    """Yu 2020, algorithm 1, as it is printed."""
    total = np.zeros_like(gradients[0])
    for i, own in enumerate(gradients):
        projected = own.copy()
        for j in orders[i]:
            dot = projected @ gradients[j]
            if j != i and dot < 0:
                projected -= dot / (gradients[j] @ gradients[j]) * gradients[j]
        total += projected
    return total


def test_pcgrad_of_two_conflicting_gradients():
    """(1, 0) and (-1, 1): each loses its part along the other, (1, 0) -> (1/2, 1/2) and (-1, 1) -> (0, 1)."""
    gradient, _, (metrics,) = run(PCGrad(), [{"a": 1.0, "b": 2.0}], vectors(a=[1, 0], b=[-1, 1]))
    np.testing.assert_allclose(gradient["encoders_image"]["w"], [0.5, 1.5], rtol=1e-6)
    assert metrics == {"total": 3.0, "weight/a": 2.0, "weight/b": 1.5, "conflicts": 1.0}


def test_pcgrad_leaves_agreeing_gradients_alone():
    gradient, _, (metrics,) = run(PCGrad(), [{"a": 1.0, "b": 2.0}], vectors(a=[1, 0], b=[1, 1]), {"a": 1.0, "b": 0.5})
    np.testing.assert_allclose(gradient["encoders_image"]["w"], [1.5, 0.5])
    assert metrics == {"total": 2.0, "weight/a": 1.0, "weight/b": 0.5, "conflicts": 0.0}


def test_pcgrad_projects_shared_parameters_and_sums_the_rest():
    own = {"heads_x": {"w": jnp.asarray([10.0], jnp.float32)}}
    gradients = {name: tree | own for name, tree in vectors(a=[1, 0], b=[-1, 1]).items()}
    gradient, _, _ = run(PCGrad(shared="encoders_*"), [{"a": 1.0, "b": 2.0}], gradients)
    np.testing.assert_allclose(gradient["encoders_image"]["w"], [0.5, 1.5], rtol=1e-6)
    np.testing.assert_allclose(gradient["heads_x"]["w"], [20.0])


def test_opposite_and_vanishing_gradients_stay_finite():
    gradient, _, _ = run(PCGrad(), [{"a": 1.0, "b": 1.0, "c": 1.0}], vectors(a=[1, 2], b=[-1, -2], c=[0, 0]))
    np.testing.assert_allclose(gradient["encoders_image"]["w"], [0, 0], atol=1e-6)
    gradient, _, _ = run(PCGrad(), [{"a": 1.0, "b": 1.0}], vectors(a=[1e10, 0], b=[-1e-25, 0]))  # the square of b is 0
    np.testing.assert_allclose(gradient["encoders_image"]["w"], [1e10, 0])


@given(seed=st.integers(0, 1000))
def test_pcgrad_is_algorithm_1(seed):
    gradients = np.random.default_rng(seed).normal(size=(4, 6))
    keys = jax.random.split(jax.random.key(seed), 4)
    orders = [np.asarray(jax.random.permutation(key, 4)) for key in keys]
    gram = jnp.asarray(gradients @ gradients.T, jnp.float32)
    factors = np.asarray(jax.jit(project)(gram, jax.random.key(seed)), np.float64)
    np.testing.assert_allclose(factors.sum(0) @ gradients, pcgrad_by_hand(gradients, orders), rtol=1e-4, atol=1e-4)


def test_the_order_of_projections_is_random():
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -0.9]])  # all in conflict
    gram = jnp.asarray(gradients @ gradients.T, jnp.float32)
    sums = {tuple(np.asarray(project(gram, jax.random.key(seed)).sum(0)).round(4)) for seed in range(10)}
    assert len(sums) > 1


# All of them


def quadratic(params):
    """Three tasks on a small tree, two of which share an encoder."""
    w, v, h = params["encoders_image"]["w"], params["encoders_text"]["w"], params["heads_x"]["w"]
    return {
        "a": jnp.mean((w - 1) ** 2) + 0.1 * jnp.mean(h**2),
        "b": jnp.mean((w + 1) ** 2) + jnp.mean((v - 2) ** 2),
        "c": jnp.mean((v + 2) ** 2) + jnp.mean((h - 1) ** 2),
    }


@partial(jax.jit, static_argnums=0)
def descend(weighting, params, state, key):
    losses, vjp = jax.vjp(quadratic, params)
    gradient, state, metrics = weighting.update(state, losses, lambda cotangents: vjp(cotangents)[0], key)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), state, metrics


@pytest.mark.parametrize("name", ALL)
def test_parameters_split_over_devices_give_the_same_steps(name):
    weighting, rng = ALL[name], np.random.default_rng(0)
    shapes = {"encoders_image": (8, 4), "encoders_text": (16,), "heads_x": (4, 8)}
    params = {room: {"w": jnp.asarray(rng.normal(size=shape), jnp.float32)} for room, shape in shapes.items()}
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {"encoders_image": ("fsdp", "tensor"), "encoders_text": ("fsdp",), "heads_x": ("tensor", "fsdp")}
    split = {room: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*specs[room]))) for room, tree in params.items()}
    results = []
    for tree in (params, split):
        state = weighting.init(tuple(BASE), BASE)
        structure = jax.tree.structure(state)
        for step in range(5):
            tree, state, metrics = descend(weighting, tree, state, jax.random.fold_in(KEY, step))
        assert jax.tree.structure(state) == structure
        assert {"total", *(f"weight/{t}" for t in BASE)} <= metrics.keys()
        assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
        results.append((tree, state, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


@pytest.mark.parametrize("name", [name for name in ALL if name != "gradnorm"])
def test_a_step_may_bring_some_of_the_tasks(name):
    state = ALL[name].init(tuple(BASE), BASE)
    gradient, after, metrics = ALL[name].update(state, scalars(b=2.0), linear(vectors(b=[4.0])), KEY)
    np.testing.assert_allclose(gradient["encoders_image"]["w"], [2.0])
    assert float(metrics["total"]) == 1.0 and "weight/a" not in metrics
    assert jax.tree.structure(after) == jax.tree.structure(state)


TINY, HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
ANY_LOSS = st.sampled_from([0.0, -0.0, TINY, -TINY, 1e-42, -0.3, 1.0, 1e30, HUGE, -HUGE]) | st.floats(-10, 10, width=32)
ANY_NORM = st.sampled_from([0.0, TINY, 1e-25, 1.0, 1e10, 1e18]) | st.floats(-10, 10, width=32)
SOME = st.tuples(*([ANY_LOSS] * 3))


@partial(jax.jit, static_argnums=0)
def scaled(weighting, state, losses, sizes, key):
    """A step whose gradients, one of them against the others, have the given sizes."""
    directions = {"a": [1.0, 0.5], "b": [-1.0, 0.25], "c": [-0.5, -1.0]}
    gradients = {t: {"encoders_image": {"w": jnp.asarray(directions[t]) * sizes[t]}} for t in directions}
    return weighting.update(state, losses, linear(gradients), key)


def figures(tree):
    return np.array([float(x) for x in jax.tree.leaves(tree)])


@given(history=st.lists(SOME, min_size=1, max_size=8), sizes=st.tuples(*([ANY_NORM] * 3)))
@pytest.mark.parametrize("name", ALL)
def test_no_finite_loss_makes_a_weighting_anything_but_finite(name, history, sizes):
    weighting = ALL[name]
    state = weighting.init(tuple(BASE), BASE)
    named = scalars(a=sizes[0], b=sizes[1], c=sizes[2])
    for losses in history:
        _, state, metrics = scaled(weighting, state, scalars(a=losses[0], b=losses[1], c=losses[2]), named, KEY)
        weights = figures({key: value for key, value in metrics.items() if key.startswith("weight/")})
        assert np.isfinite(figures(state)).all() and np.isfinite(weights).all()
        if name in ("gradnorm", "uncertainty"):  # a softmax may vanish, and a factor of a projection may be below 0
            assert (weights > 0).all()


@given(good=SOME, bad=st.sampled_from([np.nan, np.inf, -np.inf]), task=st.integers(0, 2), in_gradient=st.booleans())
@pytest.mark.parametrize("name", ALL)
def test_what_is_not_finite_is_told_and_never_kept(name, good, bad, task, in_gradient):
    """The step sees it in the total or in the gradient; the state is as before, and goes on from there."""
    weighting, ones = ALL[name], scalars(a=1.0, b=1.0, c=1.0)
    named = dict(zip("abc", np.clip(good, -10, 10), strict=True))
    _, state, _ = scaled(weighting, weighting.init(tuple(BASE), BASE), scalars(**named), ones, KEY)
    sizes = dict(zip("abc", [bad if in_gradient and i == task else 1.0 for i in range(3)], strict=True))
    losses = {t: bad if not in_gradient and i == task else named[t] for i, t in enumerate("abc")}
    gradient, after, metrics = scaled(weighting, state, scalars(**losses), scalars(**sizes), KEY)
    seen = [metrics["total"], jnp.sum(gradient["encoders_image"]["w"])]
    assert not np.isfinite(figures(seen)).all()
    assert np.isfinite(figures(after)).all()
    if not in_gradient:
        np.testing.assert_array_equal(figures(after), figures(state))
    _, after, _ = scaled(weighting, after, scalars(**named), ones, KEY)
    assert np.isfinite(figures(after)).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_reaches_the_total(name, bad):
    weighting = ALL[name]
    state = jax.tree.map(lambda x: jnp.full_like(x, bad) if x.dtype == jnp.float32 else x, weighting.init(tuple(BASE), BASE))
    ones = scalars(a=1.0, b=1.0, c=1.0)
    gradient, _, metrics = scaled(weighting, state, ones, ones, KEY)
    assert not np.isfinite(float(metrics["total"])) or not np.isfinite(figures(gradient)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DynamicWeightAverage(window=0), "weighting.window=0: use a number from 1"),
        (lambda: DynamicWeightAverage(temperature=0.0), "weighting.temperature=0.0: use a number above 0"),
        (lambda: GradNorm(alpha=-1.0), "weighting.alpha=-1.0: use a number from 0"),
        (lambda: GradNorm(learning_rate=0.0), "weighting.learning_rate=0.0: use a number above 0"),
        (lambda: Uncertainty(learning_rate=-1.0), "weighting.learning_rate=-1.0: use a number above 0"),
        (
            lambda: Uncertainty(regression=("captoin",)).init(("caption", "match"), {"caption": 1.0, "match": 1.0}),
            "weighting.regression='captoin': the tasks are caption, match (did you mean 'caption'?)",
        ),
        (
            lambda: run(PCGrad(shared="encoder/*"), [{"a": 1.0}], vectors(a=[1.0])),
            "weighting.shared='encoder/*' matches no parameter that is trained; the first part of a path is one of",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(build, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        build()
    assert "\n" not in str(error.value)
