"""What patterns of methods add to a model and train of it; what they cannot is one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.adapt import IA3, METHODS, BitFit, LoRA, Norms, adapted, base_of, is_adapter, merged, trained_patterns
from mmjax.adapt.places import inner, places_of
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, map_with_path
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.models.multimodal import init_params
from mmjax.nn.adapters import TRAINED

IDS = np.arange(20).reshape(2, 10) % 31


def model():
    size = {"width": 16, "depth": 3, "heads": 2}
    return Multimodal(
        encoders={
            "text": TextTransformer(vocab_size=31, max_length=10, **size),
            "image": ViT(image_size=(8, 8), patch=(4, 4), **size),
        },
        decoders={"caption": TextDecoder(vocab_size=31, max_length=10, tied=False, **size)},
        heads={"classes": Classifier(classes=3, input="text", pool="mean")},
    )


@functools.cache
def base():
    return init_params(model(), jax.random.key(0))


@pytest.fixture
def params():
    return base()


def moved(params, seed=1):
    """Adapters somewhere else than where they begin."""
    rng = np.random.default_rng(seed)
    noise = lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype)  # noqa: E731
    return map_with_path(lambda path, x: noise(x) if path.split("/")[-1] in TRAINED else x, params)


def answer(params, key=None):
    return BoundForward(model(), params, {"text": jnp.asarray(IDS)}, rng=key).head("classes")


WAYS = {
    "all-linear": {"all-linear": LoRA(r=4)},
    "padded": {"encoders_text/*/mlp/up/kernel[1:]": LoRA(r=2), "encoders_text/*/mlp/up/kernel[:1]": LoRA(r=5, alpha=3)},
    "some layers": {"encoders_text/*/attention/out/kernel[1:2]": LoRA(r=3)},
    "dora": {"encoders_text/*/attention/*": LoRA(r=3, dora=True)},
    "pissa": {"encoders_text/*": LoRA(r=3, init="pissa", rslora=True)},
    "table": {"encoders_text/words/table": LoRA(r=3), "encoders_text/position/table": LoRA(r=2)},
    "ia3": {"encoders_text/*/attention/[kv]/kernel": IA3(), "encoders_text/*/mlp/down/*": IA3("input")},
    "ia3 of a head": {"heads_classes/logits/kernel": IA3()},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_begins_as_it_was_and_is_merged_as_it_became(way, params):
    begun = adapted(model(), params, WAYS[way], jax.random.key(1))
    np.testing.assert_allclose(answer(begun), answer(params), atol=2e-6)
    became = moved(begun)
    assert np.abs(np.asarray(answer(became)) - np.asarray(answer(params))).max() > 1e-2
    np.testing.assert_allclose(answer(merged(model(), became)), answer(became), atol=5e-6)
    assert not any(map(is_adapter, leaves_by_path(merged(model(), became))))


@pytest.mark.parametrize("way", WAYS)
def test_the_base_is_not_touched(way, params):
    begun = adapted(model(), params, WAYS[way], jax.random.key(1))
    assert jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), base_of(begun), params))
    own = {path for path in leaves_by_path(begun) if not is_adapter(path)}
    assert own == leaves_by_path(params).keys()


def test_a_tied_output_stays_as_the_base_has_it(params):
    """As peft has it: the rows that are read are adapted, those that are written by are not."""
    tied = Multimodal(encoders={}, decoders={"caption": TextDecoder(vocab_size=31, width=16, depth=1, heads=2, context=())})
    before = init_params(tied, jax.random.key(0))
    begun = moved(adapted(tied, before, {"*/words/table": LoRA(r=2)}, jax.random.key(1)))
    own = begun["decoders_caption"]["words"]
    table = own["table"] + own["lora_scale"] * own["lora_a"] @ own["lora_b"]
    whole = {"decoders_caption": {**before["decoders_caption"], "words": {"table": table}}}
    with pytest.raises(UserError, match="decoders_caption/words: the output is tied to this table"):
        merged(tied, begun)
    one, two = (BoundForward(tied, p, {}).decode("caption", {"text": IDS}, None, key="x") for p in (begun, whole))
    assert np.abs(np.asarray(one) - np.asarray(two)).max() > 1e-3


def test_dropout_is_on_in_training_alone(params):
    adapt = {"encoders_text/*/mlp/up/*": LoRA(dropout=0.5), "encoders_text/*/mlp/down/*": LoRA(dora=True, dropout=0.5)}
    became = moved(adapted(model(), params, adapt, jax.random.key(1)))
    assert (np.asarray(answer(became)) == np.asarray(answer(became))).all()
    one, two = (answer(became, jax.random.key(n)) for n in (1, 2))
    assert np.abs(np.asarray(one) - np.asarray(two)).max() > 1e-3


def test_every_pattern_has_its_own_layers_rank_and_scale(params):
    begun = adapted(model(), params, WAYS["padded"], jax.random.key(1))
    own = begun["encoders_text"]["stack"]["layers"]["mlp"]["up"]
    assert own["lora_a"].shape == (3, 16, 5) and own["lora_b"].shape == (3, 5, 64)
    assert own["lora_scale"].tolist() == pytest.approx([3 / 5, 4.0, 4.0])
    assert not own["lora_a"][1:, :, 2:].any() and own["lora_a"][0].any(axis=0).all() and own["lora_a"][1:, :, :2].all()
    assert trained_patterns(model(), WAYS["some layers"]) == tuple(
        f"encoders_text/stack/layers/attention/out/lora_{name}[1:2]" for name in "ab"
    )


@given(r=st.integers(1, 8), first=st.integers(0, 2), seed=st.integers(0, 3))
def test_a_padded_rank_is_that_rank(r, first, seed):
    """Two ranks in one stack give what each gives where it stands."""
    path = "encoders_text/*/mlp/down/kernel"
    one = adapted(model(), base(), {f"{path}[{first}:]": LoRA(r=r)}, jax.random.key(seed))
    own = one["encoders_text"]["stack"]["layers"]["mlp"]["down"]
    assert own["lora_scale"].tolist() == pytest.approx([0.0] * first + [8.0 / r] * (3 - first))
    assert not own["lora_a"][:first].any() and not own["lora_b"].any()


def test_a_key_of_its_own_for_each_kernel_and_none_of_the_others(params):
    whole = adapted(model(), params, {"encoders_text/*": LoRA()}, jax.random.key(1))
    part = adapted(model(), params, {"encoders_text/*/mlp/up/kernel": LoRA()}, jax.random.key(1))
    every = leaves_by_path(whole)
    for path, leaf in leaves_by_path(part).items():
        assert (np.asarray(leaf) == np.asarray(every[path])).all(), path
    up, gate = (np.asarray(every[f"encoders_text/stack/layers/{name}/lora_a"]) for name in ("mlp/up", "attention/q"))
    assert up.shape == gate.shape and not (up == gate).any()


def test_peft_begins_within_the_same_bounds(params):
    """Kaiming's uniform with a = sqrt(5), as `torch.nn.Linear` has it: within 1 / sqrt(in)."""
    a = adapted(model(), params, {"encoders_text/*/mlp/down/kernel": LoRA(r=8)}, jax.random.key(1))
    a = np.asarray(a["encoders_text"]["stack"]["layers"]["mlp"]["down"]["lora_a"])
    assert np.abs(a).max() <= 1 / 8 and np.abs(a).max() > 0.95 / 8 and abs(a.std() * 8 - 3**-0.5) < 0.02


def test_all_linear_leaves_tables_heads_and_outputs_to_words_out():
    found = inner(places_of(model()))
    assert (
        "encoders_image/stack/layers/mlp/up/kernel" in found
        and "decoders_caption/stack/layers/cross_attention/q/kernel" in found
    )
    assert not any(path.startswith("heads_") or path.endswith(("table", "decoders_caption/logits/kernel")) for path in found)


def test_methods_that_train_what_is_there():
    biases = trained_patterns(model(), {"encoders_text/*": BitFit()})
    assert biases and all(path.endswith("/bias") for path in biases)
    norms = trained_patterns(model(), {"encoders_text/*[1:]": Norms()})
    assert norms and all("norm/" in path and path.endswith("[1:]") for path in norms)


def test_every_method_has_a_name_and_says_what_it_does():
    assert {method.__name__.lower() for method in METHODS.values()} == set(METHODS)


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ({"encoder_text/*": LoRA()}, "'encoder_text/*' matches no kernel that LoRA could be given (did you mean"),
        ({"encoders_text/*[5:]": LoRA()}, "'encoders_text/*[5:]' matches no kernel"),
        ({"*/bias": LoRA()}, "'*/bias' matches no kernel that LoRA could be given"),
        ({"encoders_text/*": LoRA(r=17)}, "LoRA.r=17 is above the rank of encoders_text/stack/layers/attention/k/kernel"),
        ({"*/mlp/up/kernel": LoRA(), "encoders_text/*": LoRA(r=2)}, "'*/mlp/up/kernel' (LoRA) and 'encoders_text/*' (LoRA)"),
        ({"*/mlp/up/kernel[:1]": LoRA(), "*/mlp/up/kernel[1:]": IA3()}, "a kernel takes one method"),
        ({"*/mlp/up/kernel[1:]": LoRA(dora=True)}, "LoRA.dora of some layers of"),
        ({"*/mlp/up/kernel[:1]": LoRA(init="pissa"), "*/mlp/up/kernel[1:]": LoRA()}, "differ in dora or in init=pissa"),
        ({"encoders_text/words/table": LoRA(dora=True)}, "LoRA of the table encoders_text/words/table can have no dora"),
        ({"encoders_text/words/table": IA3()}, "IA3 of encoders_text/words/table: a table has no input"),
        ({"*/mlp/up/kernel[:1]": IA3(), "*/mlp/up/kernel[1:]": IA3("input")}, "differ in IA3.side"),
        ({"*/kernel": BitFit()}, "'*/kernel' matches nothing that BitFit trains"),
        ({"heads_*": Norms()}, "'heads_*' matches nothing that Norms trains"),
    ],
)
def test_what_cannot_be_adapted_is_one_line(adapt, said, params):
    with pytest.raises(UserError) as error:
        trained_patterns(model(), adapt)
        adapted(model(), params, adapt, jax.random.key(0))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LoRA(r=0), "LoRA.r=0"),
        (lambda: LoRA(alpha=0), "LoRA.alpha=0"),
        (lambda: LoRA(dropout=1.0), "LoRA.dropout=1.0"),
        (lambda: LoRA(init="svd"), "LoRA.init='svd': use one of uniform, gaussian, pissa"),
        (lambda: IA3("both"), "IA3.side='both': use one of output, input"),
    ],
)
def test_fields_out_of_range_are_one_line(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_layer_that_recomputes_keeps_one_result_of_an_adapted_linear_layer():
    """Base and adapter are summed before they are kept: either alone would be as large again."""
    dots = model().copy(encoders={"text": model().encoders["text"].copy(remat="dots"), "image": model().encoders["image"]})
    params = adapted(dots, base(), {"encoders_text/*/attention/[qv]/kernel": LoRA(r=4)}, jax.random.key(0))

    def kept(params):
        """How many arrays of the size of L results [B, T, D] the forward pass of the tower keeps for the other."""
        trained, frozen = {p: x for p, x in leaves_by_path(params).items() if "lora" in p or "position" in p}, params

        def loss(trained):
            whole = map_with_path(lambda path, x: trained.get(path, x), frozen)
            return jnp.sum(BoundForward(dots, whole, {"text": jnp.asarray(IDS)}).head("classes"))

        return [x.size for x in jax.tree.leaves(jax.vjp(loss, trained)[1])].count(3 * 2 * 10 * 16)

    assert any("lora" in path for path in leaves_by_path(params))
    assert kept(params) == kept(base()) > 3
