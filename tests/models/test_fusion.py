import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.types import Tokens
from mmjax.models.fusion import FUSIONS, Concatenate, Cross, Dual, SingleStream, Weighted
from mmjax.models.fusion.dual import held_scale
from mmjax.nn.norm import Norm
from mmjax.nn.stack import Block

DRAW = np.random.default_rng(0).normal
SIZE = {"width": 8, "depth": 1, "heads": 2}


def tokens(length, width, mask):
    return Tokens(jnp.asarray(DRAW(size=(2, length, width)), jnp.float32), jnp.asarray(mask, bool))


TOKENS = {
    "text": tokens(4, 8, [[1, 1, 1, 1], [1, 1, 0, 0]]),
    "image": tokens(3, 12, [[1, 1, 0], [1, 1, 1]]),
}
CASES = {
    "dual": Dual(width=6, pool={"image": "attention", "text": "mean"}, heads=2),
    "dual, last": Dual(width=6, pool={"image": "mean", "text": "last"}, bias=True),
    "cross": Cross(**SIZE),
    "cross, both": Cross(both=True, **SIZE),
    "cross, to text": Cross(query="image", context="text", **SIZE),
    "single_stream": SingleStream(**SIZE),
    "concatenate": Concatenate(width=8),
    "weighted": Weighted(width=8, pool="attention", heads=2),
}
SHAPES = {
    "dual": (2, 2, 6),
    "dual, last": (2, 2, 6),
    "cross": (2, 4, 8),
    "cross, both": (2, 7, 8),
    "cross, to text": (2, 3, 8),
    "single_stream": (2, 7, 8),
    "concatenate": (2, 1, 8),
    "weighted": (2, 1, 8),
}


@functools.cache
def drawn(name):
    shapes = jax.eval_shape(CASES[name].init, jax.random.key(0), TOKENS)["params"]
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), shapes)


@functools.cache
def compiled(name):
    params = drawn(name)
    return jax.jit(lambda inputs: CASES[name].apply({"params": params}, inputs))


def apply(module, params, *args, **kwargs):
    """A module's result, compiled: op by op would be compiled for each."""
    return jax.jit(lambda params, *args: module.apply({"params": params}, *args, **kwargs))(params, *args)


def test_every_fusion_has_a_case():
    assert {type(case) for case in CASES.values()} == set(FUSIONS.values())


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_modalities(name):
    fused = compiled(name)(TOKENS)
    assert fused.embeddings.shape == SHAPES[name]
    assert fused.mask.shape == SHAPES[name][:2]
    assert set(CASES[name].modalities) == {"image", "text"}
    assert np.isfinite(fused.embeddings).all()


@pytest.mark.parametrize("name", CASES)
def test_padding_changes_nothing_real(name):
    padded = {m: Tokens(jnp.where(t.mask[..., None], t.embeddings, 50.0), t.mask) for m, t in TOKENS.items()}
    one, other = compiled(name)(TOKENS), compiled(name)(padded)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.embeddings[one.mask], other.embeddings[one.mask])


@pytest.mark.parametrize("name", CASES)
def test_every_modality_matters(name):
    for modality, t in TOKENS.items():
        moved = TOKENS | {modality: Tokens(t.embeddings * jnp.linspace(0.0, 2.0, t.embeddings.shape[-1])[None, None], t.mask)}
        assert not np.allclose(compiled(name)(moved).embeddings, compiled(name)(TOKENS).embeddings)


@pytest.mark.parametrize("name", ["cross, both", "single_stream"])
def test_joined_tokens_keep_their_masks_and_say_where_they_came_from(name):
    fused = compiled(name)(TOKENS)
    np.testing.assert_array_equal(fused.mask, jnp.concatenate([TOKENS["text"].mask, TOKENS["image"].mask], axis=1))
    np.testing.assert_array_equal(fused.segments[0], [0, 0, 0, 0, 1, 1, 1])


def test_two_way_attention_does_not_care_which_side_is_the_query():
    params, layers = drawn("cross, both"), drawn("cross, both")["stack"]["layers"]
    swapped = params | {
        "stack": {
            "layers": {"first": layers["second"], "second": layers["first"]},
            "first_norm": params["stack"]["second_norm"],
            "second_norm": params["stack"]["first_norm"],
        }
    }
    other = apply(Cross(query="image", context="text", both=True, **SIZE), swapped, TOKENS)
    fused = compiled("cross, both")(TOKENS)
    np.testing.assert_allclose(other.embeddings[:, 3:], fused.embeddings[:, :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other.embeddings[:, :3], fused.embeddings[:, 4:], rtol=1e-5, atol=1e-5)


def test_a_context_of_another_width_needs_no_projection_one_way():
    assert set(drawn("cross")) == {"stack"}
    assert drawn("cross")["stack"]["layers"]["cross_attention"]["k"]["kernel"].shape == (1, 12, 2, 4)


def test_one_way_attention_runs_on_the_query_alone_with_the_same_layers():
    params, text = drawn("cross"), TOKENS["text"]
    layers = {name: p for name, p in params["stack"]["layers"].items() if not name.startswith("cross_attention")}
    alone = apply(Cross(**SIZE), params, {"text": text})
    x = apply(Block(width=8, heads=2), jax.tree.map(lambda p: p[0], layers), text.embeddings, text.mask)
    x = apply(Norm(), params["stack"]["final_norm"], x)
    np.testing.assert_allclose(alone.embeddings, x, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="a two-way cross fusion needs both 'text' and 'image'"):
        Cross(both=True, **SIZE).apply({"params": drawn("cross, both")}, {"text": text})


def mean(name):
    t = TOKENS[name]
    weights = np.asarray(t.mask, np.float32)
    return np.einsum("btd,bt->bd", t.embeddings, weights) / weights.sum(axis=1, keepdims=True)


def linear(x, layer):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def test_concatenate_by_formula():
    expected = linear(np.concatenate([mean("text"), mean("image")], axis=1), drawn("concatenate")["project"])
    np.testing.assert_allclose(compiled("concatenate")(TOKENS).embeddings[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_weighted_by_formula():
    model = Weighted(width=8)
    params = {name: p for name, p in drawn("weighted").items() if not name.startswith("pool")}
    a, b = np.exp(params["mix"]) / np.exp(params["mix"]).sum()
    expected = a * linear(mean("text"), params["project_text"]) + b * linear(mean("image"), params["project_image"])
    np.testing.assert_allclose(apply(model, params, TOKENS).embeddings[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_dual_by_formula():
    x = linear(mean("image"), drawn("dual, last")["project_image"])
    expected = x / np.linalg.norm(x, axis=1, keepdims=True)
    image_BE = compiled("dual, last")(TOKENS).embeddings[:, 0]
    np.testing.assert_allclose(image_BE, expected, rtol=1e-4, atol=1e-5)


def test_dual_gives_unit_vectors_in_float32():
    halves = {m: Tokens(t.embeddings.astype(jnp.bfloat16), t.mask) for m, t in TOKENS.items()}
    fused = compiled("dual")(halves)
    assert fused.embeddings.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(fused.embeddings, axis=-1), np.ones((2, 2)), rtol=1e-5)


def test_duals_projections_are_not_rounded():
    halves = {m: Tokens(t.embeddings.astype(jnp.bfloat16), t.mask) for m, t in TOKENS.items()}
    dual, params = CASES["dual"], drawn("dual")
    pooled = dual.copy(project=(), width=halves["text"].embeddings.shape[-1])
    scalars = {name: params[name] for name in ("scale_logit", "bias_logit")}
    x = np.asarray(pooled.apply({"params": scalars}, "text", halves["text"], method=lambda m, name, t: m.pools[name](t)))
    kernel = np.asarray(params["project_text"]["kernel"].astype(jnp.bfloat16)).astype(np.float64)
    expected = x.astype(np.float64) @ kernel
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    found = dual.apply({"params": params}, "text", halves["text"], method="embed")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_dual_has_a_finite_gradient_at_zero():
    zero = Tokens(jnp.zeros((1, 1, 6)), jnp.ones((1, 1), bool))
    dual = Dual(width=6, project=())

    def loss(x):
        params = {"scale_logit": jnp.float32(0), "bias_logit": jnp.float32(0)}
        return dual.apply({"params": params}, "image", Tokens(x, zero.mask), method="embed").sum()

    assert np.isfinite(jax.jit(jax.grad(loss))(zero.embeddings)).all()


def test_duals_scale_is_free_where_it_has_no_bound():
    dual = CASES["dual"].copy(max_scale=0.0)
    params = {"params": drawn("dual") | {"scale_logit": jnp.float32(np.log(117.0)), "bias_logit": jnp.float32(-3)}}
    np.testing.assert_allclose(dual.apply(params, method="scale"), 117.0, rtol=1e-6)


@pytest.mark.parametrize(("logit", "scale"), [(0.0, 1.0), (np.log(14.0), 14.0), (10.0, 100.0)])
def test_duals_scale_is_held_at_a_hundred(logit, scale):
    params = {"params": drawn("dual") | {"scale_logit": jnp.float32(logit), "bias_logit": jnp.float32(-3)}}
    np.testing.assert_allclose(CASES["dual"].apply(params, method="scale"), scale, rtol=1e-6)
    assert float(CASES["dual"].apply(params, method="bias_value")) == -3.0


@pytest.mark.parametrize(
    ("logit", "down", "up"), [(1.0, np.e, -np.e), (np.log(100), 100.0, 0.0), (5.0, 100.0, 0.0), (1000.0, 100.0, 0.0)]
)
def test_duals_scale_comes_down_from_its_bound_and_goes_no_further_up(logit, down, up):
    params = drawn("dual") | {"scale_logit": jnp.float32(0.0), "bias_logit": jnp.float32(-3)}

    def used(logit, sign):
        return sign * CASES["dual"].apply({"params": params | {"scale_logit": logit}}, method="scale")

    found = [jax.grad(used)(jnp.nextafter(jnp.float32(logit), jnp.float32(2e3)), sign) for sign in (1.0, -1.0)]
    np.testing.assert_allclose(found, [down, up], rtol=1e-5)


def test_a_scale_above_its_bound_is_brought_back_by_descent():
    logit = jnp.float32(np.log(150.0))
    for _ in range(100):  # of a loss that is least where the scale is 20
        logit -= 0.01 * jax.grad(lambda x: jnp.log(held_scale(x, 100.0) / 20.0) ** 2)(logit)
    assert 20.0 < float(jnp.exp(logit)) < 70.0


def test_duals_scale_starts_where_it_is_told():
    dual = Dual(width=6, scale_init=1 / 0.07, bias_init=-10.0)
    params = jax.jit(lambda key: dual.init(key, method="scale"))(jax.random.key(0))["params"]
    np.testing.assert_allclose(np.exp(params["scale_logit"]), 1 / 0.07, rtol=1e-6)
    assert float(params["bias_logit"]) == -10.0


def test_dual_refuses_what_does_not_meet_there():
    dual = CASES["dual"]
    with pytest.raises(UserError, match="modality 'audio' is not in this dual fusion's pool, which has image, text"):
        dual.apply({"params": drawn("dual")}, "audio", TOKENS["text"], method="embed")
    with pytest.raises(UserError, match="dual: image has width 12 and no projection to width=6"):
        Dual(width=6, project=("text",)).apply({"params": drawn("dual, last")}, "image", TOKENS["image"], method="embed")


def test_parts_of_the_last_modality_are_read_one_by_one_each_with_its_type():
    model = SingleStream(types=(1, 3), parts=2, **SIZE)
    params = dict(drawn("single_stream"))
    params["image_type"] = jnp.asarray(DRAW(size=(3, 8)), jnp.float32)
    second = tokens(3, 12, [[1, 1, 1], [1, 0, 0]])
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), TOKENS["image"], second)
    fused = apply(model, params, TOKENS | {"image": both})
    for part, image in enumerate((TOKENS["image"], second)):
        own = params | {"image_type": params["image_type"][part : part + 1]}
        alone = apply(CASES["single_stream"], own, TOKENS | {"image": image})
        np.testing.assert_array_equal(fused.mask[:, 7 * part : 7 * part + 7], alone.mask)
        np.testing.assert_allclose(fused.embeddings[:, 7 * part : 7 * part + 7], alone.embeddings, rtol=1e-5, atol=1e-5)


def test_too_few_types_are_refused():
    with pytest.raises(UserError, match=r"types=\(1, 1\): use one number for each of .*, the last at least parts=2"):
        SingleStream(parts=2, **SIZE).init(jax.random.key(0), TOKENS)


def test_a_single_stream_may_start_with_a_token_of_its_own_and_know_no_types():
    model = SingleStream(types=(0, 0), cls_token=True, project=True, **SIZE)
    params = jax.jit(model.init)(jax.random.key(0, impl="unsafe_rbg"), TOKENS)["params"]  # quick to compile
    assert params.keys() == {"cls", "project_text", "project_image", "stack"}
    fused = apply(model, params, TOKENS)
    np.testing.assert_array_equal(fused.segments[0], [-1, 0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(fused.mask[:, 1:], jnp.concatenate([TOKENS["text"].mask, TOKENS["image"].mask], axis=1))
    bare = apply(model.copy(depth=0), {**params, "stack": {"final_norm": params["stack"]["final_norm"]}}, TOKENS)
    text = linear(np.asarray(TOKENS["text"].embeddings), params["project_text"])
    want = apply(Norm(epsilon=1e-6), params["stack"]["final_norm"], jnp.asarray(text))
    np.testing.assert_allclose(bare.embeddings[:, 1:5], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bare.embeddings[0, 0], bare.embeddings[1, 0])


def test_virtual_tokens_keep_their_places_behind_another_modality():
    ours = {name: Tokens(own.embeddings, own.mask, virtual=(1,)) for name, own in TOKENS.items()}
    for name, places in (("cross, both", (1, 5)), ("single_stream", (1, 5)), ("cross", (1,))):
        fused = CASES[name].apply({"params": drawn(name)}, ours)
        assert fused.virtual == places
        kept = np.delete(np.arange(SHAPES[name][1]), places)
        np.testing.assert_array_equal(fused.real().embeddings, fused.embeddings[:, kept])
        np.testing.assert_array_equal(fused.real().mask, fused.mask[:, kept])
