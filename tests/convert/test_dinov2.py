"""DINOv2 beside HuggingFace's."""

import json
from math import prod

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from parity import (
    assert_close,
    bound,
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
from test_convert_vit import IMAGE, image, linear, norm, ours_of

from mmjax.convert import load, save_hf
from mmjax.core.errors import UserError

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "mlp_ratio": 2, "image_size": 12, "patch_size": 4}
CLASSES = "Dinov2ForImageClassification"


def make(name=CLASSES, **changes):
    model = randomise(getattr(hf, name)(hf.Dinov2Config(**{**SIZES, **changes})))
    with torch.no_grad():
        for parameter_name, scale in model.named_parameters():
            if parameter_name.endswith("lambda1"):
                scale += 1.0  # near 0 a wrong activation would not show
    return model


def theirs_of(model, pixels=IMAGE):
    out = model(torch.tensor(pixels.transpose(0, 3, 1, 2)))
    return out.logits if "logits" in out else out.pooler_output


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Dinov2Model", {"use_mask_token": False}),
        ("Dinov2Model", {"use_swiglu_ffn": True}),
        (CLASSES, {"num_labels": 5}),
        (CLASSES, {"num_labels": 0, "use_swiglu_ffn": True, "hidden_act": "relu", "mlp_ratio": 3}),
    ],
)
def test_outputs_and_bits(name, changes, tmp_path):
    theirs = make(name, **changes)
    model, params = round_trip(theirs, tmp_path)
    assert_close(ours_of(model, params), theirs_of(theirs))


@pytest.mark.parametrize("size", [(28, 16), (4, 8), (20, 20)])
def test_positions_are_interpolated(size, tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    pixels = image(*size)
    assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))


def test_pairs_make_a_square_grid(tmp_path):
    theirs = make(image_size=[12, 15], patch_size=(4, 5))
    model, params = round_trip(theirs, tmp_path)
    for size in ((12, 15), (8, 25)):
        pixels = image(*size)
        assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))


def test_masked_patches(tmp_path):
    theirs = make("Dinov2Model")
    model, params = load(save(theirs, tmp_path / "hf"))
    masked = np.array([[1, 0, 0, 1, 1, 0, 0, 0, 1], [0] * 8 + [1]], bool)
    out = theirs(torch.tensor(IMAGE.transpose(0, 3, 1, 2)), bool_masked_pos=torch.tensor(masked))
    batch = {"image": IMAGE, "image_segments": masked.astype(np.int32)}
    assert_close(bound(model, params, batch).encode("image").embeddings, out.last_hidden_state)


@pytest.mark.parametrize("gated", [False, True])
def test_layer_by_layer(gated, tmp_path):
    theirs = make("Dinov2Model", use_swiglu_ffn=gated)
    model, params = load(save(theirs, tmp_path / "hf"))
    out = theirs(torch.tensor(IMAGE.transpose(0, 3, 1, 2)), output_hidden_states=True)
    for layer, state in zip(out.hidden_states[1:], hidden_states(model, params, "encode", "image", IMAGE), strict=True):
        assert_close(state, layer)


def test_gradient(tmp_path):
    theirs = make(use_swiglu_ffn=True)
    model, params = load(save(theirs, tmp_path / "hf"))
    check_gradient(theirs, theirs_of(theirs).square().sum(), model, params, lambda p: jnp.square(ours_of(model, p)).sum())


CHANGES = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 3,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-2,
    "image_size": 20,
    "patch_size": 6,
    "qkv_bias": False,
    "use_swiglu_ffn": True,
}
ELSEWHERE = {"num_channels", "use_mask_token", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"}
INERT = {
    "layerscale_value": 0.1,
    "apply_layernorm": False,
    "reshape_hidden_states": False,
    "out_features": ["stage1"],
    "out_indices": [1],
}


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("dinov2", hf.Dinov2Config())
    assert honoured_fields("dinov2") == CHANGES.keys() | ELSEWHERE
    assert inert_fields("dinov2") == INERT.keys() | {"stage_names"}  # names of the layers, made from their number
    build = lambda changes: make(**changes)  # noqa: E731
    numpy = lambda x: np.asarray(x.detach())  # noqa: E731
    apart = {name: CHANGES[name] for name in ("image_size", "use_swiglu_ffn")}  # do not go with patch_size and hidden_act
    for changes in (apart, {name: value for name, value in CHANGES.items() if name not in apart}):
        outputs = lambda m: numpy(theirs_of(m))  # noqa: E731
        check_honoured(build, outputs, lambda m, p: np.asarray(ours_of(m, p)), changes, tmp_path / str(len(changes)))
    check_inert(build, lambda m: numpy(theirs_of(m)), INERT)


def test_fields_tested_by_value(tmp_path):
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.1}
    theirs = make(num_channels=1, use_mask_token=False, **rates)
    model, params = load(save(theirs, tmp_path / "hf"))
    encoder = model.encoders["image"]
    assert (encoder.embed_dropout, encoder.dropout, encoder.attention_dropout, encoder.drop_path) == (0.3, 0.0, 0.2, 0.1)
    assert (encoder.channels, encoder.mask_token) == (1, False)
    pixels = image(channels=1)
    assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))


def test_names_in_memory_are_known(tmp_path):
    theirs = make()
    folder = save(theirs, tmp_path / "hf")
    assert "dinov2.encoder.layer.0.attention.q_proj.weight" in theirs.state_dict()
    save_file(theirs.state_dict(), folder / "model.safetensors")
    assert_close(ours_of(*load(folder)), theirs_of(theirs))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": [12, 48]}, r"image_size=.12, 48. is not supported by dinov2 here: .* found 3 and 12"),
        ({"image_size": 14}, "image_size=14 is not supported here: patch_size=4 must divide it"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        ({"architectures": ["Dinov2Backbone"]}, "architectures='Dinov2Backbone' is not supported for dinov2"),
    ],
)
def test_refusals(change, said, tmp_path):
    folder = save(make(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        load(folder)


def test_another_width_of_the_feed_forward_layer_cannot_be_written(tmp_path):
    model, params = load(save(make(), tmp_path / "hf"))
    wider = model.copy(encoders={"image": model.encoders["image"].copy(mlp_width=50)})
    with pytest.raises(UserError, match=r"model.encoders.image.mlp_width=50 has no place in Dinov2.*, which has 48"):
        save_hf(wider, params, tmp_path / "back")


LAYER = {
    **norm("norm1", 768),
    **{k: v for n in ("query", "key", "value") for k, v in linear(f"attention.attention.{n}", 768, 768).items()},
    **linear("attention.output.dense", 768, 768),
    "layer_scale1.lambda1": (768,),
    **norm("norm2", 768),
    **linear("mlp.fc1", 3072, 768),
    **linear("mlp.fc2", 768, 3072),
    "layer_scale2.lambda1": (768,),
}


def test_the_public_checkpoint_maps_completely():
    """facebook/dinov2-base, with the config.json it has."""
    listed = {
        "embeddings.cls_token": (1, 1, 768),
        "embeddings.mask_token": (1, 768),
        "embeddings.position_embeddings": (1, 1370, 768),
        **linear("embeddings.patch_embeddings.projection", 768, (3, 14, 14)),
        **{f"encoder.layer.{n}.{name}": shape for n in range(12) for name, shape in LAYER.items()},
        **norm("layernorm", 768),
    }
    assert sum(map(prod, listed.values())) == 86_580_480
    config = {
        "apply_layernorm": True,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 768,
        "image_size": 518,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-06,
        "layerscale_value": 1.0,
        "mlp_ratio": 4,
        "num_attention_heads": 12,
        "num_channels": 3,
        "num_hidden_layers": 12,
        "out_features": ["stage12"],
        "out_indices": [12],
        "patch_size": 14,
        "qkv_bias": True,
        "reshape_hidden_states": True,
        "stage_names": ["stem", *[f"stage{n}" for n in range(1, 13)]],
        "torch_dtype": "float32",
        "transformers_version": "4.32.0.dev0",
        "use_swiglu_ffn": False,
    }
    map_completely("dinov2", "Dinov2Model", config, listed)
