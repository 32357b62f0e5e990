"""CLIP beside HuggingFace's."""

import json
from functools import partial

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
    hidden_states,
    honoured_fields,
    inert_fields,
    map_completely,
    part,
    randomise,
    round_trip,
    save,
)

from mmjax.convert import load, save_hf
from mmjax.convert.huggingface import build_model
from mmjax.core.errors import UserError
from mmjax.objectives import Contrastive

END = 36  # the largest id, as in CLIP's vocabulary
TEXT = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 11,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 12,
    "patch_size": 4,
}
RNG = np.random.default_rng(0)
LENGTHS = np.array([[9], [5], [7]])
MASK = np.arange(9)[None] < LENGTHS
# The end token last; padded with the end token (OpenAI's tokenizer), and with 0 (Stable Diffusion 2's).
IDS = np.where(np.arange(9)[None] < LENGTHS - 1, RNG.integers(1, END, (3, 9)), END)
IDS[2, 7:] = 0
IMAGE = RNG.normal(size=(3, 8, 20, 3)).astype(np.float32)
PIXELS = {"pixel_values": torch.tensor(IMAGE.transpose(0, 3, 1, 2)), "interpolate_pos_encoding": True}
WORDS = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(MASK.astype(np.int64))}
BATCH = {"image": IMAGE, "text": IDS.astype(np.int32), "text_mask": MASK}


BOTH = ("text_config", "vision_config")
STYLE = {
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-2,
}
CHANGES = {
    "projection_dim": 14,
    "text_config.vocab_size": 41,
    "text_config.max_position_embeddings": 9,
    "text_config.hidden_size": 36,
    **{f"text_config.{name}": value for name, value in STYLE.items()},
    "vision_config.num_channels": 2,
    "vision_config.image_size": 16,
    "vision_config.patch_size": 2,
    "vision_config.hidden_size": 36,
    **{f"vision_config.{name}": value for name, value in STYLE.items()},
}
TRAINING = {"text_config.attention_dropout": 0.3, "vision_config.attention_dropout": 0.2}  # see test_dropout_rates


def make(name="CLIPModel", **changes):
    groups = {"text_config": dict(TEXT), "vision_config": dict(VISION), "": {"projection_dim": 18}}
    for field, value in changes.items():
        group, _, field = field.rpartition(".")
        groups[group][field] = value
    if name.startswith("CLIPText"):
        config = hf.CLIPTextConfig(**groups["text_config"], **groups[""])
    elif name.startswith("CLIPVision"):
        config = hf.CLIPVisionConfig(**groups["vision_config"], **groups[""])
    else:
        config = hf.CLIPConfig(text_config=groups["text_config"], vision_config=groups["vision_config"], **groups[""])
    return randomise(getattr(hf, name)(config))


def encoded_image(model, params):
    return bound(model, params, {"image": IMAGE[..., : model.encoders["image"].channels]}).encode("image")


def encoded_text(model, params):
    return bound(model, params, BATCH).encode("text")


def compared(model, params, image, text):
    """[images, texts] float32, of the towers' tokens."""
    run = partial(model.copy(dtype="float32").apply, {"params": params}, "dual")
    scale = run("scale", method="scalar")
    return scale * run("image", image, method="embed") @ run("text", text, method="embed").T


def image_tokens(model, params):
    return part(encoded_image, model, params, ("encoders.image",))


def text_tokens(model, params):
    return part(encoded_text, model, params, ("encoders.text",))


def similarity(model, params):
    return part(compared, model, params, ("fusions.dual",), image_tokens(model, params), text_tokens(model, params))


def test_both_towers(tmp_path):
    theirs = make()
    with torch.no_grad():
        theirs.logit_scale.fill_(4.8)  # a factor above 100, which some checkpoints have
    model, params = round_trip(theirs, tmp_path)
    found, out = similarity(model, params), theirs(**WORDS, **PIXELS)
    assert_close(found, out.logits_per_image)
    assert_close(found.T, out.logits_per_text)
    assert float(params["fusions_dual"]["bias_logit"]) == 0.0


def test_the_end_token_of_either_convention_is_the_last_that_the_mask_keeps(tmp_path):
    first_of_id, largest_id = make(), make(**{"text_config.eos_token_id": 2})
    by_id, by_size = (theirs(**WORDS, **PIXELS).text_embeds for theirs in (first_of_id, largest_id))
    assert torch.equal(by_id, by_size)
    model, params = load(save(largest_id, tmp_path / "hf"))
    assert_close(bound(model, params, BATCH).embed("text"), by_size)


TOWERS = {
    "CLIPTextModelWithProjection": ("text", "projection", "text_embeds"),
    "CLIPTextModel": ("text", "pooler", "pooler_output"),
    "CLIPVisionModelWithProjection": ("image", "projection", "image_embeds"),
    "CLIPVisionModel": ("image", "pooler", "pooler_output"),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_alone(name, tmp_path):
    modality, head, field = TOWERS[name]
    words_or_pixels = WORDS if modality == "text" else PIXELS

    def vector(model, params, tokens):
        return bound(model, params, {}).head(head, tokens, key="x")

    for index, width in enumerate((18, 14) if head == "projection" else (18,)):
        theirs = make(name, projection_dim=width)
        model, params = round_trip(theirs, tmp_path / str(index))
        out = theirs(**words_or_pixels)
        tokens = (text_tokens if modality == "text" else image_tokens)(model, params)
        assert_close(part(vector, model, params, (f"heads.{head}",), tokens), out[field])
        if modality == "text":
            assert_close(tokens.embeddings, out.last_hidden_state, where=MASK)


def test_image_classification(tmp_path):
    theirs = make("CLIPForImageClassification", num_labels=5)
    model, params = round_trip(theirs, tmp_path)
    assert model.unread == {f"vision_model.post_layernorm.{part}": (20,) for part in ("weight", "bias")}
    forward = bound(model, params, BATCH)
    assert_close(forward.head("classes", forward.encode("image"), key="x"), theirs(**PIXELS).logits)


def test_layer_by_layer(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    out = theirs(**WORDS, **PIXELS, output_hidden_states=True)
    for state, layer in zip(
        hidden_states(model, params, "encode", "image", IMAGE), out.vision_model_output.hidden_states[1:], strict=True
    ):
        assert_close(state, layer)
    states = hidden_states(model, params, "encode", "text", BATCH["text"], MASK)
    for state, layer in zip(states, out.text_model_output.hidden_states[1:], strict=True):
        assert_close(state, layer, where=MASK)


def test_gradient_of_the_contrastive_loss(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))

    def our_loss(p):
        forward = bound(model, p, BATCH)
        loss = Contrastive()(forward, forward.batch, jax.random.key(0))
        return loss.sum / loss.count

    check_gradient(theirs, theirs(**WORDS, **PIXELS, return_loss=True).loss, model, params, jax.jit(our_loss))


INERT = {
    "text_config.eos_token_id": 2,
    **{f"{group}.projection_dim": 7 for group in BOTH},
    **{f"{group}.initializer_range": 0.5 for group in BOTH},
    **{f"{group}.initializer_factor": 2.0 for group in BOTH},
    "logit_scale_init_value": 1.0,
    "initializer_factor": 2.0,
}


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("clip", hf.CLIPConfig())
    assert honoured_fields("clip") == CHANGES.keys() | TRAINING.keys()
    assert inert_fields("clip") == INERT.keys()

    def outputs(m):
        pixels = PIXELS["pixel_values"][:, : m.config.vision_config.num_channels]
        return m(**WORDS, pixel_values=pixels, interpolate_pos_encoding=True).logits_per_image.detach().numpy()

    build = lambda changes: make(**changes)  # noqa: E731
    check_honoured(build, outputs, similarity, CHANGES, tmp_path)
    check_inert(build, outputs, INERT)


@pytest.mark.parametrize(("kind", "modality"), [("text", "text"), ("vision", "image")])
def test_a_tower_alone_takes_each_field_as_the_nested_one_does(kind, modality):
    config = {"text": hf.CLIPTextConfig, "vision": hf.CLIPVisionConfig}[kind]()
    check_table(f"clip_{kind}_model", config)
    group = f"{kind}_config."
    own = {name.removeprefix(group): value for name, value in (CHANGES | TRAINING).items() if name.startswith(group)}
    assert honoured_fields(f"clip_{kind}_model") == own.keys() | {"projection_dim"}
    sizes = TEXT if kind == "text" else VISION
    usual = build_model({"model_type": f"clip_{kind}_model", **sizes})[1].encoders[modality]
    for name, value in own.items():
        alone = build_model({"model_type": f"clip_{kind}_model", **sizes, name: value})[1].encoders[modality]
        nested = build_model({"model_type": "clip", f"{kind}_config": {**sizes, name: value}})[1].encoders[modality]
        assert alone == nested != usual, name


@pytest.mark.parametrize("field", TRAINING)
def test_dropout_rates(field, tmp_path):
    theirs = make(**{field: TRAINING[field]})
    model, _ = load(save(theirs, tmp_path / "hf"))
    rates = (model.encoders["text"].attention_dropout, model.encoders["image"].attention_dropout)
    assert rates == ((0.3, 0.0) if "text" in field else (0.0, 0.2))
    usual = theirs(**WORDS, **PIXELS).logits_per_image
    assert not torch.equal(theirs.train()(**WORDS, **PIXELS).logits_per_image, usual)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": [12, 16]}, "image_size=.12, 16. is not supported here: give one number"),
        ({"patch_size": 5}, "image_size=12 is not supported here: patch_size=5 must divide it"),
        ({"hidden_act": "gelu_10"}, "vision_config.hidden_act='gelu_10' is not supported here"),
    ],
)
def test_refusals(change, said):
    with pytest.raises(UserError, match=said):
        build_model({"model_type": "clip", "vision_config": VISION | change})


def test_an_old_file_says_its_groups_twice(tmp_path):
    """Files of 2022: `text_config_dict` wins over `text_config`, with its defaults; what is written back says it once."""
    theirs = make(**{"text_config.hidden_act": "gelu"})
    folder = save(theirs, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    old = config | {"text_config_dict": config["text_config"], "vision_config_dict": None, "torch_dtype": config.pop("dtype")}
    old["text_config"] = {"hidden_size": 512, "hidden_act": "relu", "layer_norm_eps": 1e-2}
    (folder / "config.json").write_text(json.dumps(old))
    model, params = load(folder)
    out = hf.CLIPModel.from_pretrained(folder)(**WORDS, **PIXELS).logits_per_image
    assert torch.equal(out, theirs(**WORDS, **PIXELS).logits_per_image)
    assert_close(similarity(model, params), out)
    save_hf(model, params, tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "text_config_dict" not in written
    assert written["text_config"]["hidden_size"] == 24


def test_the_public_checkpoint_maps_completely():
    """openai/clip-vit-base-patch32: with position_ids in both towers."""

    def tower(name, width, norm):
        layer = {
            **{f"self_attn.{n}_proj.weight": (width, width) for n in ("q", "k", "v", "out")},
            **{f"self_attn.{n}_proj.bias": (width,) for n in ("q", "k", "v", "out")},
            **{f"layer_norm{n}.{p}": (width,) for n in (1, 2) for p in ("weight", "bias")},
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        return {
            **{f"{name}.encoder.layers.{n}.{part}": shape for n in range(12) for part, shape in layer.items()},
            f"{name}.{norm}.weight": (width,),
            f"{name}.{norm}.bias": (width,),
        }

    listed = {
        "logit_scale": (),
        "text_model.embeddings.position_embedding.weight": (77, 512),
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.embeddings.token_embedding.weight": (49408, 512),
        **tower("text_model", 512, "final_layer_norm"),
        "text_projection.weight": (512, 512),
        "vision_model.embeddings.class_embedding": (768,),
        "vision_model.embeddings.patch_embedding.weight": (768, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, 768),
        "vision_model.embeddings.position_ids": (1, 50),
        **tower("vision_model", 768, "post_layernorm"),
        "vision_model.pre_layrnorm.weight": (768,),
        "vision_model.pre_layrnorm.bias": (768,),
        "visual_projection.weight": (512, 768),
    }
    map_completely(
        "clip", "CLIPModel", {"text_config_dict": None, "vision_config_dict": None, "torch_dtype": "float32"}, listed
    )
