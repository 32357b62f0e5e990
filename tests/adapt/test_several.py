"""Several adapters over one base: their mean, and rows of one batch by adapters of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.adapt import IA3, Bottleneck, LoRA, Prompt, adapted, is_adapter, merged
from mmjax.adapt.several import mean_of, stacked_of
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, nested
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.models.multimodal import init_params

SIZES = {"vocab_size": 20, "max_length": 8, "width": 16, "heads": 2, "depth": 2, "mlp_width": 32}
MODEL = Multimodal(encoders={"text": TextTransformer(**SIZES)}, heads={"classes": Classifier(classes=3, input="text")})
BATCH = {
    "text": np.random.default_rng(0).integers(0, 20, (4, 6)).astype(np.int32),
    "text_mask": np.ones((4, 6), bool),
    "index": np.arange(4, dtype=np.int32),
}


def drawn(seed, **adapt):
    """(the base, what an adapter with random leaves has of its own)."""
    base = init_params(MODEL, jax.random.key(0))
    leaves = leaves_by_path(adapted(MODEL, base, {f"encoders_text/*{k}": v for k, v in adapt.items()}, jax.random.key(seed)))
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    own = {
        path: x + 0.3 * jax.random.normal(next(keys), x.shape)
        if path.endswith(("lora_a", "lora_b", "ia3_out", "ia3_in"))
        else x
        for path, x in leaves.items()
        if is_adapter(path)
    }
    own["heads_classes/logits/bias"] = jax.random.normal(next(keys), (3,))
    return leaves_by_path(base), own


def logits(leaves, batch=BATCH):
    return np.asarray(BoundForward(MODEL, nested(leaves), batch).head("classes"))


LORA = {"/attention/[qv]/kernel": LoRA(r=2, alpha=4), "/mlp/up/kernel[1:]": LoRA(r=3)}
OTHER = {"/attention/[qk]/kernel": LoRA(r=4, rslora=True), "words/table": LoRA(r=2)}
PISSA = {"/attention/q/kernel": LoRA(r=2, init="pissa")}
SCALED = {"/mlp/down/kernel": IA3(side="input"), "/attention/k/kernel": IA3()}


@pytest.mark.parametrize("second", [OTHER, PISSA, SCALED], ids=["ranks", "pissa", "ia3"])
def test_a_mean_changes_every_kernel_by_the_mean_of_the_changes(second):
    base, one = drawn(1, **LORA)
    two = drawn(2, **second)[1]
    mean = mean_of(base, [one, two], [0.25, 0.75])
    first, other = (leaves_by_path(merged(MODEL, nested({**base, **own}))) for own in (one, two))
    expected = {path: 0.25 * first[path] + 0.75 * other[path] for path in base}
    found = leaves_by_path(merged(MODEL, nested({**base, **mean})))
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("second", [OTHER, SCALED], ids=["ranks", "ia3"])
def test_each_row_has_its_own(second):
    base, one = drawn(1, **LORA)
    adapters = [one, drawn(2, **second)[1]]
    stacked = stacked_of(base, adapters)
    which = jnp.array([0, 1, 1, 0])

    def row(own, inputs):
        return BoundForward(MODEL, nested({**base, **own}), {k: v[None] for k, v in inputs.items()}).head("classes")[0]

    found = jax.vmap(row)({path: x[which] for path, x in stacked.items()}, BATCH)
    whole = [logits({**base, **own}) for own in adapters]
    assert np.abs(whole[0] - whole[1]).max() > 0.1
    np.testing.assert_allclose(found, [whole[n][i] for i, n in enumerate(which.tolist())], atol=3e-6)


def test_what_has_no_mean_or_does_not_fit_is_named():
    base, one = drawn(1, **LORA)
    whole = drawn(2, **{"/attention/q/kernel": LoRA(r=2, dora=True)})[1]
    prompted = drawn(3, **{"words/table": Prompt(n=2)})[1]
    with pytest.raises(UserError, match="dora_magnitude: there is no mean of it"):
        mean_of(base, [one, whole], [0.5, 0.5])
    with pytest.raises(UserError, match=r"prompt_.*: there is no mean of it"):
        mean_of(base, [prompted, one], [0.5, 0.5])
    factors = drawn(4, **{"/attention/v/kernel": IA3()})[1]
    with pytest.raises(UserError, match=r"attention/v/.*: there is no mean of it"):
        mean_of(base, [one, factors], [0.5, 0.5])
    with pytest.raises(UserError, match="one of the adapters has it and another has not"):
        stacked_of(base, [one, whole])
    with pytest.raises(UserError, match=r"heads_classes/logits/bias is \(3,\) and \(5,\)"):
        stacked_of(base, [one, {**one, "heads_classes/logits/bias": jnp.zeros(5)}])


def test_bottlenecks_of_several_widths_are_rows_and_have_no_mean():
    base, one = drawn(1, **{"/mlp/*": Bottleneck(r=2)})
    two = drawn(2, **{"/mlp/*": Bottleneck(r=5), "/attention/q/kernel": LoRA(r=2)})[1]
    keys = iter(jax.random.split(jax.random.key(3), 99))
    moved = [
        {k: jax.random.normal(next(keys), x.shape) if "bottleneck_" in k and "kind" not in k else x for k, x in own.items()}
        for own in (one, two)
    ]
    adapters, which = [*moved, drawn(3, **LORA)[1]], jnp.array([0, 1, 2, 1])
    stacked = stacked_of(base, adapters)

    def row(own, inputs):
        return BoundForward(MODEL, nested({**base, **own}), {k: v[None] for k, v in inputs.items()}).head("classes")[0]

    found = jax.vmap(row)({path: x[which] for path, x in stacked.items()}, BATCH)
    whole = [logits({**base, **own}) for own in adapters]
    np.testing.assert_allclose(found, [whole[n][i] for i, n in enumerate(which.tolist())], atol=1e-5)
    with pytest.raises(UserError, match=r"bottleneck_.*: there is no mean of it"):
        mean_of(base, [one, two], [0.5, 0.5])
    other = drawn(4, **{"/mlp/*": Bottleneck(r=2, normed=True)})[1]
    with pytest.raises(UserError, match=r"bottleneck_kind is \(2, 1, 1\) and \(2, 1, 2\)"):
        stacked_of(base, [one, other])
