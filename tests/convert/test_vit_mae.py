"""ViT-MAE beside HuggingFace's, both given the same noise to mask by."""

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
from safetensors.torch import load_file, save_file

from mmjax.convert import load
from mmjax.convert.vit_mae import objective
from mmjax.core.errors import UserError

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 20,
    "patch_size": 4,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 28,
}
RNG = np.random.default_rng(0)


def image(height=20, width=20, channels=3):
    """Pixels [B, H, W, channels]."""
    return RNG.normal(size=(2, height, width, channels)).astype(np.float32)


IMAGE = image()
NOISE = RNG.random((2, 140)).astype(np.float32)  # as much as the largest image has patches


def noise_for(model, pixels):
    patch = model.config.patch_size
    return NOISE[:, : pixels.shape[1] // patch * (pixels.shape[2] // patch)]


def make(name="ViTMAEForPreTraining", **changes):
    return randomise(getattr(hf, name)(hf.ViTMAEConfig(**{**SIZES, **changes})))


def theirs_of(model, pixels=IMAGE, **more):
    """All outputs of HuggingFace's; positions are interpolated where the image has another size."""
    size = model.config.image_size
    other = {} if pixels.shape[1:3] == (size, size) else {"interpolate_pos_encoding": True}
    noise = torch.tensor(noise_for(model, pixels))
    return model(torch.tensor(pixels.transpose(0, 3, 1, 2)), noise=noise, **other, **more)


def seen_by(model, params, pixels=IMAGE):
    """What the encoder gives of the patches that are left."""
    spec = objective(model)

    def run(params):
        keep, _ = spec.choose(NOISE[:, : spec.patches(pixels).shape[1]])
        return bound(model, params, {"image": pixels}).encode("image", {"image_keep": keep}, key="x").embeddings

    return compiled(run)(params)


def painted_by(model, params, pixels=IMAGE):
    """The loss and the pixels."""
    spec = objective(model)

    def run(params):
        loss, painted = spec.paint(bound(model, params, {"image": pixels}), NOISE[:, : spec.patches(pixels).shape[1]])
        return loss.sum / loss.count, painted

    return compiled(run)(params)


def both(loss, pixels):
    """One array [N] to compare."""
    return np.concatenate([np.asarray(x.detach() if hasattr(x, "detach") else x).ravel() for x in (loss, pixels)])


@pytest.mark.parametrize("size", [(20, 20), (12, 28)])
def test_outputs_and_bits_of_the_encoder(size, tmp_path):
    theirs = make("ViTMAEModel")
    model, params = round_trip(theirs, tmp_path)
    pixels = image(*size)
    assert_close(seen_by(model, params, pixels), theirs_of(theirs, pixels).last_hidden_state)


@pytest.mark.parametrize("changes", [{}, {"norm_pix_loss": True, "qkv_bias": False, "mask_ratio": 0.4}])
def test_outputs_and_bits_of_pretraining(changes, tmp_path):
    theirs = make(**changes)
    model, params = round_trip(theirs, tmp_path)
    out, (loss, painted) = theirs_of(theirs), painted_by(model, params)
    assert_close(painted, out.logits)
    assert_close(loss, out.loss)
    keep, hidden = objective(model).choose(NOISE[:, :25])
    assert np.array_equal(hidden, out.mask.numpy() == 1)
    assert np.array_equal(np.sort(keep), [np.flatnonzero(row == 0) for row in out.mask.numpy()])


def test_other_sizes_are_painted(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    pixels = image(24, 16)
    out, (loss, painted) = theirs_of(theirs, pixels), painted_by(model, params, pixels)
    assert_close(painted, out.logits)
    assert_close(loss, out.loss)


def test_layer_by_layer(tmp_path):
    theirs = make("ViTMAEModel")
    model, params = load(save(theirs, tmp_path / "hf"))
    keep, _ = objective(model).choose(NOISE[:, :25])
    states = hidden_states(model, params, "encode", "image", IMAGE, None, None, keep)
    for layer, state in zip(theirs_of(theirs, output_hidden_states=True).hidden_states[1:], states, strict=True):
        assert_close(state, layer)


def test_gradient(tmp_path):
    theirs = make(norm_pix_loss=True)
    model, params = load(save(theirs, tmp_path / "hf"))
    check_gradient(theirs, theirs_of(theirs).loss, model, params, lambda p: painted_by(model, p)[0])


CHANGES = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-2,
    "patch_size": 5,
    "qkv_bias": False,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 20,
    "mask_ratio": 0.5,
    "norm_pix_loss": True,
}
IMAGES = {"image_size": 12, "num_channels": 1}  # they take other images: see test_other_images
TRAINING = {"hidden_dropout_prob", "attention_probs_dropout_prob"}  # see test_dropout_rates


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("vit_mae", hf.ViTMAEConfig())
    assert honoured_fields("vit_mae") == CHANGES.keys() | IMAGES.keys() | TRAINING
    assert inert_fields("vit_mae") == set()

    def outputs(model):
        out = theirs_of(model)
        return both(out.loss, out.logits)

    check_honoured(lambda changes: make(**changes), outputs, lambda m, p: both(*painted_by(m, p)), CHANGES, tmp_path)


@pytest.mark.parametrize(("field", "pixels"), [("image_size", image(12, 12)), ("num_channels", image(channels=1))])
def test_other_images(field, pixels, tmp_path):
    theirs = make(**{field: IMAGES[field]})
    model, params = load(save(theirs, tmp_path / "hf"))
    out = theirs_of(theirs, pixels)
    assert_close(both(*painted_by(model, params, pixels)), both(out.loss, out.logits))


def test_dropout_rates(tmp_path):
    model, _ = load(save(make(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2), tmp_path / "hf"))
    for part in (model.encoders["image"], model.decoders["pixels"]):
        assert (part.dropout, part.attention_dropout) == (0.3, 0.2)
    assert model.encoders["image"].embed_dropout == 0


def published(name):
    """What versions before 5 called a tensor on disk."""
    return name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers.")


@pytest.mark.parametrize("names", ["in memory", "published"])
def test_other_names_are_known(names, tmp_path):
    theirs = make()
    folder = save(theirs, tmp_path / "hf")
    file = folder / "model.safetensors"
    assert "decoder.decoder_encoder.layer.0.attention.attention.query.weight" in load_file(file)
    state = theirs.state_dict()
    assert "decoder.decoder_layers.0.attention.q_proj.weight" in state
    save_file(state if names == "in memory" else {published(n): x for n, x in load_file(file).items()}, file)
    assert_close(painted_by(*load(folder))[1], theirs_of(theirs).logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": [20, 12]}, r"image_size=\[20, 12\] is not supported by vit_mae here; it must be a square"),
        ({"patch_size": [4, 5]}, r"patch_size=\[4, 5\] is not supported by vit_mae here; it must be a square"),
        ({"image_size": 22}, "image_size=22 is not supported here: patch_size=4 must divide it"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        ({"architectures": ["ViTMAEForX"]}, "architectures='ViTMAEForX' is not supported for vit_mae"),
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


def stack(name, depth, width):
    layer = {
        **norm("layernorm_before", width),
        **{k: v for n in ("query", "key", "value") for k, v in linear(f"attention.attention.{n}", width, width).items()},
        **linear("attention.output.dense", width, width),
        **norm("layernorm_after", width),
        **linear("intermediate.dense", 4 * width, width),
        **linear("output.dense", width, 4 * width),
    }
    return {f"{name}.{n}.{part}": shape for n in range(depth) for part, shape in layer.items()}


def test_the_public_checkpoint_maps_completely():
    """facebook/vit-mae-base, with the config.json it has."""
    listed = {
        "vit.embeddings.cls_token": (1, 1, 768),
        "vit.embeddings.position_embeddings": (1, 197, 768),
        **linear("vit.embeddings.patch_embeddings.projection", 768, (3, 16, 16)),
        **stack("vit.encoder.layer", 12, 768),
        **norm("vit.layernorm", 768),
        "decoder.mask_token": (1, 1, 512),
        "decoder.decoder_pos_embed": (1, 197, 512),
        **linear("decoder.decoder_embed", 512, 768),
        **stack("decoder.decoder_layers", 8, 512),
        **norm("decoder.decoder_norm", 512),
        **linear("decoder.decoder_pred", 768, 512),
    }
    assert sum(map(prod, listed.values())) == 111_907_840
    config = {
        "attention_probs_dropout_prob": 0.0,
        "decoder_hidden_size": 512,
        "decoder_intermediate_size": 2048,
        "decoder_num_attention_heads": 16,
        "decoder_num_hidden_layers": 8,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 768,
        "image_size": 224,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "mask_ratio": 0.75,
        "norm_pix_loss": False,
        "num_attention_heads": 12,
        "num_channels": 3,
        "num_hidden_layers": 12,
        "patch_size": 16,
        "qkv_bias": True,
        "torch_dtype": "float32",
        "transformers_version": "4.16.0.dev0",
    }
    map_completely("vit_mae", "ViTMAEForPreTraining", config, listed)
