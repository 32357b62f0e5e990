"""ViLT (Kim et al. 2021): base, masked LM, question answering, retrieval, tagging, and NLVR2's statements about several images.

Ours is a single stream "joint" over bare embeddings of the text and of the patches. A token head gives logits of patches too,
after the text's. The image may be padded (`image_mask`, [B, H, W] True = a real pixel), as HuggingFace's `pixel_mask`.
"""

from __future__ import annotations

from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.config_paths import get
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Only, Tie
from mmjax.convert.layout import Row, Table, Vector, linear, norm, table
from mmjax.convert.vit import embeddings, layers, pair, side, whole_patches
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import SingleStream
from mmjax.models.heads import Classifier, TokenClassifier

TEXT, IMAGE, JOINT = "encoders.text", "encoders.image", "fusions.joint"
POOLED = ("pooler", "classes", "match")  # heads over the pooler


def _model(config: Config, images: int = 1, **heads: Any) -> Multimodal:
    types = (1, get(config, "modality_type_vocab_size", 2) - 1)
    return Multimodal(
        encoders={
            "text": TextTransformer(depth=0, segments=2, embed_norm=True),
            "image": ViT(depth=0, cls_token=True, resize="bilinear", images=images),
        },
        fusions={"joint": SingleStream(types=types, parts=images)},
        heads=heads,
    )


def _pooled(classes: int, **hidden: Any) -> Classifier:
    """Tanh layer on the first token; then, where there are classes, `hidden` and logits."""
    return Classifier(classes=classes, input="joint", pool="cls", hidden_width=1, activation="tanh", **hidden)


def _masked_lm(config: Config) -> Multimodal:
    head = TokenClassifier(input="joint", tied_to="text" if get(config, "tie_word_embeddings", True) else "")
    return _model(config, masked_lm=head, pooler=_pooled(0))


def _token_classes(config: Config) -> Multimodal:
    return _model(config, token_classes=TokenClassifier(classes=labels(config), input="joint", transform=False))


def _answers(config: Config) -> Multimodal:
    width = 2 * get(config, "hidden_size", 768)
    return _model(config, classes=_pooled(labels(config), normed_width=width, norm_epsilon=1e-5))


def _several_images(config: Config) -> Multimodal:
    images = get(config, "num_images", -1)
    width = images * get(config, "hidden_size", 768)
    return _model(config, images, classes=_pooled(labels(config), normed_width=width, norm_epsilon=1e-5, parts=images))


MODELS = {
    "ViltModel": lambda c: _model(c, pooler=_pooled(0)),
    "ViltForMaskedLM": _masked_lm,
    "ViltForQuestionAnswering": _answers,
    "ViltForImageAndTextRetrieval": lambda c: _model(c, match=_pooled(1)),
    "ViltForTokenClassification": _token_classes,
    "ViltForImagesAndTextClassification": _several_images,
}

DECODER, WORDS = "mlm_score.decoder.weight", "vilt.embeddings.text_embeddings.word_embeddings.weight"
EVERY = (TEXT, IMAGE, JOINT)
FIELDS: dict[str, ConfigField] = {
    "vocab_size": Honoured(30522, (f"{TEXT}.vocab_size", "heads.masked_lm.classes")),
    "type_vocab_size": Honoured(2, (f"{TEXT}.segments",)),
    "modality_type_vocab_size": Honoured(2, (f"{JOINT}.types",), read=lambda n: (1, n - 1), write=sum),
    "max_position_embeddings": Honoured(40, (f"{TEXT}.max_length",)),
    "hidden_size": Honoured(768, (*[f"{part}.width" for part in EVERY], *[f"heads.{head}.hidden_width" for head in POOLED])),
    "num_hidden_layers": Honoured(12, (f"{JOINT}.depth",)),
    "num_attention_heads": Honoured(12, tuple(f"{part}.heads" for part in reversed(EVERY))),
    "intermediate_size": Honoured(3072, (f"{JOINT}.mlp_width",)),
    "hidden_act": Honoured("gelu", (f"{JOINT}.activation", "heads.masked_lm.activation"), ACTIVATIONS),
    "hidden_dropout_prob": Honoured(0.0, tuple(f"{part}.dropout" for part in reversed(EVERY))),
    "attention_probs_dropout_prob": Honoured(0.0, (f"{JOINT}.attention_dropout",)),
    "layer_norm_eps": Honoured(1e-12, (f"{JOINT}.norm_epsilon", f"{TEXT}.norm_epsilon", "heads.masked_lm.norm_epsilon")),
    "image_size": Honoured(384, (f"{IMAGE}.image_size",), read=pair, write=side, kind="wholes"),
    "patch_size": Honoured(32, (f"{IMAGE}.patch",), read=pair, write=side, kind="wholes"),
    "num_channels": Honoured(3, (f"{IMAGE}.channels",)),
    "qkv_bias": Honoured(True, (f"{JOINT}.qkv_bias",)),
    "tie_word_embeddings": Honoured(True, ("heads.masked_lm.tied_to",), {True: "text", False: ""}),
    "num_images": Honoured(-1, ()),  # of one class alone, which reads it where its model is built
    "max_image_length": Only((-1,)),  # more patches than it are left out at random
}


def _complete(config: Config) -> Config:
    for name in ("image_size", "patch_size"):
        if not isinstance(config.get(name, 1), int):
            raise UserError(f"{name}={config[name]!r} is not supported by vilt here; it must be one number of pixels")
    whole_patches({"image_size": 384, "patch_size": 32, **config})
    several = "ViltForImagesAndTextClassification" in config.get("architectures", ())
    images, kinds = config.get("num_images", -1) if several else 1, config.get("modality_type_vocab_size", 2)
    if images < 1:
        raise UserError(f"num_images={images}: ViltForImagesAndTextClassification needs at least 1")
    if kinds < images + 1:
        raise UserError(f"modality_type_vocab_size={kinds} is too small: the text and {images} images need {images + 1}")
    return config


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    p = "" if architecture == "ViltModel" else "vilt."
    text, joint = f"{p}embeddings.text_embeddings", model.fusions["joint"]
    rows = [
        *table(f"{text}.word_embeddings.weight", "encoders_text/words"),
        *table(f"{text}.position_embeddings.weight", "encoders_text/position"),
        *table(f"{text}.token_type_embeddings.weight", "encoders_text/segment"),
        *norm(f"{text}.LayerNorm", "encoders_text/embed_norm"),
        *embeddings(f"{p}embeddings", "encoders_image", model.encoders["image"]),
        Row(f"{p}embeddings.token_type_embeddings.weight", ("fusions_joint/text_type", "fusions_joint/image_type"), Table()),
        *layers(f"{p}encoder.layer", "fusions_joint/stack", joint.depth, joint.qkv_bias),
        *norm(f"{p}layernorm", "fusions_joint/stack/final_norm"),
    ]
    for head in POOLED:
        if head in model.heads:
            rows += linear(f"{p}pooler.dense", f"heads_{head}/project")
    if "classes" in model.heads:
        rows += linear("classifier.0", "heads_classes/project_2")
        rows += norm("classifier.1", "heads_classes/norm")
        rows += linear("classifier.3", "heads_classes/logits")
    if "token_classes" in model.heads:
        rows += linear("classifier", "heads_token_classes/logits")
    if "match" in model.heads:
        rows += linear("rank_output", "heads_match/logits")
    if "masked_lm" in model.heads:
        rows += linear("mlm_score.transform.dense", "heads_masked_lm/project")
        rows += norm("mlm_score.transform.LayerNorm", "heads_masked_lm/norm")
        if model.heads["masked_lm"].tied_to:
            rows.append(Row("mlm_score.decoder.bias", ("heads_masked_lm/tied_bias",), Vector()))
        else:
            rows += linear("mlm_score.decoder", "heads_masked_lm/logits")
    return rows


VILT = Family(
    model_type="vilt",
    texts=("",),
    reads=("input_ids", "token_type_ids", "attention_mask"),
    any_size=True,
    models=MODELS,
    fields=FIELDS,
    rows=_rows,
    prefix="vilt.",
    renames=((r"^mlm_score\.bias$", "mlm_score.decoder.bias"),),
    dropped=(r"text_embeddings\.position_ids$", r"^mlm_score\.decoder\.(weight|bias)$"),
    complete=_complete,
    derive=lambda model: {"num_images": model.encoders["image"].images} if model.encoders["image"].images > 1 else {},
    ties=(Tie(DECODER, WORDS, always=True),),
)
