"""DeiT beside HuggingFace's."""

from math import prod

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from parity import (
    assert_close,
    check_gradient,
    check_honoured,
    check_inert,
    check_table,
    hidden_states,
    honoured_fields,
    inert_fields,
    map_completely,
    randomise,
    round_trip,
    save,
)
from safetensors.torch import save_file
from test_convert_vit import CHANGES, IMAGE, SIZES, base_layer, image, linear, norm, ours_of, theirs_of
from test_convert_vit import IMAGES as OTHER_IMAGES

from mmjax.convert import load

TEACHER = "DeiTForImageClassificationWithTeacher"


def make(name="DeiTModel", **changes):
    return randomise(getattr(hf, name)(hf.DeiTConfig(**{**SIZES, **changes})))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DeiTModel", {"qkv_bias": False}),
        ("DeiTForImageClassification", {"num_labels": 5}),
        (TEACHER, {"num_labels": 5}),
        (TEACHER, {"num_labels": 0, "image_size": [12, 20]}),
    ],
)
def test_outputs_and_bits(name, changes, tmp_path):
    theirs = make(name, **changes)
    model, params = round_trip(theirs, tmp_path)
    pixels = image(*changes.get("image_size", (12, 12)))
    assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))


@pytest.mark.parametrize("size", [(28, 16), (4, 8)])
def test_positions_are_interpolated_but_for_the_first_two(size, tmp_path):
    theirs = make(TEACHER)
    model, params = load(save(theirs, tmp_path / "hf"))
    pixels = image(*size)
    assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))


def test_layer_by_layer(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    out = theirs(torch.tensor(IMAGE.transpose(0, 3, 1, 2)), output_hidden_states=True)
    for layer, state in zip(out.hidden_states[1:], hidden_states(model, params, "encode", "image", IMAGE), strict=True):
        assert_close(state, layer)


def test_gradient(tmp_path):
    theirs = make(TEACHER)
    model, params = load(save(theirs, tmp_path / "hf"))
    check_gradient(theirs, theirs_of(theirs).square().sum(), model, params, lambda p: jnp.square(ours_of(model, p)).sum())


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    """All but the tokens is ViT's, and so are its tests of each field."""
    check_table("deit", hf.DeiTConfig())
    assert (honoured_fields("deit"), inert_fields("deit")) == (honoured_fields("vit"), inert_fields("vit"))
    build = lambda changes: make(**changes)  # noqa: E731
    numpy = lambda x: np.asarray(x.detach())  # noqa: E731
    changes = {"layer_norm_eps": CHANGES["layer_norm_eps"], "pooler_act": "gelu", "pooler_output_size": 10}
    check_honoured(build, lambda m: numpy(theirs_of(m)), lambda m, p: np.asarray(ours_of(m, p)), changes, tmp_path)
    check_inert(build, lambda m: numpy(theirs_of(m)), {"encoder_stride": 4})


@pytest.mark.parametrize(("field", "pixels"), [("image_size", image(8, 8)), ("num_channels", image(channels=1))])
def test_other_images(field, pixels, tmp_path):
    theirs = make(**{field: OTHER_IMAGES[field]})
    model, params = load(save(theirs, tmp_path / "hf"))
    assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))


def test_names_in_memory_are_known(tmp_path):
    theirs = make(TEACHER)
    folder = save(theirs, tmp_path / "hf")
    save_file(theirs.state_dict(), folder / "model.safetensors")
    assert_close(ours_of(*load(folder)), theirs_of(theirs))


def test_the_public_checkpoint_maps_completely():
    """facebook/deit-base-distilled-patch16-224, with the config.json it has."""
    listed = {
        "deit.embeddings.cls_token": (1, 1, 768),
        "deit.embeddings.distillation_token": (1, 1, 768),
        "deit.embeddings.position_embeddings": (1, 198, 768),
        **linear("deit.embeddings.patch_embeddings.projection", 768, (3, 16, 16)),
        **{f"deit.encoder.layer.{n}.{name}": shape for n in range(12) for name, shape in base_layer().items()},
        **norm("deit.layernorm", 768),
        **linear("cls_classifier", 1000, 768),
        **linear("distillation_classifier", 1000, 768),
    }
    assert sum(map(prod, listed.values())) == 87_338_192
    config = {
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 768,
        "id2label": {str(n): f"label {n}" for n in range(1000)},
        "image_size": 224,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "num_hidden_layers": 12,
        "patch_size": 16,
    }
    map_completely("deit", TEACHER, config, listed)
