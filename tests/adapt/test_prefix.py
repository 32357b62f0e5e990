"""Prefixes beside the keys and values that the same words would have left in a cache; what cannot have one is one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.adapt import LoRA, Prefix, Prompt, adapted, base_of, merged, trained_patterns
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, map_with_path
from mmjax.generate import Rules, decode, settings_of
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Cross
from mmjax.models.multimodal import init_params
from mmjax.nn.attend import attend
from mmjax.nn.attention import Attention
from mmjax.nn.position import rotate

V, WORDS = 31, np.array([7, 3, 19], np.int32)
SIZE = {"width": 16, "depth": 2, "heads": 2}
LENGTHS = np.array([9, 4, 6])
MASK = np.arange(9)[None] < LENGTHS[:, None]
IDS = np.where(MASK, np.random.default_rng(0).integers(4, V, MASK.shape), 0).astype(np.int32)
KINDS = {
    "gpt2": {},
    "llama": {"positions": "rotary", "kv_heads": 1, "norm": "rmsnorm", "tied": False},
    "sincos": {"positions": "sincos"},
    "captioner": {"context": ("image",)},
}
PIXELS = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)


@functools.cache
def writer(kind):
    """A decoder, its parameters, and those with a prefix that is the cache of three words."""
    own = {"context": (), **KINDS[kind]}
    model = Multimodal(
        encoders={"image": ViT(image_size=(8, 8), patch=(4, 4), **SIZE)},
        decoders={"lm": TextDecoder(vocab_size=V, max_length=24, **SIZE, **own)},
    )
    params = init_params(model, jax.random.key(0))
    params = map_with_path(lambda path, x: 6 * x if path.endswith("kernel") else x, params)
    images = {"image": jnp.asarray(PIXELS)} if own["context"] else {}
    ours = adapted(model, params, {"decoders_lm/*": Prefix(n=3)}, jax.random.key(1))
    if not images:  # keys of words that have seen an image differ from example to example
        ones, places = jnp.ones((1, 3), bool), jnp.arange(3)[None]
        _, cache = model.apply({"params": params}, "lm", jnp.asarray(WORDS)[None], ones, places, None, method="begin")
        keys, values = (x[:, 0].swapaxes(1, 2) for x in cache["attention"])
        k = ours["decoders_lm"]["stack"]["layers"]["attention"]["k"]
        assert k["prefix_keys"].shape == keys.shape == (2, 3, own.get("kv_heads") or 2, 8)
        k |= {"prefix_keys": keys, "prefix_values": values}
    return model, params, ours, images


@pytest.mark.parametrize("kind", ["gpt2", "llama", "sincos"])
def test_a_prefix_of_what_words_left_in_the_cache_is_those_words(kind):
    model, params, own, _ = writer(kind)
    batch = {"text": jnp.asarray(IDS), "text_mask": jnp.asarray(MASK)}
    whole = np.concatenate([np.broadcast_to(WORDS, (3, 3)), IDS], axis=1)
    hand = {"text": jnp.asarray(whole), "text_mask": jnp.asarray(np.pad(MASK, ((0, 0), (3, 0)), constant_values=True))}
    ours, theirs = (np.asarray(BoundForward(model, p, {}).decode("lm", b)) for p, b in ((own, batch), (params, hand)))
    assert ours.shape == (3, 9, V)
    np.testing.assert_allclose(ours[MASK], theirs[:, 3:][MASK], atol=2e-4)


@pytest.mark.parametrize("given", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "sincos"])
def test_what_is_written_after_a_prefix_is_what_is_written_after_those_words(kind, given):
    model, params, own, _ = writer(kind)
    rules = Rules(settings_of({"max_new_tokens": 6, **given}), (2,), 0)
    write = jax.jit(functools.partial(decode, model, decoder="lm", rules=rules))
    ids, mask = IDS[:, ::-1], MASK[:, ::-1]
    found = write(own, batch={}, ids_BT=jnp.asarray(ids), mask_BT=jnp.asarray(mask))
    each = given.get("num_return_sequences", 1)
    for n, length in enumerate(LENGTHS):
        row = np.concatenate([WORDS, ids[n, 9 - length :]])[None].astype(np.int32)
        wanted = write(params, batch={}, ids_BT=jnp.asarray(row), mask_BT=jnp.ones(row.shape, bool))
        np.testing.assert_array_equal(found.ids[n * each : (n + 1) * each], wanted.ids)
        np.testing.assert_allclose(found.scores[n * each : (n + 1) * each], wanted.scores, rtol=1e-4)


def test_a_captioner_with_a_prefix_writes_what_its_forward_pass_finds_likeliest():
    model, _, own, images = writer("captioner")
    ids, mask = IDS[:, ::-1], MASK[:, ::-1]
    rules = Rules(settings_of({"max_new_tokens": 5}), (), 0)
    write = jax.jit(functools.partial(decode, model, decoder="lm", rules=rules))
    found = np.asarray(write(own, batch=images, ids_BT=jnp.asarray(ids), mask_BT=jnp.asarray(mask)).ids)
    for n, length in enumerate(LENGTHS):
        row = np.concatenate([ids[n, 9 - length :], found[n]])[None].astype(np.int32)
        forward = BoundForward(model, own, {"image": images["image"][n : n + 1]})
        logits = forward.decode("lm", {"text": jnp.asarray(row)}, {"image": forward.tokens("image")})
        np.testing.assert_array_equal(np.asarray(logits)[0, -6:-1].argmax(-1), found[n])


@pytest.mark.parametrize("kind", ["plain", "fused", "splash"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_reads_a_prefix_as_keys_that_nothing_hides_or_turns(kind, causal):
    """Beside the one attention function on keys put together by hand, two heads of keys for four of queries."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(2, 7, 32)), jnp.float32)
    mask = jnp.asarray(np.arange(7)[None] < np.array([[7], [4]]))
    places = jnp.broadcast_to(jnp.arange(3, 10, dtype=jnp.int32)[None], (2, 7))
    module = Attention(4, 64, kv_heads=2, causal=causal, rotary=True, kind=kind)
    params = module.init(jax.random.key(0), x, mask, None, places)["params"]
    keys, values = (jnp.asarray(rng.normal(size=(3, 2, 64)), jnp.float32) for _ in range(2))
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, params[name]["kernel"]) for name in "qkv")
    joined = [
        jnp.concatenate([jnp.broadcast_to(a[None], (2, 3, 2, 64)), b], axis=1)
        for a, b in ((keys, rotate(k, places)), (values, v))
    ]
    seen = jnp.pad(mask, ((0, 0), (3, 0)), constant_values=True)
    mixed = attend(rotate(q, places), *joined, seen, causal=causal, kind="plain")
    wanted = jnp.einsum("bthk,hkd->btd", mixed, params["out"]["kernel"])
    params["k"] |= {"prefix_keys": keys, "prefix_values": values}
    np.testing.assert_allclose(module.apply({"params": params}, x, mask, None, places), wanted, atol=2e-5)


def test_every_self_attention_of_layers_can_have_one_and_no_other():
    model = Multimodal(
        encoders={"image": ViT(image_size=(8, 8), patch=(4, 4), **SIZE), "text": TextTransformer(vocab_size=V, **SIZE)},
        fusions={"cross": Cross(**SIZE), "both": Cross(both=True, **SIZE)},
    )
    found = {path.rpartition("/k/")[0] for path in trained_patterns(model, {"*": Prefix(n=2)})}
    assert found == {
        "encoders_image/stack/layers/attention",
        "encoders_text/stack/layers/attention",
        "fusions_cross/stack/layers/attention",
        "fusions_both/stack/layers/first/attention",
        "fusions_both/stack/layers/second/attention",
    }
    params = init_params(model, jax.random.key(0))
    own = adapted(model, params, {"*": Prefix(n=2, deviation=1.0)}, jax.random.key(1))
    assert all((np.asarray(a) == b).all() for a, b in zip(*map(jax.tree.leaves, (base_of(own), params)), strict=True))
    batch = {"image": jnp.asarray(PIXELS), "text": jnp.asarray(IDS), "text_mask": jnp.asarray(MASK)}
    for name in ("image", "text", "cross", "both"):
        before, after = (BoundForward(model, p, batch).tokens(name) for p in (params, own))
        assert after.embeddings.shape == before.embeddings.shape and after.virtual == ()
        assert np.abs(np.asarray(after.embeddings - before.embeddings)).max() > 1e-2, name
    with pytest.raises(UserError, match="prefix_keys: what a prefix adds has no place in"):
        merged(model, own)


def test_a_text_has_to_leave_room_for_the_prefix_and_its_prompt():
    model = Multimodal(encoders={"text": TextTransformer(vocab_size=V, max_length=12, **SIZE)})
    adapt = {"encoders_text/*": Prefix(n=2), "encoders_text/words/*": Prompt(n=2)}
    own = adapted(model, init_params(model, jax.random.key(0)), adapt, jax.random.key(1))
    given = BoundForward(model, own, {"text": IDS[:, :8]}).encode("text")
    assert given.virtual == (0, 1) and np.asarray(given.positions)[0].tolist() == list(range(2, 12))
    with pytest.raises(UserError, match=r"a text of 9 tokens and 4 virtual ones .* use texts of at most 8"):
        BoundForward(model, own, {"text": IDS}).encode("text")


def test_what_it_begins_with():
    model = writer("llama")[0]
    params = init_params(model, jax.random.key(0))

    def begun(**fields):
        own = leaves_by_path(adapted(model, params, {"decoders_lm/*": Prefix(**fields)}, jax.random.key(1)))
        return [np.asarray(own[f"decoders_lm/stack/layers/attention/k/prefix_{name}"]) for name in ("keys", "values")]

    keys, values = begun(n=500, deviation=0.5)
    assert keys.shape == values.shape == (2, 500, 1, 8) and (keys != values).all()
    assert keys.std() == pytest.approx(0.5, rel=0.03) and values.std() == pytest.approx(0.5, rel=0.03)
    assert not any(x.any() for x in begun(deviation=0.0))


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ({"decoders_lm/*/attention/v/*": Prefix()}, "matches no kernel that Prefix could be given"),
        ({"*/cross_attention/k/kernel": Prefix()}, "matches no kernel that Prefix could be given"),
        ({"decoders_lm/*[1:]": Prefix()}, "Prefix of some layers of decoders_lm/stack/layers/attention/k/kernel"),
        ({"all-linear": Prefix()}, "'all-linear' names kernels, which Prefix does not change: name a tower"),
        ({"decoders_lm/*": Prefix(), "*": Prefix(n=2)}, "a prefix takes one method"),
    ],
)
def test_what_cannot_have_one_is_one_line(adapt, said):
    with pytest.raises(UserError) as error:
        trained_patterns(writer("captioner")[0], adapt)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert trained_patterns(writer("captioner")[0], {"all-linear": LoRA(), "decoders_lm/*": Prefix()})


@pytest.mark.parametrize(("fields", "said"), [({"n": 0}, "Prefix.n=0"), ({"deviation": -1.0}, "Prefix.deviation=-1.0")])
def test_fields_out_of_range_are_one_line(fields, said):
    with pytest.raises(UserError, match=said):
        Prefix(**fields)
