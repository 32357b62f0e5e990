"""FLAVA (Singh et al. 2022): the three encoders with what joins them, and the heads of pretraining.

HuggingFace's towers end in a norm that its multimodal encoder does not read: it projects what comes before. So our encoders
have no last norm; `image_normed` and `text_normed` are fusions of one modality that hold just that norm, and the poolers and
heads of the towers, and the contrastive space `dual`, read those.

The multimodal encoder is the single stream "joint": the class token, the text, the image. HuggingFace has the text last; the
encoder knows no positions, so only the order of its tokens differs (without a class token ours is theirs, whose pooler reads
the image's first). A head over "joint" gives logits of all its tokens, the text's and the image's.

Which patches are masked is `image_segments` [B, P], 1 = masked (`bool_masked_pos`).

`image_codebook`, the discrete VAE that turns images into labels for masked image modelling, is read by no forward pass here:
its tensors are kept as they are. A model that came without them is written with `init_codebook=False`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.convert.clip import drop_old_groups, nested
from mmjax.convert.config_paths import get
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert, Only
from mmjax.convert.layout import Row, Table, linear, norm, table
from mmjax.convert.vit import embeddings, layers, pair, side, whole_patches
from mmjax.convert.weights import Weights
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual, SingleStream
from mmjax.models.heads import Classifier, TokenClassifier

TEXT, IMAGE, JOINT = "encoders.text", "encoders.image", "fusions.joint"
TOWERS = ("image", "text")
GROUPS = ("text_config", "image_config", "multimodal_config", "image_codebook_config")
# HuggingFace's heads of masked prediction -> ours; they have the activation and epsilon of the tower whose tokens they name.
IMAGE_HEADS = {"mim_head": "masked_image", "mmm_image_head": "joint_masked_image"}
TEXT_HEADS = {"mlm_head": "masked_lm", "mmm_text_head": "joint_masked_lm"}
MASKED_HEADS = IMAGE_HEADS | TEXT_HEADS


def _pooler(source: str) -> Classifier:
    return Classifier(classes=0, input=source, pool="cls", hidden_width=1, activation="tanh")


def _normed(modality: str) -> SingleStream:
    """The last norm of a tower, alone."""
    return SingleStream(modalities=(modality,), types=(0,), depth=0, heads=1)


def _model(config: Config, **heads: Any) -> Multimodal:
    order = ("text", "image") if get(config, "multimodal_config.use_cls_token", True) else ("image", "text")
    normed = {tower: f"{tower}_normed" for tower in TOWERS}
    dual = Dual(pool=dict.fromkeys(TOWERS, "cls"), bias=True, through=normed, max_scale=0.0)
    joint = SingleStream(modalities=order, types=(0, 0), cls_token=True, project=True)
    return Multimodal(
        encoders={
            "image": ViT(cls_token=True, mask_token=True, final_norm=False),
            "text": TextTransformer(segments=2, embed_norm=True, final_norm=False),
        },
        fusions={**{name: _normed(tower) for tower, name in normed.items()}, "dual": dual, "joint": joint},
        heads={
            "image_pooler": _pooler("image_normed"),
            "text_pooler": _pooler("text_normed"),
            "pooler": _pooler("joint"),
            **heads,
        },
    )


def _pretraining(config: Config) -> Multimodal:
    width = get(config, "multimodal_config.hidden_size", 768)
    for field in ("hidden_size", "text_config.hidden_size", "image_config.hidden_size"):
        if (found := get(config, field, 768)) != width:
            raise UserError(f"{field}={found!r} is not supported here: the heads need multimodal_config.hidden_size={width!r}")
    return _model(
        config,
        masked_image=TokenClassifier(input="image_normed"),
        masked_lm=TokenClassifier(input="text_normed"),
        joint_masked_image=TokenClassifier(input="joint"),
        joint_masked_lm=TokenClassifier(input="joint"),
        match=Classifier(classes=2, input="joint", pool="cls", hidden_width=1, activation="tanh"),
    )


def _stack_fields(part: str, also: Mapping[str, tuple[str, ...]]) -> dict[str, ConfigField]:
    """The fields of a stack of layers in `part` of the model; `also`: field -> further dotted paths that it sets."""

    fields: dict[str, tuple[str, Any]] = {
        "hidden_size": ("width", 768),
        "num_hidden_layers": ("depth", 6 if part == JOINT else 12),
        "num_attention_heads": ("heads", 12),
        "intermediate_size": ("mlp_width", 3072),
        "hidden_act": ("activation", "gelu"),
        "hidden_dropout_prob": ("dropout", 0.0),
        "attention_probs_dropout_prob": ("attention_dropout", 0.0),
        "layer_norm_eps": ("norm_epsilon", 1e-12),
        "qkv_bias": ("qkv_bias", True),
    }
    return {
        name: Honoured(default, (f"{part}.{leaf}", *also.get(name, ())), ACTIVATIONS if name == "hidden_act" else {})
        for name, (leaf, default) in fields.items()
    }


def _tower_fields(tower: str, heads: Mapping[str, str], own: Mapping[str, ConfigField], vocab: int) -> dict[str, ConfigField]:
    paths = [f"heads.{head}" for head in heads.values()]
    words = (f"{TEXT}.vocab_size",) if tower == "text" else ()
    also = {
        "hidden_size": (f"fusions.{tower}_normed.width", f"heads.{tower}_pooler.hidden_width"),
        "layer_norm_eps": (f"fusions.{tower}_normed.norm_epsilon", *[f"{path}.norm_epsilon" for path in paths]),
        "hidden_act": tuple(f"{path}.activation" for path in paths),
    }
    fields = _stack_fields(f"encoders.{tower}", also)
    return {**fields, **own, "vocab_size": Honoured(vocab, (*words, *[f"{path}.classes" for path in paths]))}


LOSS = Inert("only of the loss; objectives do that here")
INITIAL = Inert("only initialises")
CODEBOOK = Inert("of the codebook, which no forward pass here reads; its tensors are kept")
TEXT_OWN: dict[str, ConfigField] = {
    "type_vocab_size": Honoured(2, (f"{TEXT}.segments",)),
    "max_position_embeddings": Honoured(512, (f"{TEXT}.max_length",)),
    "position_embedding_type": Only(("absolute",)),
}
IMAGE_OWN: dict[str, ConfigField] = {
    "image_size": Honoured(224, (f"{IMAGE}.image_size",), read=pair, write=side, kind="wholes"),
    "patch_size": Honoured(16, (f"{IMAGE}.patch",), read=pair, write=side, kind="wholes"),
    "num_channels": Honoured(3, (f"{IMAGE}.channels",)),
    "mask_token": Honoured(True, (f"{IMAGE}.mask_token",)),
}
JOINT_FIELDS: dict[str, ConfigField] = {
    **_stack_fields(JOINT, {"hidden_size": ("heads.pooler.hidden_width",)}),
    "use_cls_token": Honoured(True, (f"{JOINT}.cls_token",)),
}
CODEBOOK_FIELDS = ("num_groups", "input_channels", "num_blocks_per_group", "hidden_size", "vocab_size", "freeze")
FIELDS: dict[str, ConfigField] = {
    **nested("text_config", _tower_fields("text", TEXT_HEADS, TEXT_OWN, 30522)),
    **nested("image_config", _tower_fields("image", IMAGE_HEADS, IMAGE_OWN, 8192)),
    **nested("multimodal_config", JOINT_FIELDS),
    **nested("image_codebook_config", dict.fromkeys(CODEBOOK_FIELDS, CODEBOOK)),
    "init_codebook": CODEBOOK,
    "hidden_size": Honoured(768, ("heads.match.hidden_width",)),
    "projection_dim": Honoured(768, ("fusions.dual.width",)),
    "layer_norm_eps": Inert("nothing reads it; each tower has its own"),
    "tie_word_embeddings": Inert("ties copies of biases that nothing reads"),
    "logit_scale_init_value": INITIAL,
    "initializer_factor": INITIAL,
    "skip_unmasked_multimodal_encoder": Inert("whether an output is there, not what it is"),
    "return_loss": LOSS,
    "ce_ignore_index": LOSS,
    "global_backprop_contrastive": LOSS,
    **dict.fromkeys(
        ("mim_weight", "mlm_weight", "global_contrastive_weight", "itm_weight", "mmm_image_weight", "mmm_text_weight"), LOSS
    ),
}


def complete(config: Config) -> Config:
    """Where an old file has `text_config_dict` and the like, it and its defaults replace the group beside it.

    Raises:
      UserError: a patch that does not divide the image.
    """
    old = {group: config.get(f"{group}_dict") for group in GROUPS}
    config = {**config, **{group: held for group, held in old.items() if held is not None}}
    whole_patches({"image_size": 224, "patch_size": 16} | dict(config.get("image_config") or {}))
    return config


def _restore(config: dict[str, Any]) -> dict[str, Any]:
    return {"init_codebook": False} | drop_old_groups(config, FIELDS)


def _observe(config: Config, weights: Weights) -> Config:
    """The codebook is there where config.json has one, as it does by default, and the files hold it."""
    held = any(name.startswith("image_codebook.") for name in weights.names)
    return {**config, "init_codebook": held and config.get("init_codebook", True)}


def _unread(model: Multimodal, architecture: str) -> tuple[str, ...]:
    kept = architecture == "FlavaForPreTraining" and model.huggingface.get("init_codebook", False)
    return (r"^image_codebook\.",) if kept else ()


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    p = "" if architecture == "FlavaModel" else "flava."
    image, text, joint = model.encoders["image"], model.encoders["text"], model.fusions["joint"]
    rows = [
        *embeddings(f"{p}image_model.embeddings", "encoders_image", image),
        *_tower(f"{p}image_model", "encoders_image", "fusions_image_normed", "heads_image_pooler", image),
        *table(f"{p}text_model.embeddings.word_embeddings.weight", "encoders_text/words"),
        *table(f"{p}text_model.embeddings.position_embeddings.weight", "encoders_text/position"),
        *table(f"{p}text_model.embeddings.token_type_embeddings.weight", "encoders_text/segment"),
        *norm(f"{p}text_model.embeddings.LayerNorm", "encoders_text/embed_norm"),
        *_tower(f"{p}text_model", "encoders_text", "fusions_text_normed", "heads_text_pooler", text),
        *_tower(f"{p}multimodal_model", "fusions_joint", "fusions_joint", "heads_pooler", joint),
        Row(f"{p}logit_scale", ("fusions_dual/scale_logit",), Table()),
    ]
    if image.mask_token:
        rows.append(Row(f"{p}image_model.embeddings.mask_token", ("encoders_image/mask_token",), Table(lead=1)))
    if joint.cls_token:
        rows.append(Row(f"{p}multimodal_model.cls_token", ("fusions_joint/cls",), Table(lead=1)))
    for tower in TOWERS:
        rows += linear(f"{p}{tower}_projection", f"fusions_dual/project_{tower}")
        rows += linear(f"{p}{tower}_to_mm_projection", f"fusions_joint/project_{tower}")
    if "match" in model.heads:
        rows += linear("itm_head.pooler.dense", "heads_match/project")
        rows += linear("itm_head.seq_relationship", "heads_match/logits")
    for theirs, head in MASKED_HEADS.items():
        if head in model.heads:
            rows += _masked(theirs, f"heads_{head}", tied=get(model.huggingface, "tie_word_embeddings", True))
    return rows


def _tower(theirs: str, ours: str, normed: str, pooler: str, stack: Any) -> list[Row]:
    """The rows of a stack, the norm after it and the pooler."""
    return [
        *layers(f"{theirs}.encoder.layer", f"{ours}/stack", stack.depth, stack.qkv_bias),
        *norm(f"{theirs}.layernorm", f"{normed}/stack/final_norm"),
        *linear(f"{theirs}.pooler.dense", f"{pooler}/project"),
    ]


def _masked(theirs: str, ours: str, tied: bool) -> list[Row]:
    """The rows of a head of masked prediction; files with untied biases have one more, which no forward pass reads."""
    weight, bias = linear(f"{theirs}.decoder", f"{ours}/logits")
    return [
        *linear(f"{theirs}.transform.dense", f"{ours}/project"),
        *norm(f"{theirs}.transform.LayerNorm", f"{ours}/norm"),
        weight,
        bias if tied else Row(bias.theirs, bias.ours, bias.layout, copies=(f"{theirs}.bias",)),
    ]


FLAVA = Family(
    model_type="flava",
    texts=("text_config",),
    reads=("input_ids", "token_type_ids", "attention_mask"),
    models={"FlavaModel": _model, "FlavaForPreTraining": _pretraining},
    fields=FIELDS,
    rows=_rows,
    unread=_unread,
    constants={"fusions_dual/bias_logit": 0.0},
    prefix="flava.",
    dropped=(r"embeddings\.position_ids$", r"^image_codebook\.", r"^(mim|mlm|mmm_image|mmm_text)_head\.bias$"),
    complete=complete,
    observe=_observe,
    restore=_restore,
)
