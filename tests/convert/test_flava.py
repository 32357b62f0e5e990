"""FLAVA beside HuggingFace's."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from flava_parity import (
    MASK,
    PIXELS,
    RNG,
    SIZES,
    WIDTHS,
    T,
    base,
    check_all,
    differ,
    flat,
    heads,
    inputs,
    make,
    our_base,
    our_heads,
    real,
    states,
    towers,
)
from parity import (
    assert_close,
    bound,
    check_gradient,
    check_inert,
    check_table,
    explain,
    honoured_fields,
    inert_fields,
    map_completely,
    part,
    round_trip,
    save,
)

from mmjax.convert import load, save_hf
from mmjax.core.errors import UserError


@pytest.mark.parametrize("tied", [True, False])
def test_the_heads_of_pretraining(tied, tmp_path):
    theirs = make({"tie_word_embeddings": tied})
    model, params = round_trip(theirs, tmp_path)
    assert len(model.unread) == (0 if tied else 4)
    if tied:
        check_all(our_heads(model, params), heads(theirs))


def test_the_base_model(tmp_path):
    theirs = make({"hidden_size": WIDTHS}, "FlavaModel")
    check_all(our_base(*round_trip(theirs, tmp_path)), base(theirs))


def test_the_codebook_is_kept(tmp_path):
    theirs = make({"init_codebook": True})
    model, _ = round_trip(theirs, tmp_path)
    codebook = {name: tuple(x.shape) for name, x in theirs.state_dict().items() if name.startswith("image_codebook.")}
    assert model.unread == codebook and len(codebook) == 74


def test_a_file_that_lacks_the_codebook_has_none(tmp_path):
    """config.json may promise one all the same: it does so by default."""
    folder = save(make(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({n: value for n, value in config.items() if n != "init_codebook"}))
    save_hf(*load(folder), tmp_path / "back")
    back, info = hf.FlavaForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert back.image_codebook is None and not info["missing_keys"] and not info["unexpected_keys"]


def test_layer_by_layer(tmp_path):
    theirs = make({"hidden_size": WIDTHS}, "FlavaModel")
    theirs.multimodal_model.config.output_hidden_states = True
    text, image, masked = inputs(theirs)
    out = theirs(**text, **image, **masked)
    model, params = load(save(theirs, tmp_path / "hf"))
    tokens = {"text": towers(model, params, masked=False)[0]["text"], "image": towers(model, params)[0]["image"]}
    ours = part(states, model, params, ("encoders", "fusions.joint"), tokens)
    for name, where in (("text", MASK), ("image", None), ("multimodal", real("joint", 1 + 13 + T))):
        for layer, state in zip(out[f"{name}_output"].hidden_states[1:], ours[name], strict=True):
            assert_close(state, layer, where=where)


def test_another_size_of_image(tmp_path):
    theirs = make({"image_config.image_size": 8, "image_config.patch_size": 4}, "FlavaModel")
    pixels = PIXELS[:, :3, :16, :12]
    model, params = load(save(theirs, tmp_path / "hf"))

    def normed(model, params):
        forward = bound(model, params, {"image": pixels.transpose(0, 2, 3, 1)})
        return forward.fuse("image_normed", {"image": forward.encode("image")}, key="x").embeddings

    ours = part(normed, model, params, ("encoders.image", "fusions.image_normed"))
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

    check_gradient(theirs, loss, model, params, our_loss)


def fields(name, *values):
    return {f"{group}.{name}": value for group, value in zip(WIDTHS, values, strict=True)}


HEAD_CHANGES = {  # what the heads of pretraining have a part in
    **fields("hidden_act", "relu", "gelu_new", "silu"),
    **fields("layer_norm_eps", 1e-2, 2e-2, 3e-2),
    "text_config.vocab_size": 41,
    "image_config.vocab_size": 19,
}
BASE_CHANGES = {
    **fields("hidden_size", *WIDTHS.values()),
    **fields("num_hidden_layers", 1, 3, 1),
    **fields("num_attention_heads", 4, 6, 2),
    **fields("intermediate_size", 16, 12, 20),
    **fields("qkv_bias", False, False, False),
    "text_config.max_position_embeddings": 9,
    "text_config.type_vocab_size": 3,
    "image_config.image_size": [16, 6],
    "image_config.patch_size": [2, 4],
    "image_config.num_channels": 4,
    "image_config.mask_token": False,
    "multimodal_config.use_cls_token": False,
    "projection_dim": 7,
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
    assert honoured_fields("flava") == HEAD_CHANGES.keys() | BASE_CHANGES.keys() | TRAINING | {"hidden_size"}
    assert inert_fields("flava") == INERT.keys()
    usual = make().state_dict()

    def same(changes):
        theirs = make(changes.get("all"))
        theirs.load_state_dict(usual, strict=False)
        return theirs

    check_inert(same, lambda m: flat(heads(m)), {"all": INERT})


CASES = {"FlavaForPreTraining": (heads, our_heads, HEAD_CHANGES), "FlavaModel": (base, our_base, BASE_CHANGES)}


@pytest.mark.parametrize("group", [*WIDTHS, ""])
@pytest.mark.parametrize("name", CASES)
def test_each_honoured_field_is_ours(name, group, tmp_path):
    changes = {field: {field: value} for field, value in CASES[name][2].items() if field.rpartition(".")[0] == group}
    if (name, group) == ("FlavaForPreTraining", ""):  # its heads need one width everywhere
        changes["hidden_size"] = {"hidden_size": {"": 12} | dict.fromkeys(WIDTHS, 12)}
    theirs, ours, _ = CASES[name]
    usual = theirs(make(name=name))
    for field, change in changes.items():
        changed = make(change, name)
        expected = theirs(changed)
        assert any(differ(expected[output], usual[output]) for output in usual), f"{field} changes nothing"
        with explain(field):
            check_all(ours(*load(save(changed, tmp_path / field))), expected)


def test_dropout_rates(tmp_path):
    rates = fields("hidden_dropout_prob", 0.1, 0.2, 0.3) | fields("attention_probs_dropout_prob", 0.4, 0.5, 0.6)
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
