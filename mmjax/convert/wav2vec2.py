"""wav2vec 2.0 (Baevski et al. 2020) and HuBERT (Hsu et al. 2021): base, texts by CTC, classification of sounds; pretraining of
the former, see `objectives.MaskedContrastive`.
Both are the same encoder of waveforms. The frames that their SpecAugment hides while training are its `segments` here.
"""

from __future__ import annotations

from collections.abc import Callable

from mmjax.convert.bert import labels
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert, Only
from mmjax.convert.layout import Kernel1D, Row, Table, Vector, linear, norm
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.codebook import Codebook
from mmjax.models.encoders import WaveformTransformer
from mmjax.models.heads import Classifier, TokenClassifier

AUDIO, LETTERS, CLASSES, CODES = "encoders.audio", "heads.ctc", "heads.classes", "heads.codes"
MASKED = 0.05  # mask_time_prob where config.json says none

TRAINING = Inert("only when training")
SPEC_AUGMENT = Inert("only when training, which hides frames here by audio segments")
LOSS = Inert("of the loss; an objective says it here")
UNUSED = Inert("only of classes or adapters that are not here")

FIELDS: dict[str, ConfigField] = {
    "vocab_size": Honoured(32, (f"{LETTERS}.classes",)),
    "hidden_size": Honoured(768, (f"{AUDIO}.width",)),
    "num_hidden_layers": Honoured(12, (f"{AUDIO}.depth",)),
    "num_attention_heads": Honoured(12, (f"{AUDIO}.heads",)),
    "intermediate_size": Honoured(3072, (f"{AUDIO}.mlp_width",)),
    "hidden_act": Honoured("gelu", (f"{AUDIO}.activation",), ACTIVATIONS),
    "hidden_dropout": Honoured(0.1, (f"{AUDIO}.dropout",), kind="number"),
    "attention_dropout": Honoured(0.1, (f"{AUDIO}.attention_dropout",), kind="number"),
    "feat_proj_dropout": Honoured(0.0, (f"{AUDIO}.project_dropout",), kind="number"),
    "layer_norm_eps": Honoured(1e-5, (f"{AUDIO}.norm_epsilon",)),
    "feat_extract_norm": Honoured("group", (f"{AUDIO}.extract_norm",), {"group": "group", "layer": "layer"}),
    "feat_extract_activation": Honoured("gelu", (f"{AUDIO}.extract_activation",), ACTIVATIONS),
    "conv_dim": Honoured((512,) * 7, (f"{AUDIO}.widths",), read=tuple, write=list, kind="wholes"),
    "conv_stride": Honoured((5, 2, 2, 2, 2, 2, 2), (f"{AUDIO}.strides",), read=tuple, write=list, kind="wholes"),
    "conv_kernel": Honoured((10, 3, 3, 3, 3, 2, 2), (f"{AUDIO}.kernels",), read=tuple, write=list, kind="wholes"),
    "conv_bias": Honoured(False, (f"{AUDIO}.extract_bias",)),
    "num_conv_pos_embeddings": Honoured(128, (f"{AUDIO}.position_kernel",)),
    "num_conv_pos_embedding_groups": Honoured(16, (f"{AUDIO}.position_groups",)),
    "do_stable_layer_norm": Honoured(False, (f"{AUDIO}.norm_placement",), {False: "post", True: "pre"}),
    "classifier_proj_size": Honoured(256, (f"{CLASSES}.hidden_width",)),
    "use_weighted_layer_sum": Only((False,)),
    "num_feat_extract_layers": Inert("as many as there are in conv_dim; another number is refused"),
    "activation_dropout": TRAINING,
    "final_dropout": TRAINING,
    "layerdrop": TRAINING,
    "apply_spec_augment": SPEC_AUGMENT,
    "mask_time_prob": SPEC_AUGMENT,
    "mask_time_length": SPEC_AUGMENT,
    "mask_time_min_masks": SPEC_AUGMENT,
    "mask_feature_prob": SPEC_AUGMENT,
    "mask_feature_length": SPEC_AUGMENT,
    "mask_feature_min_masks": SPEC_AUGMENT,
    "ctc_loss_reduction": LOSS,
    "ctc_zero_infinity": LOSS,
}
# What wav2vec 2.0's config.json has beside.
OWN: dict[str, ConfigField] = {
    "add_adapter": Only((False,)),
    "adapter_attn_dim": Only((None,)),
    "adapter_kernel_size": UNUSED,
    "adapter_stride": UNUSED,
    "num_adapter_layers": UNUSED,
    "output_hidden_size": UNUSED,
    "feat_quantizer_dropout": TRAINING,
    "num_codevectors_per_group": Honoured(320, (f"{CODES}.entries",)),
    "num_codevector_groups": Honoured(2, (f"{CODES}.books",)),
    "codevector_dim": Honoured(256, (f"{CODES}.width",)),
    "proj_codevector_dim": Honoured(256, (f"{CODES}.classes", "heads.guesses.classes")),
    "contrastive_logits_temperature": LOSS,
    "num_negatives": LOSS,
    "diversity_loss_weight": LOSS,
    "tdnn_dim": UNUSED,
    "tdnn_kernel": UNUSED,
    "tdnn_dilation": UNUSED,
    "xvector_output_dim": UNUSED,
}
OF_HUBERT: dict[str, ConfigField] = {
    "feat_proj_layer_norm": Honoured(True, (f"{AUDIO}.project_norm",)),
    "conv_pos_batch_norm": Only((False,)),
}


def _audio(config: Config) -> WaveformTransformer:
    """Its files have a token for masked frames exactly where something is ever masked."""
    masked = config.get("mask_time_prob", MASKED) > 0 or config.get("mask_feature_prob", 0.0) > 0
    return WaveformTransformer(mask_token=masked)


def _base(config: Config) -> Multimodal:
    return Multimodal(encoders={"audio": _audio(config)})


def _letters(config: Config) -> Multimodal:
    return Multimodal(encoders={"audio": _audio(config)}, heads={"ctc": TokenClassifier(input="audio", transform=False)})


def _classes(config: Config) -> Multimodal:
    head = Classifier(classes=labels(config), input="audio", pool="mean", hidden_width=256, activation="linear")
    return Multimodal(encoders={"audio": _audio(config)}, heads={"classes": head})


def _complete(config: Config) -> Config:
    """Raises `UserError` for convolutions that are not told completely."""
    own = {name: tuple(config.get(name, FIELDS[name].default)) for name in ("conv_dim", "conv_kernel", "conv_stride")}  # type: ignore[union-attr]
    count = config.get("num_feat_extract_layers", len(own["conv_dim"]))
    if {len(sizes) for sizes in own.values()} != {count}:
        said = ", ".join(f"{name}={list(sizes)}" for name, sizes in own.items())
        raise UserError(f"num_feat_extract_layers={count} is not supported here with {said}: give as many of each")
    return config


def _derive(model: Multimodal) -> Config:
    return {"mask_time_prob": MASKED if model.encoders["audio"].mask_token else 0.0, "mask_feature_prob": 0.0}


def _extractor(theirs: str, audio: WaveformTransformer) -> list[Row]:
    """The rows of the convolutions from samples to frames."""
    rows: list[Row] = []
    for number in range(len(audio.widths)):
        t, o = f"{theirs}.conv_layers.{number}", f"encoders_audio/convolution_{number}"
        rows.append(Row(f"{t}.conv.weight", (f"{o}/convolve/kernel",), Kernel1D()))
        rows += [Row(f"{t}.conv.bias", (f"{o}/convolve/bias",), Vector())] if audio.extract_bias else []
        rows += norm(f"{t}.layer_norm", f"{o}/norm") if audio.extract_norm == "layer" or number == 0 else []
    return rows


def _layers(theirs: str, ours: str, depth: int) -> list[Row]:
    t, o = f"{theirs}.{{l}}", f"{ours}/layers"
    rows: list[Row] = []
    for name in "qkv":
        rows += linear(f"{t}.attention.{name}_proj", f"{o}/attention/{name}", depth=depth)
    rows += linear(f"{t}.attention.out_proj", f"{o}/attention/out", axes=2, depth=depth)
    rows += norm(f"{t}.layer_norm", f"{o}/attention_norm", depth=depth)
    rows += linear(f"{t}.feed_forward.intermediate_dense", f"{o}/mlp/up", depth=depth)
    rows += linear(f"{t}.feed_forward.output_dense", f"{o}/mlp/down", depth=depth)
    return rows + norm(f"{t}.final_layer_norm", f"{o}/mlp_norm", depth=depth)


def _pretraining(config: Config) -> Multimodal:
    entries = config.get("num_codevectors_per_group", 320) * config.get("num_codevector_groups", 2)
    heads = {
        "guesses": TokenClassifier(input="audio", transform=False),
        "code_logits": TokenClassifier(classes=entries, input="audio:frames", transform=False),
        "codes": Codebook(),
    }
    return Multimodal(encoders={"audio": _audio(config)}, heads=heads)


def _family(kind: str, prefix: str, fields: dict[str, ConfigField], **more: Callable[[Config], Multimodal]) -> Family:
    """The family whose classes begin with `kind`; `more`: how further ones end, and their models."""

    def rows(model: Multimodal, architecture: str) -> list[Row]:
        audio, p = model.encoders["audio"], "" if architecture.endswith("Model") else f"{prefix}."
        position, o = f"{p}encoder.pos_conv_embed.conv", "encoders_audio/position"
        found = [
            *_extractor(f"{p}feature_extractor", audio),
            *(norm(f"{p}feature_projection.layer_norm", "encoders_audio/frame_norm") if audio.project_norm else []),
            *linear(f"{p}feature_projection.projection", "encoders_audio/project"),
            Row(f"{position}.parametrizations.weight.original0", (f"{o}/magnitude",), Vector(lead=2)),
            Row(f"{position}.parametrizations.weight.original1", (f"{o}/kernel",), Kernel1D()),
            Row(f"{position}.bias", (f"{o}/bias",), Vector()),
            *norm(
                f"{p}encoder.layer_norm",
                "encoders_audio/embed_norm" if audio.norm_placement == "post" else "encoders_audio/stack/final_norm",
            ),
            *_layers(f"{p}encoder.layers", "encoders_audio/stack", audio.depth),
        ]
        if audio.mask_token:
            found.append(Row(f"{p}masked_spec_embed", ("encoders_audio/mask_token",), Vector()))
        if "ctc" in model.heads:
            found += linear("lm_head", "heads_ctc/logits")
        if "classes" in model.heads:
            found += linear("projector", "heads_classes/project") + linear("classifier", "heads_classes/logits")
        if "codes" in model.heads:
            found += linear("quantizer.weight_proj", "heads_code_logits/logits") + linear("project_hid", "heads_guesses/logits")
            found += linear("project_q", "heads_codes/project")
            found.append(Row("quantizer.codevectors", ("heads_codes/codebook",), Table(lead=1)))
        return found

    return Family(
        model_type=prefix,
        texts=("",),
        models={
            f"{kind}Model": _base,
            f"{kind}ForCTC": _letters,
            f"{kind}ForSequenceClassification": _classes,
            **{f"{kind}{end}": model for end, model in more.items()},
        },
        fields=fields,
        rows=rows,
        prefix=f"{prefix}.",
        renames=(
            (r"pos_conv_embed\.conv\.weight_g$", "pos_conv_embed.conv.parametrizations.weight.original0"),
            (r"pos_conv_embed\.conv\.weight_v$", "pos_conv_embed.conv.parametrizations.weight.original1"),
        ),
        complete=_complete,
        derive=_derive,
    )


WAV2VEC2 = _family("Wav2Vec2", "wav2vec2", {**FIELDS, **OWN}, ForPreTraining=_pretraining)
HUBERT = _family("Hubert", "hubert", {**FIELDS, **OF_HUBERT})
