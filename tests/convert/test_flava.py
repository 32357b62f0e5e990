"""FLAVA beside HuggingFace's."""

import copy
import json

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
    randomise,
    round_trip,
    save,
)
from safetensors.numpy import load_file

from mmjax.convert import load, save_hf
from mmjax.convert.vit import pair
from mmjax.core.errors import UserError

STACK = {"hidden_size": 24, "num_attention_heads": 3, "layer_norm_eps": 1e-5, "num_hidden_layers": 2}
SIZES = {
    "text_config": STACK | {"vocab_size": 37, "max_position_embeddings": 13, "num_hidden_layers": 3, "intermediate_size": 20},
    "image_config": STACK | {"image_size": [8, 12], "patch_size": [4, 2], "vocab_size": 17, "intermediate_size": 28},
    "multimodal_config": STACK | {"intermediate_size": 16},
    "image_codebook_config": {"hidden_size": 8, "vocab_size": 17},
    "hidden_size": 24,
    "projection_dim": 14,
    "init_codebook": False,
}
WIDTHS = {"text_config": 18, "image_config": 36, "multimodal_config": 12}  # FlavaModel's may differ
RNG = np.random.default_rng(0)
T = 9
IDS, HIDDEN_IDS = RNG.integers(1, 37, (2, 3, T))
MASK = np.arange(T)[None] < np.array([[9], [5], [7]])
SEGMENTS = (np.arange(T)[None] >= np.array([[4], [3], [9]])).astype(np.int64)
PIXELS = RNG.normal(size=(3, 4, 16, 16)).astype(np.float32)
MASKED = RNG.random((3, 64)) < 0.4  # patches


def make(changes=None, name="FlavaForPreTraining"):
    """A value that is a dict is of the groups that are its keys ("" for none)."""
    config = copy.deepcopy(SIZES)
    for field, value in (changes or {}).items():
        *group, leaf = field.split(".")
        for where, own in (value if isinstance(value, dict) else {group[0] if group else "": value}).items():
            (config[where] if where else config)[leaf] = own
    return randomise(getattr(hf, name)(hf.FlavaConfig(**config)))


def picture(size, patch, channels):
    """Pixels [B, C, H, W] and which patches are masked [B, P]."""
    count = (size[0] // patch[0]) * (size[1] // patch[1])
    return PIXELS[:, :channels, : size[0], : size[1]], MASKED[:, :count]


def inputs(theirs):
    image = theirs.config.image_config
    pixels, masked = picture(pair(image.image_size), pair(image.patch_size), image.num_channels)
    text = {
        "input_ids": torch.tensor(IDS),
        "attention_mask": torch.tensor(MASK.astype(np.int64)),
        "token_type_ids": torch.tensor(SEGMENTS),
    }
    return text, {"pixel_values": torch.tensor(pixels)}, {"bool_masked_pos": torch.tensor(masked)}


def bind(model, params):
    image = model.encoders["image"]
    pixels, masked = picture(image.image_size, image.patch, image.channels)
    text = {"text": IDS.astype(np.int32), "text_mask": MASK, "text_segments": SEGMENTS.astype(np.int32)}
    return bound(model, params, text | {"image": pixels.transpose(0, 2, 3, 1)}), {
        "image_segments": jnp.asarray(masked.astype(np.int32))
    }


def heads(theirs):
    """Everything that FlavaForPreTraining predicts, by our names."""
    text, image, masked = inputs(theirs)
    text["input_ids_masked"] = torch.tensor(HIDDEN_IDS)
    both = theirs(**text, **image, **masked, return_loss=False)
    return {
        "match": both.itm_logits,
        "joint_masked_lm": both.mmm_text_logits,
        "joint_masked_image": both.mmm_image_logits,
        "dual": both.contrastive_logits_per_image,
        "masked_lm": theirs(**text, return_loss=False).mlm_logits,
        "masked_image": theirs(**image, **masked, return_loss=False).mim_logits,
    }


def our_heads(model, params):
    forward, segments = bind(model, params)
    hidden = {
        "text": forward.encode("text", {"text": jnp.asarray(HIDDEN_IDS, jnp.int32)}, key="masked"),
        "image": forward.encode("image", segments, key="masked"),
    }
    joint = forward.fuse("joint", hidden, key="masked")
    text, image = (forward.fuse(f"{m}_normed", {m: hidden[m]}, key="masked") for m in ("text", "image"))
    similarity = forward.embed("image") @ forward.embed("text").T
    return {
        "match": forward.head("match", joint, key="x"),
        "joint_masked_lm": forward.head("joint_masked_lm", joint, key="x")[:, 1 : 1 + T],
        "joint_masked_image": forward.head("joint_masked_image", joint, key="x")[:, 2 + T :],
        "dual": forward.scalar("dual", "scale") * similarity,
        "masked_lm": forward.head("masked_lm", text, key="x"),
        "masked_image": forward.head("masked_image", image, key="x"),
    }


def base(theirs):
    """What FlavaModel gives."""
    text, image, _ = inputs(theirs)
    out = theirs(**text, **image)
    projected = {"text": theirs.get_text_features(**text), "image": theirs.get_image_features(**image)}
    return {
        "text_normed": out.text_embeddings,
        "image_normed": out.image_embeddings,
        "joint": out.multimodal_embeddings,
        "text_pooler": out.text_output.pooler_output,
        "image_pooler": out.image_output.pooler_output,
        "pooler": out.multimodal_output.pooler_output,
        **{f"{m} in dual": torch.nn.functional.normalize(x.pooler_output[:, 0], dim=-1) for m, x in projected.items()},
    }


def our_base(model, params):
    forward, _ = bind(model, params)
    tokens = {m: forward.encode(m) for m in ("text", "image")}
    fused = {f"{m}_normed": forward.fuse(f"{m}_normed", {m: tokens[m]}, key="x") for m in tokens}
    fused["joint"] = forward.fuse("joint", tokens, key="x")
    return {
        **{name: own.embeddings for name, own in fused.items()},
        "joint": as_theirs(model, fused["joint"].embeddings),
        "text_pooler": forward.head("text_pooler", fused["text_normed"], key="x"),
        "image_pooler": forward.head("image_pooler", fused["image_normed"], key="x"),
        "pooler": forward.head("pooler", fused["joint"], key="x"),
        **{f"{m} in dual": forward.embed(m) for m in tokens},
    }


def as_theirs(model, x_BTD):
    """The joint tokens in HuggingFace's order, the text last."""
    if not model.fusions["joint"].cls_token:
        return x_BTD
    return jnp.concatenate([x_BTD[:, :1], x_BTD[:, 1 + T :], x_BTD[:, 1 : 1 + T]], axis=1)


def real(name, length):
    """Which tokens count: [B, T] of what has a text's, None where all do."""
    if name in ("masked_lm", "joint_masked_lm", "text_normed"):
        return MASK
    return np.pad(MASK, ((0, 0), (length - T, 0)), constant_values=True) if name == "joint" else None


def check_all(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(ours[name], value, where=real(name, value.shape[1]))


def run(outputs, model, params):
    return jax.jit(lambda p: outputs(model, p))(params)


def flat(outputs):
    """All that counts in one row."""
    arrays = {n: np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for n, x in sorted(outputs.items())}
    kept = [x if (keep := real(n, x.shape[1])) is None else x[keep] for n, x in arrays.items()]
    return np.concatenate([x.ravel() for x in kept])


@pytest.mark.parametrize("tied", [True, False])
def test_the_heads_of_pretraining(tied, tmp_path):
    theirs = make({"tie_word_embeddings": tied})
    dead = () if tied else tuple(f"{head}_head.bias" for head in ("mim", "mlm", "mmm_image", "mmm_text"))
    model, params = round_trip(theirs, tmp_path, dead)
    if tied:
        check_all(run(our_heads, model, params), heads(theirs))


def test_the_base_model(tmp_path):
    theirs = make({"hidden_size": WIDTHS}, "FlavaModel")
    check_all(run(our_base, *round_trip(theirs, tmp_path)), base(theirs))


def test_the_codebook_is_left_out(tmp_path):
    theirs = make({"init_codebook": True})
    model, params = load(save(theirs, tmp_path / "hf"))
    save_hf(model, params, tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert {name for name in before if not name.startswith("image_codebook.")} == after.keys()
    assert all(value.tobytes() == before[name].tobytes() for name, value in after.items())
    back, info = hf.FlavaForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert back.image_codebook is None and not info["missing_keys"] and not info["unexpected_keys"]


def test_layer_by_layer(tmp_path):
    theirs = make({"hidden_size": WIDTHS}, "FlavaModel")
    theirs.multimodal_model.config.output_hidden_states = True
    text, image, masked = inputs(theirs)
    out = theirs(**text, **image, **masked)
    model, params = load(save(theirs, tmp_path / "hf"))
    forward, segments = bind(model, params)
    batch = forward.batch
    tokens = {"text": forward.encode("text"), "image": forward.encode("image", segments)}
    raw = {m: tuple((batch | segments).get(m + part) for part in ("", "_mask", "_segments")) for m in tokens}
    ours = {m: hidden_states(model, params, "encode", m, *raw[m]) for m in raw}
    joint = hidden_states(model, params, "fuse", "joint", tokens)
    ours["multimodal"] = [as_theirs(model, x_BTD) for x_BTD in joint]
    for name, where in (("text", MASK), ("image", None), ("multimodal", real("joint", 1 + 13 + T))):
        for layer, state in zip(out[f"{name}_output"].hidden_states[1:], ours[name], strict=True):
            assert_close(state, layer, where=where)


def test_another_size_of_image(tmp_path):
    theirs = make({"image_config.image_size": 8, "image_config.patch_size": 4}, "FlavaModel")
    pixels = PIXELS[:, :3, :16, :12]
    model, params = load(save(theirs, tmp_path / "hf"))
    forward = bound(model, params, {"image": pixels.transpose(0, 2, 3, 1)})
    ours = forward.fuse("image_normed", {"image": forward.encode("image")}, key="x").embeddings
    assert_close(ours, theirs.image_model(torch.tensor(pixels), interpolate_pos_encoding=True).last_hidden_state)


def test_gradient(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    out = heads(theirs)
    weights = {name: RNG.normal(size=tuple(value.shape)).astype(np.float32) for name, value in out.items()}
    weights |= {name: weights[name] * MASK[..., None] for name in ("masked_lm", "joint_masked_lm")}
    loss = sum((value * torch.tensor(weights[name])).sum() for name, value in out.items())

    def our_loss(p):
        return sum(((value * weights[name]).sum() for name, value in our_heads(model, p).items()), jnp.zeros(()))

    check_gradient(theirs, loss, model, params, jax.jit(our_loss))


def grouped(*values):
    return dict(zip(WIDTHS, values, strict=True))


HEAD_CHANGES = {
    "hidden_size": {"": 12} | grouped(12, 12, 12),
    "intermediate_size": grouped(16, 12, 20),
    "num_attention_heads": grouped(4, 6, 2),
    "hidden_act": grouped("relu", "gelu_new", "silu"),
    "layer_norm_eps": grouped(1e-2, 2e-2, 3e-2),
    "qkv_bias": {"text_config": False, "multimodal_config": False},
    "vocab_size": {"text_config": 41, "image_config": 19},
}
BASE_CHANGES = {
    "num_hidden_layers": grouped(1, 3, 1),
    "qkv_bias": {"image_config": False},
    "max_position_embeddings": {"text_config": 9},
    "type_vocab_size": {"text_config": 3},
    "image_size": {"image_config": [16, 8]},
    "patch_size": {"image_config": 4},
    "num_channels": {"image_config": 4},
    "mask_token": {"image_config": False},
    "use_cls_token": {"multimodal_config": False},
    "projection_dim": {"": 7},
}
TRAINING = {f"{g}.{name}" for g in WIDTHS for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
INERT = {
    **{f"image_codebook_config.{name}": 1 for name in ("num_groups", "input_channels", "num_blocks_per_group")},
    **{f"image_codebook_config.{name}": 16 for name in ("hidden_size", "vocab_size")},
    "image_codebook_config.freeze": False,
    "init_codebook": True,
    "layer_norm_eps": 1e-2,
    "tie_word_embeddings": False,
    "logit_scale_init_value": 1.0,
    "initializer_factor": 2.0,
    "skip_unmasked_multimodal_encoder": False,
    "return_loss": False,
    "ce_ignore_index": -1,
    "global_backprop_contrastive": False,
    **{f"{loss}_weight": 0.5 for loss in ("mim", "mlm", "global_contrastive", "itm", "mmm_image", "mmm_text")},
}


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("flava", hf.FlavaConfig())
    changed = [(field, group) for c in (HEAD_CHANGES, BASE_CHANGES) for field, groups in c.items() for group in groups]
    assert honoured_fields("flava") == {f"{group}.{field}".removeprefix(".") for field, group in changed} | TRAINING
    assert inert_fields("flava") == INERT.keys()
    usual = make().state_dict()

    def same(changes):
        theirs = make(changes.get("all"))
        theirs.load_state_dict(usual, strict=False)
        return theirs

    check_inert(same, lambda m: flat(heads(m)), {"all": INERT})


CASES = {"FlavaForPreTraining": (heads, our_heads, HEAD_CHANGES), "FlavaModel": (base, our_base, BASE_CHANGES)}


@pytest.mark.parametrize("name", CASES)
def test_honoured_fields(name, tmp_path):
    """Each field changes HuggingFace's outputs; all at once, with another value in each tower, they change both alike."""
    theirs, ours, changes = CASES[name]
    usual = flat(theirs(make(name=name)))
    for field, value in changes.items():
        for group, own in value.items():
            outputs = flat(theirs(make({field: value if field == "hidden_size" else {group: own}}, name)))
            changed = outputs.shape != usual.shape or np.abs(outputs - usual).max() > 1e-4 * np.abs(usual).max()
            assert changed, f"{group}.{field}={own!r} changes nothing"
    together = {"all": changes}
    build = lambda c: make(c.get("all"), name)  # noqa: E731
    check_honoured(build, lambda m: flat(theirs(m)), lambda m, p: flat(run(ours, m, p)), together, tmp_path)


def test_dropout_rates(tmp_path):
    rates = {"hidden_dropout_prob": grouped(0.1, 0.2, 0.3), "attention_probs_dropout_prob": grouped(0.4, 0.5, 0.6)}
    model, _ = load(save(make(rates), tmp_path / "hf"))
    parts = (model.encoders["text"], model.encoders["image"], model.fusions["joint"])
    assert [(p.dropout, p.attention_dropout) for p in parts] == [(0.1, 0.4), (0.2, 0.5), (0.3, 0.6)]


def test_refusals_and_old_configs(tmp_path):
    folder = save(make(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())

    def load_with(**changes):
        (folder / "config.json").write_text(json.dumps(config | changes))
        return load(folder)

    with pytest.raises(
        UserError, match=r"^hidden_size=12 is not supported here: the heads need multimodal_config.hidden_size=24"
    ):
        load_with(hidden_size=12)
    with pytest.raises(UserError, match=r"text_config.position_embedding_type='relative_key' is not supported by flava here"):
        load_with(text_config=config["text_config"] | {"position_embedding_type": "relative_key"})
    with pytest.raises(UserError, match="patch_size=5 must divide it"):
        load_with(image_config=config["image_config"] | {"patch_size": 5})
    old = {f"{group}_dict": config[group] for group in WIDTHS}
    model, params = load_with(**old, **{group: {"hidden_size": 99} for group in WIDTHS}, torch_dtype="float32")
    save_hf(model, params, tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert not written.keys() & old.keys()
    assert {g: {f: written[g][f] for f in SIZES[g]} for g in WIDTHS} == {g: SIZES[g] for g in WIDTHS}


def weight_and_bias(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def test_the_public_checkpoint_maps_completely():
    """facebook/flava-full: FlavaForPreTraining with its codebook, biases of the heads twice."""
    listed = {
        "flava.logit_scale": (),
        "flava.image_model.embeddings.cls_token": (1, 1, 768),
        "flava.image_model.embeddings.mask_token": (1, 1, 768),
        "flava.image_model.embeddings.position_embeddings": (1, 197, 768),
        **weight_and_bias("flava.image_model.embeddings.patch_embeddings.projection", 768, 3, 16, 16),
        "flava.text_model.embeddings.position_ids": (1, 512),
        "flava.text_model.embeddings.word_embeddings.weight": (30522, 768),
        "flava.text_model.embeddings.position_embeddings.weight": (512, 768),
        "flava.text_model.embeddings.token_type_embeddings.weight": (2, 768),
        **weight_and_bias("flava.text_model.embeddings.LayerNorm", 768),
        "flava.multimodal_model.cls_token": (1, 1, 768),
        **weight_and_bias("itm_head.pooler.dense", 768, 768),
        **weight_and_bias("itm_head.seq_relationship", 2, 768),
        **weight_and_bias("image_codebook.blocks.input", 256, 3, 7, 7),
        **weight_and_bias("image_codebook.blocks.group_2.group.block_1.id_path", 512, 256, 1, 1),
        **weight_and_bias("image_codebook.blocks.group_4.group.block_2.res_path.path.conv_4", 2048, 512, 1, 1),
        **weight_and_bias("image_codebook.blocks.output.conv", 8192, 2048, 1, 1),
    }
    for name in ("image_projection", "text_projection", "image_to_mm_projection", "text_to_mm_projection"):
        listed |= weight_and_bias(f"flava.{name}", 768, 768)
    for tower, depth in (("image", 12), ("text", 12), ("multimodal", 6)):
        listed |= weight_and_bias(f"flava.{tower}_model.layernorm", 768)
        listed |= weight_and_bias(f"flava.{tower}_model.pooler.dense", 768, 768)
        for layer in range(depth):
            at = f"flava.{tower}_model.encoder.layer.{layer}"
            for name in ("query", "key", "value"):
                listed |= weight_and_bias(f"{at}.attention.attention.{name}", 768, 768)
            listed |= weight_and_bias(f"{at}.attention.output.dense", 768, 768)
            listed |= weight_and_bias(f"{at}.intermediate.dense", 3072, 768)
            listed |= weight_and_bias(f"{at}.output.dense", 768, 3072)
            listed |= weight_and_bias(f"{at}.layernorm_before", 768) | weight_and_bias(f"{at}.layernorm_after", 768)
    for head, size in (("mim", 8192), ("mlm", 30522), ("mmm_image", 8192), ("mmm_text", 30522)):
        listed |= weight_and_bias(f"{head}_head.transform.dense", 768, 768)
        listed |= weight_and_bias(f"{head}_head.transform.LayerNorm", 768)
        listed |= weight_and_bias(f"{head}_head.decoder", size, 768) | {f"{head}_head.bias": (size,)}
    map_completely("flava", "FlavaForPreTraining", {}, listed)
