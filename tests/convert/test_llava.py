"""LLaVA beside HuggingFace's."""

import json

import jax
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
    honoured_fields,
    inert_fields,
    map_completely,
    part,
    randomise,
    refused_fields,
    round_trip,
    save,
)
from safetensors.numpy import load_file, save_file

from mmjax.convert import load
from mmjax.convert.family import set_leaf
from mmjax.convert.llava import CLIP
from mmjax.core.errors import UserError

VISION = {
    "hidden_size": 18,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 13,
}
PLACE = 35
RNG = np.random.default_rng(0)
PIXELS = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)
MASK = np.arange(11)[None] < np.array([[11], [8], [9]])


def prompt(patches=4):
    """[3, 11] ids with as many image tokens each, inside, at the start, and apart; of four, and as many of the id after it."""
    ids = np.random.default_rng(1).integers(1, 34, (3, 11))
    for row, start in enumerate((2, 0, 3)):
        ids[row, start : start + patches] = PLACE
    if patches == 4:
        ids[0, 6:10] = ids[1, 4:8] = PLACE + 1
        ids[2, :9] = [PLACE + 1] * 3 + [PLACE, PLACE, 5, PLACE, PLACE, PLACE + 1]
    return ids * MASK


def make(changes=None, vision=hf.CLIPVisionConfig):
    """A LLaVA whose config has these changes, dotted for nested fields."""
    top, parts = {"image_token_index": PLACE}, {"vision_config": dict(VISION), "text_config": dict(TEXT)}
    for name, value in (changes or {}).items():
        group, _, field = name.partition(".")
        if field == "rope_parameters.rope_theta":
            field, value = "rope_parameters", {"rope_type": "default", "rope_theta": value}
        (parts[group] if field else top)[field or name] = value
    configs = {"vision_config": vision(**parts["vision_config"]), "text_config": hf.LlamaConfig(**parts["text_config"])}
    return randomise(hf.LlavaForConditionalGeneration(hf.LlavaConfig(**configs, **top)))


def batch(side=8, channels=3, patches=4):
    return {"image": PIXELS[:, :side, :side, :channels], "text": prompt(patches).astype(np.int32), "text_mask": MASK}


def inputs(size):
    """HuggingFace's names of a batch."""
    return {
        "input_ids": torch.tensor(size["text"]),
        "attention_mask": torch.tensor(MASK.astype(np.int64)),
        "pixel_values": torch.tensor(size["image"].transpose(0, 3, 1, 2)),
    }


def theirs(model):
    """Logits of the real tokens, for a batch as its config asks for."""
    c, v = model.config, model.config.vision_config
    patches = (v.image_size // v.patch_size) ** 2 + (c.vision_feature_select_strategy == "full") * (v.model_type == CLIP)
    return model(**inputs(batch(v.image_size, v.num_channels, patches))).logits[torch.tensor(MASK)]


def encoded(model, params):
    image = model.encoders["image"]
    return bound(model, params, {"image": PIXELS[:, : image.image_size[0], : image.image_size[1], : image.channels]}).encode(
        "image"
    )


def decoded(model, params, tokens):
    text = model.decoders["caption"]
    own = {"text": prompt(tokens.mask.shape[1] - text.skip).astype(np.int32), "text_mask": MASK}
    return bound(model, params, own).decode("caption", own, {"image": tokens})[MASK]


def ours(model, params):
    """The same of our model."""
    tokens = part(encoded, model, params, ("encoders.image",))
    return part(decoded, model, params, ("decoders.caption",), tokens)


@pytest.mark.parametrize("tied", [True, False])
def test_outputs_and_bits(tied, tmp_path):
    hf_model = make({"tie_word_embeddings": tied})
    model, params = round_trip(hf_model, tmp_path)
    assert_close(ours(model, params), theirs(hf_model))


@pytest.mark.parametrize("head", [True, False])
def test_the_image_tower_may_be_siglips(head, tmp_path):
    changes = {"vision_config.vision_use_head": head, "vision_feature_select_strategy": "full"}
    hf_model = make(changes, vision=hf.SiglipVisionConfig)
    model, params = round_trip(hf_model, tmp_path)
    assert_close(ours(model, params), theirs(hf_model))


def test_what_each_layer_gives_and_images_of_another_shape(tmp_path):
    hf_model = make()
    model, params = load(save(hf_model, tmp_path / "hf"))
    wide = RNG.normal(size=(2, 8, 16, 3)).astype(np.float32)
    tower = hf_model.model.vision_tower
    out = tower(torch.tensor(wide.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True, output_hidden_states=True)
    encode = lambda m, p: bound(m, p, {"image": wide}).encode("image").embeddings  # noqa: E731
    for layer in (0, 1, -1, -2, -4):
        taken = set_leaf(model, "encoders.image.take_layer", layer)
        assert_close(part(encode, taken, params, ("encoders.image",)), out.hidden_states[layer])


def test_gradient(tmp_path):
    hf_model = make({"text_config.attention_bias": True})
    model, params = load(save(hf_model, tmp_path / "hf"))
    weight = RNG.normal(size=(MASK.sum(), 37)).astype(np.float32)
    loss = (theirs(hf_model) * torch.tensor(weight)).sum()
    check_gradient(hf_model, loss, model, params, lambda p: (ours(model, p) * weight).sum())


CHANGES = {
    "image_token_index": 36,
    "projector_hidden_act": "relu",
    "multimodal_projector_bias": False,
    "vision_feature_select_strategy": "full",
    "vision_feature_layer": 1,
    "tie_word_embeddings": True,
    "text_config.vocab_size": 41,
    "text_config.hidden_size": 36,
    "text_config.intermediate_size": 20,
    "text_config.num_hidden_layers": 1,
    "text_config.num_attention_heads": 6,
    "text_config.num_key_value_heads": 1,
    "text_config.head_dim": 8,
    "text_config.rms_norm_eps": 1e-2,
    "text_config.tie_word_embeddings": True,
    "text_config.rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "text_config.rope_parameters.rope_theta": 100.0,
    "text_config.attention_bias": True,
    "text_config.mlp_bias": True,
    "vision_config.hidden_size": 12,
    "vision_config.intermediate_size": 28,
    "vision_config.num_hidden_layers": 4,
    "vision_config.num_attention_heads": 2,
    "vision_config.num_channels": 1,
    "vision_config.image_size": 4,
    "vision_config.patch_size": 8,
    "vision_config.hidden_act": "gelu",
    "vision_config.layer_norm_eps": 1e-2,
}
OLDER = {"text_config.rope_theta": 100.0, "text_config.rope_scaling": {"type": "linear", "factor": 3.0}}
TRAINING = {"text_config.attention_dropout": 0.2, "vision_config.attention_dropout": 0.3}
ELSEWHERE = {
    "text_config.max_position_embeddings",  # changes no output, see test_fields_that_change_no_output
    "vision_config.vision_use_head",  # see test_the_image_tower_may_be_siglips
}


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("llava", hf.LlavaConfig())
    assert honoured_fields("llava") == CHANGES.keys() | OLDER.keys() | TRAINING.keys() | ELSEWHERE
    inert = {
        "image_seq_length": 9,
        "text_config.pretraining_tp": 2,
        "vision_config.projection_dim": 9,
        "vision_config.vocab_size": 9,
        "vision_config.initializer_factor": 2.0,
        "vision_config.initializer_range": 0.5,
    }
    assert inert_fields("llava") == inert.keys()
    only = {f"text_config.{name}" for name in ("model_type", "hidden_act", "original_max_position_embeddings")}
    assert refused_fields("llava") == only | {"vision_config.model_type"}
    outputs = lambda m: theirs(m).detach().numpy()  # noqa: E731
    check_honoured(make, outputs, ours, CHANGES, tmp_path)
    check_inert(make, outputs, inert | {"text_config.max_position_embeddings": 99})


@pytest.mark.parametrize("field", OLDER)
def test_older_names_of_the_rotation(field, tmp_path):
    hf_model = make()
    folder = save(hf_model, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["rope_parameters"]
    config["text_config"][field.removeprefix("text_config.")] = OLDER[field]
    (folder / "config.json").write_text(json.dumps(config))
    older = theirs(hf.LlavaForConditionalGeneration.from_pretrained(folder).eval())
    assert (older - theirs(hf_model)).abs().max() > 1e-4 * older.abs().max()
    assert_close(ours(*load(folder)), older)


@pytest.mark.parametrize("field", TRAINING)
def test_dropout_rates(field, tmp_path):
    hf_model = make({field: TRAINING[field]})
    model, _ = load(save(hf_model, tmp_path / "hf"))
    rates = (model.encoders["image"].attention_dropout, model.decoders["caption"].attention_dropout)
    assert rates == ((0.3, 0.0) if "vision" in field else (0.0, 0.2))
    assert not torch.equal(theirs(hf_model.train()), theirs(hf_model.eval()))


def test_fields_that_change_no_output(tmp_path):
    model, _ = load(save(make({"text_config.max_position_embeddings": 99}), tmp_path / "hf"))
    assert model.decoders["caption"].max_length == 99


def test_without_the_language_models_head(tmp_path):
    base = make().model
    model, params = round_trip(base, tmp_path)
    assert_close(ours(model, params), base(**inputs(batch())).last_hidden_state[torch.tensor(MASK)])
    save_file({name: x.detach().numpy() for name, x in base.state_dict().items()}, tmp_path / "source/model.safetensors")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), load(tmp_path / "source")[1], params))


def test_a_wrong_number_of_image_tokens_is_refused_as_there(tmp_path):
    hf_model = make()
    size = batch()
    size["text"][1, :8] = 5
    with pytest.raises(ValueError, match="tokens: 8"):
        hf_model(**inputs(size))
    model, params = load(save(hf_model, tmp_path / "hf"))
    tokens = part(encoded, model, params, ("encoders.image",))
    with pytest.raises(UserError, match="place=35: text 1 has 0 of this id, and its image has 4 tokens"):
        bound(model, params, {}).decode("caption", size, {"image": tokens})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer=.-2, -1. is not supported here: give one number"),
        ({"vision_feature_layer": 4}, "take_layer=4: there are 3 layers"),
        ({"vision_config": {"model_type": "pixtral"}}, "vision_config.model_type='pixtral' is not supported by llava here"),
        ({"text_config": {"model_type": "qwen2"}}, "text_config.model_type='qwen2' is not supported by llava here"),
        ({"text_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}}, "rope_type='dynamic' is not supported here"),
    ],
)
def test_refusals(change, said, tmp_path):
    folder = save(make(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        load(folder)


def test_names_of_other_versions(tmp_path):
    """What version 4 wrote, and what a state_dict of version 5 says, hold the same tensors."""
    hf_model = make()
    folder = save(hf_model, tmp_path / "hf")
    _, params = load(folder)
    written = load_file(folder / "model.safetensors")
    older = {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in written.items()}
    newer = {name: x.detach().numpy() for name, x in hf_model.state_dict().items()}
    for tensors in (older, newer):
        assert tensors.keys() != written.keys()
        save_file(tensors, folder / "model.safetensors")
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), load(folder)[1], params))


def test_the_public_checkpoint_maps_completely():
    """llava-hf/llava-1.5-7b-hf, written by version 4."""
    text = {
        "input_layernorm.weight": (4096,),
        "mlp.down_proj.weight": (4096, 11008),
        "mlp.gate_proj.weight": (11008, 4096),
        "mlp.up_proj.weight": (11008, 4096),
        "post_attention_layernorm.weight": (4096,),
        **{f"self_attn.{name}_proj.weight": (4096, 4096) for name in "qkvo"},
    }
    image = {
        **{f"self_attn.{name}_proj.weight": (1024, 1024) for name in ("q", "k", "v", "out")},
        **{f"self_attn.{name}_proj.bias": (1024,) for name in ("q", "k", "v", "out")},
        **{f"layer_norm{n}.{part}": (1024,) for n in (1, 2) for part in ("weight", "bias")},
        "mlp.fc1.weight": (4096, 1024),
        "mlp.fc1.bias": (4096,),
        "mlp.fc2.weight": (1024, 4096),
        "mlp.fc2.bias": (1024,),
    }
    tower = "vision_tower.vision_model"
    listed = {
        "language_model.lm_head.weight": (32064, 4096),
        "language_model.model.embed_tokens.weight": (32064, 4096),
        **{f"language_model.model.layers.{n}.{name}": shape for n in range(32) for name, shape in text.items()},
        "language_model.model.norm.weight": (4096,),
        "multi_modal_projector.linear_1.weight": (4096, 1024),
        "multi_modal_projector.linear_1.bias": (4096,),
        "multi_modal_projector.linear_2.weight": (4096, 4096),
        "multi_modal_projector.linear_2.bias": (4096,),
        f"{tower}.embeddings.class_embedding": (1024,),
        f"{tower}.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        f"{tower}.embeddings.position_embedding.weight": (577, 1024),
        f"{tower}.embeddings.position_ids": (1, 577),
        **{f"{tower}.encoder.layers.{n}.{name}": shape for n in range(24) for name, shape in image.items()},
        **{f"{tower}.{name}.{part}": (1024,) for name in ("pre_layrnorm", "post_layernorm") for part in ("weight", "bias")},
    }
    config = {
        "ignore_index": -100,
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }
    map_completely("llava", "LlavaForConditionalGeneration", config, listed)
    map_completely("llava", "LlavaForConditionalGeneration", {**config, "vision_config": None}, listed)
