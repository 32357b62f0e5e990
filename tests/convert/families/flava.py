"""FLAVA. Its heads predict from masked inputs, and its contrastive space and FlavaModel read plain ones."""

import jax.numpy as jnp
import numpy as np
import torch
from cases import MASK, PIXELS, SEGMENTS, Case, Layers, Made, Published, Together, answered, given, image_config, layered, words
from parity import part

from families.listed import linear, linears, stack, vit_layer
from mmjax.convert.vit import pair

STACK = {"hidden_size": 24, "num_attention_heads": 3, "layer_norm_eps": 1e-5, "num_hidden_layers": 2}
WIDTHS = {"text_config": 18, "image_config": 36, "multimodal_config": 12}  # FlavaModel's may differ
T = MASK.shape[1]
HIDDEN_IDS = np.random.default_rng(3).integers(1, 37, MASK.shape).astype(np.int32)
HIDDEN = np.random.default_rng(4).random((3, 64)) < 0.4  # patches


def batch(model):
    """A text, the same with words hidden, an image, and which of its patches are."""
    config = image_config(model.config)
    (height, width), (rows, columns) = pair(config.image_size), pair(config.patch_size)
    return {
        "text": words(),
        "text_hidden": HIDDEN_IDS,
        "text_mask": MASK,
        "text_segments": SEGMENTS,
        "image": PIXELS[:, :height, :width, : config.num_channels],
        "image_segments": HIDDEN[:, : height // rows * (width // columns)],
    }


def arguments(model, batch):
    """HuggingFace's for the text, for the image, and for what is hidden of it."""
    known = given(model, batch, ("interpolate_pos_encoding",))
    hidden = {"bool_masked_pos": known.pop("bool_masked_pos")}
    image = {"pixel_values": known.pop("pixel_values")}
    return known, image, hidden


def predictions(model, batch):
    """All that FlavaForPreTraining predicts."""
    text, image, hidden = arguments(model, batch)
    text["input_ids_masked"] = torch.tensor(batch["text_hidden"].astype(np.int64))
    both = model(**text, **image, **hidden, return_loss=False)
    return {
        "match": both.itm_logits,
        "joint_masked_lm": both.mmm_text_logits,
        "joint_masked_image": both.mmm_image_logits,
        "scaled": both.contrastive_logits_per_image,
        "masked_lm": model(**text, return_loss=False).mlm_logits,
        "masked_image": model(**image, **hidden, return_loss=False).mim_logits,
    }


def plain(model, batch):
    """What FlavaModel gives."""
    text, image, _ = arguments(model, batch)
    out = model(**text, **image)
    projected = {"text": model.get_text_features(**text), "image": model.get_image_features(**image)}
    return {
        "tokens.text_normed": out.text_embeddings,
        "tokens.image_normed": out.image_embeddings,
        "tokens.joint": out.multimodal_embeddings,
        "text_pooler": out.text_output.pooler_output,
        "image_pooler": out.image_output.pooler_output,
        "pooler": out.multimodal_output.pooler_output,
        **{f"unit.{m}": torch.nn.functional.normalize(x.pooler_output[:, 0], dim=-1) for m, x in projected.items()},
    }


def with_masks(model, batch, hidden):
    """Our batch, hidden or plain."""
    patches = batch["image_segments"].astype(np.int32) * hidden
    own = {"text": batch["text_hidden" if hidden else "text"], "image_segments": patches}
    kept = {name: x for name, x in {**batch, **own}.items() if name != "text_hidden"}
    return kept if model.encoders["image"].mask_token else {n: x for n, x in kept.items() if n != "image_segments"}


def ours(model, params, batch, names):
    """The heads of pretraining read what is hidden, and the rest what is plain."""
    masked = [name for name in names if name != "scaled"] if "match" in names else []
    found = answered(model, params, with_masks(model, batch, True), masked)
    found |= answered(model, params, with_masks(model, batch, False), [name for name in names if name not in masked])
    if "joint_masked_lm" in found:
        found["joint_masked_lm"] = found["joint_masked_lm"][:, 1 : 1 + T]
        found["joint_masked_image"] = found["joint_masked_image"][:, 2 + T :]
    if "tokens.joint" in found:
        found["tokens.joint"] = as_theirs(model, found["tokens.joint"])
    return found


def as_theirs(model, x_BTD):
    """The joint tokens in HuggingFace's order, the text last."""
    if not model.fusions["joint"].cls_token:
        return x_BTD
    return jnp.concatenate([x_BTD[:, :1], x_BTD[:, 1 + T :], x_BTD[:, 1 : 1 + T]], axis=1)


def real(name, batch, length):
    """Which tokens count: [B, T] of what has a text's, None where all do."""
    if name in ("masked_lm", "joint_masked_lm", "tokens.text_normed", "text"):
        return MASK
    joint = name in ("tokens.joint", "joint")
    return np.pad(MASK, ((0, 0), (length - T, 0)), constant_values=True) if joint else None


def their_states(model, batch):
    text, image, hidden = arguments(model, batch)
    model.multimodal_model.config.output_hidden_states = True
    out = model(**text, **image, **hidden)
    names = {"text": "text", "image": "image", "joint": "multimodal"}
    return {ours: out[f"{theirs}_output"].hidden_states[1:] for ours, theirs in names.items()}


def our_states(model, params, batch):
    own = {**with_masks(model, batch, True), "text": batch["text"]}

    def states(model, params, batch):
        return {name: layered(model, params, batch, name) for name in ("text", "image", "joint")}

    found = part(states, model, params, ("encoders", "fusions.joint"), own)
    return found | {"joint": [as_theirs(model, x) for x in found["joint"]]}


def each(name, *values):
    """A field of the three encoders."""
    return {f"{group}.{name}": value for group, value in zip(WIDTHS, values, strict=True)}


PRETRAINING = Made("FlavaForPreTraining", predictions)
BASE = Made("FlavaModel", plain)
OWN_WIDTHS = BASE.of({f"{group}.hidden_size": width for group, width in WIDTHS.items()})
PARTS = ("encoders.text", "encoders.image", "fusions.joint")
RATES = {
    f"{group}.{field}": (value, (f"{part}.{leaf}",))
    for field, leaf, values in (
        ("hidden_dropout_prob", "dropout", (0.1, 0.2, 0.3)),
        ("attention_probs_dropout_prob", "attention_dropout", (0.4, 0.5, 0.6)),
    )
    for group, part, value in zip(WIDTHS, PARTS, values, strict=True)
}
CODEBOOK = ("num_groups", "input_channels", "num_blocks_per_group")
LOSSES = ("mim", "mlm", "global_contrastive", "itm", "mmm_image", "mmm_text")


def tower(name, depth):
    return {
        **stack(f"flava.{name}_model.encoder.layer", depth, vit_layer()),
        **linear(f"flava.{name}_model.layernorm", 768),
        **linear(f"flava.{name}_model.pooler.dense", 768, 768),
    }


def masked_head(name, size):
    return {
        **linear(f"{name}_head.transform.dense", 768, 768),
        **linear(f"{name}_head.transform.LayerNorm", 768),
        **linear(f"{name}_head.decoder", size, 768),
        f"{name}_head.bias": (size,),
    }


LISTED = {
    "flava.logit_scale": (),
    "flava.image_model.embeddings.cls_token": (1, 1, 768),
    "flava.image_model.embeddings.mask_token": (1, 1, 768),
    "flava.image_model.embeddings.position_embeddings": (1, 197, 768),
    **linear("flava.image_model.embeddings.patch_embeddings.projection", 768, 3, 16, 16),
    "flava.text_model.embeddings.position_ids": (1, 512),
    "flava.text_model.embeddings.word_embeddings.weight": (30522, 768),
    "flava.text_model.embeddings.position_embeddings.weight": (512, 768),
    "flava.text_model.embeddings.token_type_embeddings.weight": (2, 768),
    **linear("flava.text_model.embeddings.LayerNorm", 768),
    "flava.multimodal_model.cls_token": (1, 1, 768),
    **linears("flava.{image_projection text_projection image_to_mm_projection text_to_mm_projection}", 768, 768),
    **tower("image", 12),
    **tower("text", 12),
    **tower("multimodal", 6),
    **linear("itm_head.pooler.dense", 768, 768),
    **linear("itm_head.seq_relationship", 2, 768),
    **masked_head("mim", 8192),
    **masked_head("mlm", 30522),
    **masked_head("mmm_image", 8192),
    **masked_head("mmm_text", 30522),
    **linear("image_codebook.blocks.input", 256, 3, 7, 7),
    **linear("image_codebook.blocks.group_2.group.block_1.id_path", 512, 256, 1, 1),
    **linear("image_codebook.blocks.group_4.group.block_2.res_path.path.conv_4", 2048, 512, 1, 1),
    **linear("image_codebook.blocks.output.conv", 8192, 2048, 1, 1),
}

FLAVA = Case(
    "flava",
    sizes={
        "text_config": STACK
        | {"vocab_size": 37, "max_position_embeddings": 13, "num_hidden_layers": 3, "intermediate_size": 20},
        "image_config": STACK | {"image_size": [8, 12], "patch_size": [4, 2], "vocab_size": 17, "intermediate_size": 28},
        "multimodal_config": STACK | {"intermediate_size": 16},
        "image_codebook_config": {"hidden_size": 8, "vocab_size": 17},
        "hidden_size": 24,
        "projection_dim": 14,
        "init_codebook": False,
    },
    batch=batch,
    models=(PRETRAINING, PRETRAINING.of({"tie_word_embeddings": False}), OWN_WIDTHS),
    honoured=(
        (
            PRETRAINING,
            {
                **each("hidden_act", "relu", "gelu_new", "silu"),
                **each("layer_norm_eps", 1e-2, 2e-2, 3e-2),
                "text_config.vocab_size": 41,
                "image_config.vocab_size": 19,
                # Its heads need one width everywhere.
                "hidden_size": Together(12, each("hidden_size", 12, 12, 12)),
            },
        ),
        (
            BASE,
            {
                **each("hidden_size", *WIDTHS.values()),
                **each("num_hidden_layers", 1, 3, 1),
                **each("num_attention_heads", 4, 6, 2),
                **each("intermediate_size", 16, 12, 20),
                **each("qkv_bias", False, False, False),
                "text_config.max_position_embeddings": 9,
                "text_config.type_vocab_size": 3,
                "image_config.image_size": [16, 6],
                "image_config.patch_size": [2, 4],
                "image_config.num_channels": 4,
                "image_config.mask_token": False,
                "multimodal_config.use_cls_token": False,
                "projection_dim": 7,
            },
        ),
    ),
    training=((PRETRAINING, RATES),),
    inert=(
        (
            PRETRAINING,
            {
                **{f"image_codebook_config.{name}": 1 for name in CODEBOOK},
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
                **{f"{loss}_weight": 0.5 for loss in LOSSES},
            },
        ),
    ),
    refused={"text_config.position_embedding_type": "relative_key"},
    mistakes=(
        ({"hidden_size": 12}, "^hidden_size=12 is not supported here: the heads need multimodal_config.hidden_size=24"),
        ({"image_config.patch_size": 5}, "patch_size=5 must divide it"),
    ),
    layers=Layers(OWN_WIDTHS, their_states, ours=our_states),
    gradient=PRETRAINING,
    # facebook/flava-full: FlavaForPreTraining with its codebook, biases of the heads twice.
    published=(Published("FlavaForPreTraining", {}, LISTED),),
    ours=ours,
    real=real,
)
