"""Rows of several texts: every loss that can be had of them is that of the texts one by one, and no other is had silently."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.packed import packed_places
from mmjax.core.random import example_uniform, packed_uniform
from mmjax.core.types import Tokens
from mmjax.models.decoders.text import TextDecoder
from mmjax.models.encoders.text import TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.fusion.dual import Dual
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.models.multimodal import Multimodal, init_params
from mmjax.objectives import CausalLM, Classification, MaskedLM
from mmjax.parallel.mesh import Mesh, use_mesh

pytestmark = pytest.mark.usefixtures("quick_compiles")

LENGTHS = np.array([[3, 5, 0], [8, 0, 0], [2, 2, 4], [1, 6, 0]], np.int32)
B, S = LENGTHS.shape
T, V = 10, 20
SETTINGS = {"vocab_size": V, "width": 16, "depth": 2, "heads": 2, "max_length": 8}
KINDS = {
    "learned": {"position_offset": 2},
    "rotary": {"positions": "rotary", "norm": "rmsnorm", "max_length": 6},
    "sincos": {"positions": "sincos", "segments": 2, "max_length": 6},
}


def rows_and_texts():
    """A batch of packed rows, and one of their texts each in a row of its own, numbered r S + n."""
    rng = np.random.default_rng(0)
    alone = {"text": np.zeros((B * S, 8), np.int32), "text_mask": np.zeros((B * S, 8), bool)}
    packed = {"text": np.zeros((B, T), np.int32), "text_mask": np.zeros((B, T), bool)}
    more = {"text_segments": 0, "tags": -1}
    for key, fill in more.items():
        alone[key], packed[key] = np.full((B * S, 8), fill, np.int32), np.full((B, T), fill, np.int32)
    for row, own in enumerate(LENGTHS):
        ends = np.cumsum(own)
        for n, (end, length) in enumerate(zip(ends, own, strict=True)):
            drawn = {"text": rng.integers(4, V, length), "text_mask": np.ones(length, bool)}
            drawn |= {"text_segments": np.arange(length) % 2, "tags": rng.integers(-1, 3, length)}
            for key, values in drawn.items():
                alone[key][row * S + n, :length] = values
                packed[key][row, end - length : end] = values
    alone["index"], packed["index"] = np.arange(B * S, dtype=np.int32), np.arange(B, dtype=np.int32)
    packed["text_lengths"] = LENGTHS
    return jax.tree.map(jnp.asarray, packed), jax.tree.map(jnp.asarray, alone)


def a_model(**settings):
    return Multimodal(
        encoders={"text": TextTransformer(**SETTINGS | settings)},
        decoders={"lm": TextDecoder(**SETTINGS | settings, context=())},
        heads={"masked_lm": TokenClassifier(V, tied_to="text"), "tags": TokenClassifier(3), "classes": Classifier(3, "text")},
        dtype="float32",
    )


OBJECTIVES = {
    "causal": CausalLM("lm"),
    "masked": MaskedLM(vocab_size=V, mask_id=3, special_ids=(0,), mask_probability=0.5),
    "masked, some": MaskedLM(vocab_size=V, mask_id=3, mask_probability=0.3, max_predictions=8),
    "tags": Classification("tags", label="tags"),
}


def losses(model, params, batch, names):
    """The sum of some losses, and each of them."""
    found = {}
    for name in names:
        own = batch if name == "tags" else {key: x for key, x in batch.items() if key != "tags"}
        found[name] = OBJECTIVES[name](BoundForward(model, params, own), own, jax.random.key(1))
    return sum(loss.sum for loss in found.values()), found


def test_places_of_texts_in_a_row():
    text_BT, place_BT = packed_places(jnp.asarray(LENGTHS), T)
    assert text_BT[2].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, -1, -1] and place_BT[2].tolist() == [0, 1, 0, 1, 0, 1, 2, 3, 0, 0]
    assert text_BT[1].tolist() == [0] * 8 + [-1, -1] and place_BT[3].tolist() == [0, *range(6), 0, 0, 0]


def test_a_text_draws_as_it_does_alone():
    key = jax.random.key(5)
    drawn = packed_uniform(key, jnp.arange(B), jnp.asarray(LENGTHS), T)
    alone = example_uniform(key, jnp.arange(B * S), (8,))
    for row, own in enumerate(LENGTHS):
        want = np.concatenate([alone[row * S + n, :length] for n, length in enumerate(own)])
        assert np.array_equal(drawn[row, : len(want)], want) and (drawn[row, len(want) :] == 1).all()


def compared(kind, run, names):
    packed, alone = rows_and_texts()
    model = a_model(**KINDS[kind])
    params = init_params(model, jax.random.key(0))
    if "segments" not in KINDS[kind]:
        packed.pop("text_segments"), alone.pop("text_segments")
    return [jax.jit(lambda p: run(lambda own: losses(model, own, batch, names), p))(params) for batch in (packed, alone)]  # noqa: B023


@pytest.mark.parametrize("kind", ["rotary", "sincos"])  # whose models have a max_length of 6, and texts of up to 8
def test_losses_are_those_of_the_texts_alone(kind):
    (_, own), (_, theirs) = compared(kind, lambda total, p: total(p), ("causal", "masked"))
    for name in own:
        assert own[name].count == theirs[name].count > 0, name
        np.testing.assert_allclose(own[name].sum, theirs[name].sum, rtol=1e-5, err_msg=name)


def test_losses_and_gradients_are_those_of_the_texts_alone():
    ((_, own), gradient), ((_, theirs), wanted) = compared(
        "learned", lambda total, p: jax.value_and_grad(total, has_aux=True)(p), tuple(OBJECTIVES)
    )
    for name in OBJECTIVES:  # of "masked, some" so few are drawn that the limit of a row binds in neither
        assert own[name].count == theirs[name].count > 0, name
        np.testing.assert_allclose(own[name].sum, theirs[name].sum, rtol=1e-5, err_msg=name)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale), gradient, wanted)


def test_the_same_over_devices():
    packed, _ = rows_and_texts()
    model = a_model(positions="rotary")
    params = init_params(model, jax.random.key(0))
    packed.pop("text_segments")
    alone = jax.jit(lambda p: losses(model, p, packed, ("causal",))[0])(params)
    with use_mesh(Mesh(data=2, sequence=2, tensor=2).build()):
        split = jax.jit(lambda p: losses(model, p, packed, ("causal",))[0])(params)
    np.testing.assert_allclose(split, alone, rtol=1e-5)


def refused(model, run):
    packed, _ = rows_and_texts()
    packed.pop("text_segments")
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    with pytest.raises(UserError) as caught:
        jax.eval_shape(lambda p: run(BoundForward(model, p, packed), packed), params)
    return str(caught.value)


def test_whoever_takes_a_row_for_a_text_is_refused():
    model = a_model()
    assert "pooling takes a row for one text" in refused(model, lambda forward, batch: forward.head("classes"))
    dual = dataclasses.replace(model, fusions={"dual": Dual(width=8, pool={"text": "mean"}, project=("text",))})
    assert "takes a row for one text" in refused(dual, lambda forward, batch: forward.embed("text"))
    no_mask = a_model(mask_padding=False)
    assert "mask_padding=False reads padding as words" in refused(no_mask, lambda forward, batch: forward.encode("text"))
    few = MaskedLM(vocab_size=V, mask_id=3, mask_probability=0.5, max_predictions=4)
    said = refused(model, lambda forward, batch: few(forward, batch, jax.random.key(0)))
    assert "max_predictions=4: rows that texts are packed into have 10 tokens, of which 5 are chosen" in said


def test_a_text_without_its_lengths_is_refused():
    said = refused(a_model(), lambda forward, batch: forward.decode("lm", {k: batch[k] for k in ("text", "text_mask")}))
    assert "the rows of 'text' hold several texts each: give 'text_lengths' with them" in said


class Plain(TextTransformer):
    def __call__(self, ids_BT, mask=None) -> Tokens:
        return self.read(ids_BT, mask)


def test_an_encoder_that_knows_no_lengths_is_refused():
    model = dataclasses.replace(a_model(), encoders={"text": Plain(**SETTINGS)})
    said = refused(model, lambda forward, batch: forward.encode("text"))
    assert said == "model.encoders.text: Plain reads one text a row, and data.packing puts several into one"


def test_a_context_belongs_to_one_text():
    model = dataclasses.replace(a_model(), decoders={"lm": TextDecoder(**SETTINGS, context=("text",))})

    def run(forward, batch):
        context = {"text": Tokens(jnp.zeros((B, 4, 16)), jnp.ones((B, 4), bool))}
        inputs = {key: batch[key] for key in ("text", "text_mask", "text_lengths")}
        return forward.decode("lm", inputs, context)

    assert "the context text belongs to one example" in refused(model, run)
