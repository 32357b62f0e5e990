"""Which parameters are trained: what patterns say, what is taken out and put back, and what is never computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.core.stacked import Stacked
from mmjax.core.trees import leaves_by_path, split_layers
from mmjax.models.multimodal import init_params
from mmjax.train import SGD
from mmjax.train.state import init_state
from mmjax.train.step import make_step
from mmjax.train.trained import Trained, trained_of

DEPTH = 6
KERNEL, BIAS = "encoders_image/stack/layers/mlp/kernel", "encoders_image/stack/layers/mlp/bias"
PARAMS = {
    "encoders_image": {
        "patch": {"kernel": np.arange(6.0)},
        "stack": {"layers": {"mlp": {"kernel": np.arange(24.0).reshape(DEPTH, 4), "bias": np.arange(float(DEPTH))[:, None]}}},
    },
    "heads_classes": {"kernel": np.arange(4.0)},
    "unread": {"spare": np.arange(2.0)},
}
SLICES = st.tuples(st.none() | st.integers(-DEPTH, DEPTH), st.none() | st.integers(-DEPTH, DEPTH))


def written(pattern, start, stop):
    return f"{pattern}[{'' if start is None else start}:{'' if stop is None else stop}]"


def assert_same(a, b):
    assert list(leaves_by_path(a)) == list(leaves_by_path(b))
    tiny.assert_identical(a, b)


def test_all_is_trained_but_what_no_forward_pass_reads():
    trained = trained_of(("*",), (), PARAMS)
    assert_same(trained.of(PARAMS), {name: tree for name, tree in PARAMS.items() if name != "unread"})
    assert_same(trained.rest(PARAMS), {"unread": PARAMS["unread"]})


@pytest.mark.parametrize(
    "train, freeze, whole, layers",
    [
        (("heads_*",), (), {"heads_classes/kernel"}, {}),
        (("*",), ("encoders_*",), {"heads_classes/kernel"}, {}),
        (
            ("*",),
            ("*/stack/*[:2]",),
            {"heads_classes/kernel", "encoders_image/patch/kernel"},
            {KERNEL: [[2, 6]], BIAS: [[2, 6]]},
        ),
        (("encoders_*[2:]",), ("*/bias",), set(), {KERNEL: [[2, 6]]}),
        (("heads_*", "encoders_*[-1:]"), (), {"heads_classes/kernel"}, {KERNEL: [[5, 6]], BIAS: [[5, 6]]}),
        (
            ("encoders_*[:]",),
            ("encoders_*[1:2]", "encoders_*[4:5]"),
            set(),
            {key: [[0, 1], [2, 4], [5, 6]] for key in (KERNEL, BIAS)},
        ),
        (("*",), ("encoders_*[:]",), {"heads_classes/kernel", "encoders_image/patch/kernel"}, {}),
    ],
)
def test_trained_is_what_one_list_names_and_the_other_does_not(train, freeze, whole, layers):
    trained = trained_of(train, freeze, PARAMS)
    assert trained.whole == whole and trained.to_json() == layers


@given(SLICES, SLICES, st.booleans())
def test_what_is_taken_out_is_put_back(frozen, again, pattern):
    freeze = [written("encoders_*", *some) for some in (frozen, again) if range(DEPTH)[slice(*some)]]
    freeze += ["*/bias"] * pattern
    trained = trained_of(("*",), freeze, PARAMS)
    own, rest = trained.of(PARAMS), trained.rest(PARAMS)
    count = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (own, rest, PARAMS)]
    assert count[0] + count[1] == count[2]
    assert_same(trained.put(PARAMS, own), PARAMS)
    assert_same(trained.join(own, rest), PARAMS)
    assert_same(Trained.from_json(trained.to_json()).join(own, rest), PARAMS)
    moved = trained.put(PARAMS, jax.tree.map(lambda x: x + 100, own))
    assert_same(trained.rest(moved), rest)
    assert_same(trained.of(moved), jax.tree.map(lambda x: x + 100, own))
    bound = trained.bind(own, PARAMS)
    assert_same(
        jax.tree.map(
            lambda x: np.concatenate(x.parts) if isinstance(x, Stacked) else x, bound, is_leaf=lambda x: isinstance(x, Stacked)
        ),
        PARAMS,
    )
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    for tree, same in ((own, trained.of(shapes)), (rest, trained.rest(shapes))):
        assert {path: x.shape for path, x in leaves_by_path(tree).items()} == {
            path: x.shape for path, x in leaves_by_path(same).items()
        }


@pytest.mark.parametrize(
    "lists, said",
    [
        ({"freeze": ("head_*",)}, "optimizer.freeze: 'head_*' matches no parameter"),
        ({"train": ("head_*",)}, "optimizer.train: 'head_*' matches no parameter"),
        ({"freeze": ("heads_*[:2]",)}, "optimizer.freeze: 'heads_*[:2]' names layers, and what it matches has none"),
        ({"freeze": ("encoders_*[6:]",)}, "optimizer.freeze: 'encoders_*[6:]' names none of the 6 layers"),
        ({"freeze": ("*",)}, "leaves nothing to train"),
        ({"train": ("unread/*",)}, "leaves nothing to train"),
    ],
)
def test_lists_that_mean_nothing_are_refused(lists, said):
    with pytest.raises(UserError) as refused:
        SGD(**lists).trained(PARAMS)
    assert said in str(refused.value)


@given(st.integers(-9, 9) | st.none(), st.integers(-9, 9) | st.none())
def test_a_slice_of_layers_is_pythons_own(start, stop):
    assert split_layers(written("a/*", start, stop)) == ("a/*", slice(start, stop))
    assert split_layers("a/*") == ("a/*", None)
    assert split_layers("a/*[::2]") == ("a/*", slice(None, None, 2)) and split_layers("a/*[1:5:]") == ("a/*", slice(1, 5))
    assert split_layers("a/*[::0]") == ("a/*[::0]", None)


# What a step computes, by the products in its program.


@functools.cache
def products(train=("*",), freeze=()):
    """FLOPs of the matrix products of one step, and of the forward pass alone."""
    made = tiny.experiment(model=tiny.small_model(depth=4), tasks=tiny.tasks("classify"))
    optimizer = SGD(learning_rate=0.1, clip_norm=0.0, schedule="constant", train=train, freeze=freeze)
    state = jax.eval_shape(lambda: init_state(made.model, optimizer, 5, made.weighting, {"classify": 1.0}, np.uint32(0)))
    tx = optimizer.build(state.params, 5)
    batch = {"image": jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32), "label": jax.ShapeDtypeStruct((16,), jnp.int32)}
    batch["index"] = batch["label"]
    step = make_step(made.model, made.tasks, made.weighting, optimizer, tx, optimizer.rate(5))
    return count_flops(step, state, {"train": batch})


BELOW = ("encoders_image/project_patches/*", "encoders_image/position/*")


def test_no_gradient_of_a_frozen_kernel_is_formed():
    """With patches' own products aside, a layer costs 3 where it is trained and something below it is, 2 where nothing below
    it is, and 1 where it is frozen and nothing below is trained."""
    text = ("encoders_text/*", "fusions_*")
    whole = products(freeze=text)
    head = products(train=("heads_*",))
    assert head < 0.36 * whole
    half = products(freeze=(*text, "encoders_image/stack/layers/*[:2]", *BELOW))
    assert half < 0.70 * whole
    # Layers in the middle: derivatives pass through them, and their own are not formed.
    middle = products(freeze=(*text, "encoders_image/stack/layers/*[1:3]"))
    layers = (whole - head) / 4 / 2 * 3  # about a layer's products, forwards and backwards
    assert middle == pytest.approx(whole - 2 * layers / 3, rel=0.03)


def test_layers_frozen_by_a_slice_step_like_those_frozen_by_pattern():
    """To the last bits: the rest of the tree moves by the same."""
    batch = None
    after = []
    for freeze in (
        ("encoders_image/stack/layers/*",),
        ("encoders_image/*[:]",),
        ("encoders_image/*[:1]", "encoders_image/*[1:]"),
    ):
        optimizer = SGD(learning_rate=0.1, clip_norm=0.5, schedule="constant", freeze=freeze)
        setup, step = tiny.prepared(tiny.experiment(model=tiny.small_model(depth=2), optimizer=optimizer))
        batch = batch or setup.datasets["train"].batch(0)
        state, figures = step(setup.init(), {"train": setup.place(batch)})
        after.append((tiny.host(state.params), tiny.host(figures)))
    for params, figures in after[1:]:
        tiny.assert_identical(params, after[0][0])
        tiny.assert_identical(figures, after[0][1])


def test_nothing_is_kept_for_what_is_frozen():
    model = tiny.small_model(depth=4)
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    optimizer = SGD(freeze=("encoders_text/*", "encoders_image/*[:3]"), ema=0.9)
    state = jax.eval_shape(lambda: init_state(model, optimizer, 5, tiny.experiment().weighting, {"a": 1.0}, np.uint32(0)))
    expected = {path: x.shape for path, x in leaves_by_path(optimizer.trained(params).of(params)).items()}
    assert {path: x.shape for path, x in leaves_by_path(state.ema).items()} == expected
    momentum = [x.shape for path, x in leaves_by_path(state.optimizer).items() if x.ndim]
    assert sorted(momentum) == sorted(shape for shape in expected.values() if shape)
    assert not any("encoders_text" in path for path in expected)
    assert all(shape[0] == 1 for path, shape in expected.items() if "/layers/" in path)


@pytest.mark.parametrize("freeze", [(), ("encoders_image/*[:2]", *BELOW), ("encoders_*",)], ids=["none", "half", "towers"])
def test_the_figure_of_flops_is_what_the_step_has(freeze):
    """As `model_flops_used` counts them; all trained, three times the forward's, patches' own input included."""
    optimizer = SGD(learning_rate=0.1, clip_norm=0.0, schedule="constant", freeze=freeze)
    setup, _ = tiny.prepared(
        tiny.experiment(model=tiny.small_model(depth=4), tasks=tiny.tasks("classify"), optimizer=optimizer)
    )
    counted = count_flops(setup.jit_step(("train",)), setup.abstract, setup.batch_shapes(("train",)))
    assert setup.step_flops(("train",)) == pytest.approx(counted, rel=0.0 if freeze else 0.05)
