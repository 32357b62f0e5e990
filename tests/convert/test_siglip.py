"""SigLIP beside HuggingFace's."""

from functools import partial

import jax
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
    part,
    randomise,
    round_trip,
    save,
)

from mmjax.convert import load
from mmjax.convert.huggingface import build_model
from mmjax.convert.siglip import POOLING
from mmjax.core.config import leaves
from mmjax.core.errors import UserError
from mmjax.objectives import Contrastive

PAD = 1
TEXT = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 9,
    "projection_size": 20,
    "bos_token_id": 0,
    "eos_token_id": PAD,
    "pad_token_id": PAD,
}
VISION = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 12,
    "patch_size": 4,
}
RNG = np.random.default_rng(0)
MASK = np.arange(9)[None] < np.array([[9], [5], [7]])
IDS = np.where(MASK, RNG.integers(2, 37, (3, 9)), PAD)
IMAGE = RNG.normal(size=(3, 8, 20, 3)).astype(np.float32)
PIXELS = {"pixel_values": torch.tensor(IMAGE.transpose(0, 3, 1, 2)), "interpolate_pos_encoding": True}
WORDS = {"input_ids": torch.tensor(IDS)}  # no mask, as the processor gives none
BATCH = {"image": IMAGE, "text": IDS.astype(np.int32), "text_mask": MASK}

STYLE = {
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-2,
}
CHANGES = {
    "text_config.vocab_size": 41,
    "text_config.max_position_embeddings": 10,
    "text_config.hidden_size": 36,
    **{f"text_config.{name}": value for name, value in STYLE.items()},
    "vision_config.num_channels": 2,
    "vision_config.image_size": 16,
    "vision_config.patch_size": 2,
    **{f"vision_config.{name}": value for name, value in STYLE.items()},
}
WIDTH = {"vision_config.hidden_size": 36, "text_config.projection_size": 36}  # see test_the_two_widths
TRAINING = {"text_config.attention_dropout": 0.3, "vision_config.attention_dropout": 0.2}  # see test_dropout_rates
HEAD = {"vision_config.vision_use_head"}  # see test_image_classification


def make(name="SiglipModel", **changes):
    groups = {"text_config": dict(TEXT), "vision_config": dict(VISION), "": {}}
    for field, value in changes.items():
        group, _, field = field.rpartition(".")
        groups[group][field] = value
    config = hf.SiglipConfig(text_config=groups["text_config"], vision_config=groups["vision_config"], **groups[""])
    return randomise(getattr(hf, name)(config))


def encoded_image(model, params, image):
    return bound(model, params, {}).encode("image", {"image": image})


def encoded_text(model, params):
    return bound(model, params, BATCH).encode("text")


def compared(model, params, image, text):
    """[images, texts] float32, of the towers' tokens."""
    run = partial(model.copy(dtype="float32").apply, {"params": params}, "dual")
    product = run("image", image, method="embed") @ run("text", text, method="embed").T
    return run("scale", method="scalar") * product + run("bias", method="scalar")


def image_tokens(model, params, image=IMAGE):
    return part(encoded_image, model, params, ("encoders.image",), jnp.asarray(image[..., : model.encoders["image"].channels]))


def similarity(model, params, image=IMAGE):
    text = part(encoded_text, model, params, ("encoders.text",))
    return part(compared, model, params, ("fusions.dual",), image_tokens(model, params, image), text)


def classes(model, params, tokens):
    return bound(model, params, {}).head("classes", tokens, key="x")


def logits(model, params):
    """[images, classes] float32."""
    return part(classes, model, params, ("heads.classes",), image_tokens(model, params))


def test_both_towers(tmp_path):
    theirs = make()
    with torch.no_grad():
        theirs.logit_scale.fill_(4.77)  # a factor of 118, as published ones
        theirs.logit_bias.fill_(-12.9)
    model, params = round_trip(theirs, tmp_path)
    found, out = similarity(model, params), theirs(**WORDS, **PIXELS)
    assert_close(found, out.logits_per_image)
    assert_close(found.T, out.logits_per_text)
    square = RNG.normal(size=(3, 12, 12, 3)).astype(np.float32)  # the model's own size
    out = theirs(**WORDS, pixel_values=torch.tensor(square.transpose(0, 3, 1, 2)))
    assert_close(similarity(model, params, square), out.logits_per_image)


@pytest.mark.parametrize("use_head", [True, False])
def test_image_classification(use_head, tmp_path):
    """With or without the pooling head, which it does not read."""
    theirs = make("SiglipForImageClassification", num_labels=5, **{"vision_config.vision_use_head": use_head})
    assert any("head." in name for name in theirs.state_dict()) is use_head
    model, params = round_trip(theirs, tmp_path)
    assert ("dual" in model.fusions) is use_head
    assert_close(logits(model, params), theirs(**PIXELS).logits)


def test_layer_by_layer(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    out = theirs(**WORDS, **PIXELS, output_hidden_states=True)
    states = hidden_states(model, params, "encode", "image", IMAGE)
    for state, layer in zip(states, out.vision_model_output.hidden_states[1:], strict=True):
        assert_close(state, layer)
    states = hidden_states(model, params, "encode", "text", BATCH["text"], MASK)
    for state, layer in zip(states, out.text_model_output.hidden_states[1:], strict=True):
        assert_close(state, layer)


def test_gradient_of_the_sigmoid_loss(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))

    def our_loss(p):
        forward = bound(model, p, BATCH)
        loss = Contrastive("sigmoid")(forward, forward.batch, jax.random.key(0))
        return loss.sum / loss.count

    check_gradient(theirs, theirs(**WORDS, **PIXELS, return_loss=True).loss, model, params, jax.jit(our_loss))


def similar(m):
    """[images, texts] of HuggingFace's model."""
    pixels = PIXELS["pixel_values"][:, : m.config.vision_config.num_channels]
    return m(**WORDS, pixel_values=pixels, interpolate_pos_encoding=True).logits_per_image.detach().numpy()


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("siglip", hf.SiglipConfig())
    assert honoured_fields("siglip") == CHANGES.keys() | WIDTH.keys() | TRAINING.keys() | HEAD
    assert inert_fields("siglip") == {"initializer_factor"}
    build = lambda changes: make(**changes)  # noqa: E731
    check_honoured(build, similar, similarity, CHANGES, tmp_path)
    check_inert(build, similar, {"initializer_factor": 2.0})


def test_the_two_widths(tmp_path):
    """Of the model of both towers they are one; each is changed alone where the other is not, and both where they meet."""
    for field, value in WIDTH.items():
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            similar(make(**{field: value}))
    both = make(**WIDTH)
    assert_close(similarity(*load(save(both, tmp_path / "both"))), similar(both))
    field = "vision_config.hidden_size"
    build = lambda changes: make("SiglipForImageClassification", **changes)  # noqa: E731
    theirs = lambda m: m(**PIXELS).logits.detach().numpy()  # noqa: E731
    check_honoured(build, theirs, logits, {field: WIDTH[field]}, tmp_path)

    def pooled(model, params, tokens):
        return bound(model, params, {}).head("pooler", tokens, key="x")

    def ours(model, params):
        return part(pooled, model, params, ("heads.pooler",), part(encoded_text, model, params, ("encoders.text",)))

    text = lambda changes: randomise(hf.SiglipTextModel(hf.SiglipTextConfig(**TEXT | changes)))  # noqa: E731
    theirs = lambda m: m(**WORDS).pooler_output.detach().numpy()  # noqa: E731
    check_honoured(text, theirs, ours, {"projection_size": 36}, tmp_path / "text")


@pytest.mark.parametrize(("kind", "modality"), [("text", "text"), ("vision", "image")])
def test_a_tower_alone_takes_each_field_as_the_nested_one_does(kind, modality):
    group = f"{kind}_config."
    own = {name.removeprefix(group): value for name, value in (CHANGES | TRAINING).items() if name.startswith(group)}
    other = {"text": {"projection_size"}, "vision": {"hidden_size", "vision_use_head"}}[kind]
    assert honoured_fields(f"siglip_{kind}_model") == own.keys() | other
    sizes, rest = (TEXT, VISION) if kind == "text" else (VISION, TEXT)
    beside = {"vision_config" if kind == "text" else "text_config": rest}

    def parts(model):
        pool = leaves(model.fusions["dual"]) if kind == "vision" else {}
        return model.encoders[modality], {path: pool.get(path.removeprefix("fusions.dual.")) for (path,) in POOLING.values()}

    usual = parts(build_model({"model_type": f"siglip_{kind}_model", **sizes})[1])
    for name, value in own.items():
        alone = parts(build_model({"model_type": f"siglip_{kind}_model", **sizes, name: value})[1])
        nested = build_model({"model_type": "siglip", **beside, f"{kind}_config": {**sizes, name: value}})[1]
        assert alone == parts(nested) != usual, name


@pytest.mark.parametrize("field", TRAINING)
def test_dropout_rates(field, tmp_path):
    theirs = make(**{field: TRAINING[field]})
    model, _ = load(save(theirs, tmp_path / "hf"))
    rates = (model.encoders["text"].attention_dropout, model.encoders["image"].attention_dropout)
    assert rates == ((0.3, 0.0) if "text" in field else (0.0, 0.2))
    usual = similar(theirs)
    assert not np.array_equal(similar(theirs.train()), usual)


@pytest.mark.parametrize(
    ("text", "vision", "said"),
    [
        ({"projection_size": 24}, {}, "text_config.projection_size=24 must be vision_config.hidden_size=20"),
        ({}, {"vision_use_head": False}, "vision_config.vision_use_head=False is not supported by SiglipModel"),
        ({}, {"patch_size": 5}, "image_size=12 is not supported here: patch_size=5 must divide it"),
        ({"hidden_act": "gelu_10"}, {}, "text_config.hidden_act='gelu_10' is not supported here"),
    ],
)
def test_refusals(text, vision, said):
    with pytest.raises(UserError, match=said):
        build_model({"model_type": "siglip", "text_config": TEXT | text, "vision_config": VISION | vision})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"text_config": {"model_type": "siglip_text_model"}, "vision_config": {"model_type": "siglip_vision_model"}}, 32000),
        ({"text_config": {"vocab_size": 256000, "hidden_act": "gelu_pytorch_tanh"}, "vision_config": {}}, 256000),
    ],
    ids=["google/siglip-base-patch16-224", "google/siglip2-base-patch16-224"],
)
def test_the_public_checkpoints_map_completely(config, words):
    names = ("q", "k", "v", "out")
    block = {
        "mlp.fc1.weight": (3072, 768),
        "mlp.fc1.bias": (3072,),
        "mlp.fc2.weight": (768, 3072),
        "mlp.fc2.bias": (768,),
    }
    layer = block | {
        **{f"self_attn.{n}_proj.weight": (768, 768) for n in names},
        **{f"self_attn.{n}_proj.bias": (768,) for n in names},
        **{f"layer_norm{n}.{p}": (768,) for n in (1, 2) for p in ("weight", "bias")},
    }
    listed = {
        "logit_bias": (1,),
        "logit_scale": (1,),
        "text_model.embeddings.position_embedding.weight": (64, 768),
        "text_model.embeddings.token_embedding.weight": (words, 768),
        "text_model.final_layer_norm.bias": (768,),
        "text_model.final_layer_norm.weight": (768,),
        "text_model.head.bias": (768,),
        "text_model.head.weight": (768, 768),
        "vision_model.embeddings.patch_embedding.bias": (768,),
        "vision_model.embeddings.patch_embedding.weight": (768, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (196, 768),
        **{f"{t}_model.encoder.layers.{n}.{k}": s for t in ("text", "vision") for n in range(12) for k, s in layer.items()},
        "vision_model.head.attention.in_proj_bias": (2304,),
        "vision_model.head.attention.in_proj_weight": (2304, 768),
        "vision_model.head.attention.out_proj.bias": (768,),
        "vision_model.head.attention.out_proj.weight": (768, 768),
        "vision_model.head.layernorm.bias": (768,),
        "vision_model.head.layernorm.weight": (768,),
        **{f"vision_model.head.{name}": shape for name, shape in block.items()},
        "vision_model.head.probe": (1, 1, 768),
        "vision_model.post_layernorm.bias": (768,),
        "vision_model.post_layernorm.weight": (768,),
    }
    map_completely("siglip", "SiglipModel", config, listed)
