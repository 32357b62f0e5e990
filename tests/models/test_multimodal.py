import dataclasses
import functools

import jax
import numpy as np
import pytest

from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Tokens
from mmjax.models import Multimodal, init_params, param_shapes
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier, TokenClassifier

SIZE = {"width": 8, "depth": 2, "heads": 2}
TEXT = {"vocab_size": 11, "max_length": 6, **SIZE}
HEADS = {"match": Classifier(input="cross", pool="cls"), "words": TokenClassifier(classes=11, tied_to="text")}


def model(fusions=None, **fields):
    parts = {
        "encoders": {"image": ViT(image_size=(4, 4), patch=(2, 2), **SIZE), "text": TextTransformer(**TEXT)},
        "fusions": fusions or {"cross": Cross(**SIZE), "dual": Dual(width=8)},
        "decoders": {"caption": TextDecoder(**TEXT)},
        "heads": HEADS,
    }
    return Multimodal(**(parts | fields))


def initialised(model):
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles ten times faster than the default
    return jax.jit(functools.partial(init_params, model))(key)


def test_parameters_are_plain_float32_and_named_after_the_model():
    params = param_shapes(model())
    assert type(params) is dict
    assert set(params) == {
        "encoders_image",
        "encoders_text",
        "fusions_cross",
        "fusions_dual",
        "decoders_caption",
        "heads_match",
        "heads_words",
    }
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    paths = leaves_by_path(params)
    assert paths["encoders_image/stack/layers/attention/q/kernel"].shape == (2, 8, 2, 4)
    assert paths["decoders_caption/stack/layers/cross_attention/out/kernel"].shape == (2, 2, 4, 8)
    assert paths["heads_words/tied_bias"].shape == (11,)


def test_the_word_table_learns_through_the_output_that_is_tied_to_it():
    """The logits of token t grow with row v of the table by the token itself, as those of a matrix of its own would."""
    words = Multimodal(
        encoders={"text": TextTransformer(**TEXT | {"depth": 0})},
        heads={"words": TokenClassifier(classes=11, tied_to="text", transform=False)},
    )
    tokens = Tokens(np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32), np.ones((1, 3), bool))

    def logit(params):
        return words.apply({"params": params}, "words", tokens, method="head")[0, 1, 4]

    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), param_shapes(words))
    slope = jax.grad(logit)(zeros)["encoders_text"]["words"]["table"]
    np.testing.assert_array_equal(slope, np.eye(11, dtype=np.float32)[4][:, None] * tokens.embeddings[0, 1])


def test_parameters_depend_on_the_model_alone():
    def small(**heads):
        return Multimodal(encoders={"text": TextTransformer(**TEXT)}, heads={"words": HEADS["words"], **heads})

    params = initialised(small())
    assert param_shapes(small()) == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    more = leaves_by_path(initialised(small(digit=Classifier(classes=10, input="text"))))
    for path, x in leaves_by_path(params).items():
        np.testing.assert_array_equal(more.pop(path), x, err_msg=path)
    assert set(more) == {"heads_digit/logits/kernel", "heads_digit/logits/bias"}
    layers = np.asarray(params["encoders_text"]["stack"]["layers"]["mlp"]["up"]["kernel"])
    assert not np.allclose(layers[0], layers[1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"heads": {"match": Classifier(input="corss")}},
            r"model.heads.match.input: there is no 'corss' \(did you mean 'cross'\?\)",
        ),
        (
            {"heads": {"words": TokenClassifier(tied_to="txet")}},
            r"model.heads.words.tied_to: there is no 'txet' \(did you mean 'text'\?\)",
        ),
        (
            {"fusions": {"cross": Cross(context="imgae")}},
            r"model.fusions.cross: there is no 'imgae' \(did you mean 'image'\?\)",
        ),
        (
            {"decoders": {"caption": TextDecoder(context=("imag",), **TEXT)}},
            r"model.decoders.caption.context: there is no 'imag' \(did you mean 'image'\?\); it has image, text",
        ),
    ],
)
def test_misspelt_references_name_the_nearest(fields, said):
    with pytest.raises(UserError, match=said) as error:
        param_shapes(model(**fields))
    assert "\n" not in str(error.value)


def test_a_modality_may_run_through_another_fusions_layers_before_it_is_embedded():
    through = {"cross": Cross(**SIZE), "dual": Dual(width=8, through={"text": "cross"})}
    reordered = {name: through[name] for name in ("dual", "cross")}
    assert param_shapes(model(fusions=through)) == param_shapes(model(fusions=reordered)) == param_shapes(model())

    draw = np.random.default_rng(0).normal
    params = {"params": jax.tree.map(lambda x: draw(size=x.shape).astype(np.float32) * 0.3, param_shapes(model()))}

    def run(tokens):
        plain, routed = model(), model(fusions=through)
        read = plain.apply(params, "cross", {"text": tokens}, method="fuse")
        first_read = plain.apply(params, "dual", "text", read, method="embed")
        return [m.apply(params, "dual", "text", tokens, method="embed") for m in (plain, routed)] + [first_read]

    text = Tokens(draw(size=(1, 3, 8)).astype(np.float32), np.ones((1, 3), bool))
    plain, routed, first_read = jax.jit(run)(text)
    np.testing.assert_allclose(routed, first_read, rtol=1e-5, atol=1e-6)
    assert not np.allclose(plain, first_read)


@pytest.mark.parametrize(
    ("method", "args", "said"),
    [
        ("encode", ("txt", None), "model.encoders: there is no 'txt' .did you mean 'text'"),
        ("fuse", ("crss", {}), "model.fusions: there is no 'crss' .did you mean 'cross'"),
        ("decode", ("captoin", {}, None), "model.decoders: there is no 'captoin' .did you mean 'caption'"),
        ("head", ("mach", None), "model.heads: there is no 'mach' .did you mean 'match'"),
        ("scalar", ("daul", "scale"), "model.fusions: there is no 'daul' .did you mean 'dual'"),
    ],
)
def test_misspelt_parts_name_the_nearest(method, args, said):
    with pytest.raises(UserError, match=said):
        model().apply({"params": {}}, *args, method=method)


def test_a_model_may_be_one_encoder():
    alone = Multimodal(encoders={"text": TextTransformer(**TEXT)})
    assert set(param_shapes(alone)) == {"encoders_text"}
    assert {f.name for f in dataclasses.fields(alone)} >= {"encoders", "fusions", "decoders", "heads", "augment", "dtype"}


def test_a_decoder_may_read_a_fusion():
    wide = {**SIZE, "width": 12}
    reader = model({"cross": Cross(**wide)}, decoders={"answer": TextDecoder(context=("cross",), **TEXT)}, heads={})
    keys = param_shapes(reader)["decoders_answer"]["stack"]["layers"]["cross_attention"]["k"]["kernel"]
    assert keys.shape == (2, 12, 2, 4)
    with pytest.raises(UserError, match=r"model.decoders.caption.context: there is no 'corss' .did you mean 'cross'"):
        param_shapes(model(decoders={"caption": TextDecoder(context=("corss",), **TEXT)}))


def test_a_language_model_has_no_encoder():
    alone = Multimodal(encoders={}, decoders={"caption": TextDecoder(context=(), **TEXT)})
    params = param_shapes(alone)
    assert set(params) == {"decoders_caption"}
    assert "cross_attention" not in params["decoders_caption"]["stack"]["layers"]
    ids = np.array([[3, 1, 4, 0]], np.int32)
    decode = functools.partial(alone.apply, method="decode")
    assert jax.eval_shape(lambda p: decode({"params": p}, "caption", {"": ids, "mask": ids > 0}, None), params).shape == (
        1,
        4,
        11,
    )
    assert from_json(to_json(alone)) == alone
