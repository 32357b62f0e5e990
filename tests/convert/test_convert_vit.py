"""ViT beside HuggingFace's."""

import json
from math import prod

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
    compiled,
    hidden_states,
    honoured_fields,
    inert_fields,
    map_completely,
    randomise,
    round_trip,
    save,
)
from safetensors.torch import save_file

from mmjax.convert import load
from mmjax.core.errors import UserError

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 12,
    "patch_size": 4,
}
RNG = np.random.default_rng(0)


def image(height=12, width=12, channels=3):
    """Pixels [B, H, W, channels]."""
    return RNG.normal(size=(2, height, width, channels)).astype(np.float32)


IMAGE = image()


def make(name="ViTModel", **changes):
    return randomise(getattr(hf, name)(hf.ViTConfig(**{**SIZES, **changes})))


def theirs_of(model, pixels=IMAGE):
    """Pooled vectors or logits; positions are interpolated where the image has another size."""
    size = model.config.image_size
    other = tuple(pixels.shape[1:3]) != (tuple(size) if isinstance(size, (list, tuple)) else (size, size))
    out = model(torch.tensor(pixels.transpose(0, 3, 1, 2)), **({"interpolate_pos_encoding": True} if other else {}))
    return out.logits if "logits" in out else out.pooler_output


def ours_of(model, params, pixels=IMAGE):
    (head,) = model.heads

    def run(params):
        forward = bound(model, params, {"image": pixels})
        return forward.head(head, forward.encode("image"), key="x")

    return compiled(run)(params)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ViTModel", {}),
        ("ViTForImageClassification", {"num_labels": 5}),
        ("ViTForImageClassification", {"num_labels": 0, "qkv_bias": False}),
    ],
)
def test_outputs_and_bits(name, changes, tmp_path):
    theirs = make(name, **changes)
    model, params = round_trip(theirs, tmp_path)
    assert_close(ours_of(model, params), theirs_of(theirs))


@pytest.mark.parametrize("size", [(28, 16), (4, 8), (20, 20)])
def test_positions_are_interpolated(size, tmp_path):
    theirs = make("ViTForImageClassification")
    model, params = load(save(theirs, tmp_path / "hf"))
    pixels = image(*size)
    assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))


@pytest.mark.parametrize(("size", "patch"), [((8, 20), 4), ((12, 10), (4, 5)), ([20, 8], [5, 4])])
def test_sizes_in_pairs(size, patch, tmp_path):
    theirs = make(image_size=size, patch_size=patch)
    model, params = round_trip(theirs, tmp_path)
    pixels = image(*size)
    assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (written["image_size"], written["patch_size"]) == (list(size), patch if isinstance(patch, int) else list(patch))


def test_layer_by_layer(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    out = theirs(torch.tensor(IMAGE.transpose(0, 3, 1, 2)), output_hidden_states=True)
    for layer, state in zip(out.hidden_states[1:], hidden_states(model, params, "encode", "image", IMAGE), strict=True):
        assert_close(state, layer)
    assert_close(bound(model, params, {"image": IMAGE}).encode("image").embeddings, out.last_hidden_state)


def test_gradient(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    weight = RNG.normal(size=(2, 24)).astype(np.float32)
    loss = (theirs_of(theirs) * torch.tensor(weight)).sum()
    check_gradient(theirs, loss, model, params, lambda p: (ours_of(model, p) * weight).sum())


CHANGES = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-2,
    "patch_size": 6,
    "qkv_bias": False,
    "pooler_act": "relu",
    "pooler_output_size": 10,
}
IMAGES = {"image_size": 8, "num_channels": 1}  # they take other images: see test_other_images
TRAINING = {"hidden_dropout_prob", "attention_probs_dropout_prob"}  # see test_dropout_rates


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("vit", hf.ViTConfig())
    assert honoured_fields("vit") == CHANGES.keys() | IMAGES.keys() | TRAINING
    assert inert_fields("vit") == {"encoder_stride"}
    build = lambda changes: make(**changes)  # noqa: E731
    numpy = lambda x: np.asarray(x.detach())  # noqa: E731
    check_honoured(build, lambda m: numpy(theirs_of(m)), lambda m, p: np.asarray(ours_of(m, p)), CHANGES, tmp_path)
    check_inert(build, lambda m: numpy(theirs_of(m)), {"encoder_stride": 4})


@pytest.mark.parametrize(("field", "pixels"), [("image_size", image(8, 8)), ("num_channels", image(channels=1))])
def test_other_images(field, pixels, tmp_path):
    theirs = make(**{field: IMAGES[field]})
    model, params = load(save(theirs, tmp_path / "hf"))
    assert_close(ours_of(model, params, pixels), theirs_of(theirs, pixels))


def test_dropout_rates(tmp_path):
    model, _ = load(save(make(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2), tmp_path / "hf"))
    assert (model.encoders["image"].dropout, model.encoders["image"].attention_dropout) == (0.3, 0.2)


def test_names_in_memory_are_known(tmp_path):
    """What `model.state_dict()` calls its tensors in transformers 5, other than `save_pretrained`."""
    theirs = make("ViTForImageClassification")
    folder = save(theirs, tmp_path / "hf")
    assert "vit.layers.0.attention.q_proj.weight" in theirs.state_dict()
    save_file(theirs.state_dict(), folder / "model.safetensors")
    assert_close(ours_of(*load(folder)), theirs_of(theirs))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 14}, "image_size=14 is not supported here: patch_size=4 must divide it"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        (
            {"architectures": ["ViTForMaskedImageModeling"]},
            "architectures='ViTForMaskedImageModeling' is not supported for vit",
        ),
    ],
)
def test_refusals(change, said, tmp_path):
    folder = save(make(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        load(folder)


def linear(name, out, into):
    return {f"{name}.weight": (out, *into) if isinstance(into, tuple) else (out, into), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def base_layer(width=768):
    """Tensors of one layer of a base-size ViT."""
    return {
        **norm("layernorm_before", width),
        **{k: v for n in ("query", "key", "value") for k, v in linear(f"attention.attention.{n}", width, width).items()},
        **linear("attention.output.dense", width, width),
        **norm("layernorm_after", width),
        **linear("intermediate.dense", 4 * width, width),
        **linear("output.dense", width, 4 * width),
    }


def test_the_public_checkpoint_maps_completely():
    """google/vit-base-patch16-224, with the config.json it has."""
    listed = {
        "vit.embeddings.cls_token": (1, 1, 768),
        "vit.embeddings.position_embeddings": (1, 197, 768),
        **linear("vit.embeddings.patch_embeddings.projection", 768, (3, 16, 16)),
        **{f"vit.encoder.layer.{n}.{name}": shape for n in range(12) for name, shape in base_layer().items()},
        **norm("vit.layernorm", 768),
        **linear("classifier", 1000, 768),
    }
    assert sum(map(prod, listed.values())) == 86_567_656
    config = {
        "attention_probs_dropout_prob": 0.0,
        "encoder_stride": 16,
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
        "qkv_bias": True,
        "transformers_version": "4.13.0.dev0",
    }
    map_completely("vit", "ViTForImageClassification", config, listed)
