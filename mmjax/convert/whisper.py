"""Whisper (Radford et al. 2022): speech to text, an encoder of log-mel features and a decoder that reads it.

What a text begins with, the language, the task and whether there are times, is in its tokens: see `mmjax.generate`.
"""

from __future__ import annotations

from mmjax.convert.bert import labels
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert, Only, Tie
from mmjax.convert.layout import Kernel1D, Row, Table, Vector, linear, norm, table
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import AudioTransformer
from mmjax.models.heads import Classifier

AUDIO, TEXT, HEAD = "encoders.audio", "decoders.caption", "heads.classes"
EPSILON = 1e-5  # of every norm; config.json does not say it


def _audio() -> AudioTransformer:
    return AudioTransformer(key_bias=False, norm_epsilon=EPSILON, mask_padding=False)


def _generation(config: Config) -> Multimodal:
    decoder = TextDecoder(context=("audio",), key_bias=False, norm_epsilon=EPSILON)
    return Multimodal(encoders={"audio": _audio()}, decoders={"caption": decoder})


def _classification(config: Config) -> Multimodal:
    head = Classifier(classes=labels(config), input="audio", pool="mean", hidden_width=256, activation="linear")
    return Multimodal(encoders={"audio": _audio()}, heads={"classes": head})


BOTH = (AUDIO, TEXT)
AUGMENTED = Inert("without apply_spec_augment, which is model.augment here")
FIELDS: dict[str, ConfigField] = {
    "is_encoder_decoder": Only((True,)),
    "vocab_size": Honoured(51865, (f"{TEXT}.vocab_size",)),
    "num_mel_bins": Honoured(80, (f"{AUDIO}.spectrogram.mels",)),
    "d_model": Honoured(384, tuple(f"{part}.width" for part in BOTH)),
    "encoder_layers": Honoured(4, (f"{AUDIO}.depth",)),
    "encoder_attention_heads": Honoured(6, (f"{AUDIO}.heads",)),
    "encoder_ffn_dim": Honoured(1536, (f"{AUDIO}.mlp_width",)),
    "decoder_layers": Honoured(4, (f"{TEXT}.depth",)),
    "decoder_attention_heads": Honoured(6, (f"{TEXT}.heads",)),
    "decoder_ffn_dim": Honoured(1536, (f"{TEXT}.mlp_width",)),
    "activation_function": Honoured("gelu", tuple(f"{part}.activation" for part in BOTH), ACTIVATIONS),
    "dropout": Honoured(0.0, tuple(f"{part}.dropout" for part in BOTH)),
    "attention_dropout": Honoured(0.0, tuple(f"{part}.attention_dropout" for part in BOTH)),
    "activation_dropout": Only((0.0,)),
    "encoder_layerdrop": Only((0.0,)),
    "decoder_layerdrop": Only((0.0,)),
    "max_source_positions": Honoured(1500, (f"{AUDIO}.max_length",)),
    "max_target_positions": Honoured(448, (f"{TEXT}.max_length",)),
    "scale_embedding": Only((False,)),
    "tie_word_embeddings": Honoured(True, (f"{TEXT}.tied",)),
    "classifier_proj_size": Honoured(256, (f"{HEAD}.hidden_width",)),
    "use_weighted_layer_sum": Only((False,)),
    "apply_spec_augment": Only((False,)),
    "mask_time_prob": AUGMENTED,
    "mask_time_length": AUGMENTED,
    "mask_time_min_masks": AUGMENTED,
    "mask_feature_prob": AUGMENTED,
    "mask_feature_length": AUGMENTED,
    "mask_feature_min_masks": AUGMENTED,
    "init_std": Inert("only initialises"),
    "median_filter_width": Inert("of times of words, which are no output here"),
    "suppress_tokens": Inert("how texts are written; generation_config.json says it"),
    "begin_suppress_tokens": Inert("how texts are written; generation_config.json says it"),
    "forced_decoder_ids": Inert("how texts are written; generation_config.json says it"),
    "decoder_start_token_id": Inert("how texts begin; the tokenizer says it"),
}


def layers(theirs: str, ours: str, depth: int, crossed: bool, key_bias: bool = False) -> list[Row]:
    """Rows of the layers of one side, as BART has them too.

    Args:
      theirs, ours: the names of the side.
      crossed: whether it attends to the other.
      key_bias: whether keys have biases.
    """
    t, o = f"{theirs}.layers.{{l}}", f"{ours}/stack/layers"
    rows: list[Row] = []
    kinds = [("self_attn", "attention")] + [("encoder_attn", "cross_attention")] * crossed
    for their, our in kinds:
        for name in "qkv":
            rows += linear(f"{t}.{their}.{name}_proj", f"{o}/{our}/{name}", bias=key_bias or name != "k", depth=depth)
        rows += linear(f"{t}.{their}.out_proj", f"{o}/{our}/out", axes=2, depth=depth)
        rows += norm(f"{t}.{their}_layer_norm", f"{o}/{our}_norm", depth=depth)
    rows += linear(f"{t}.fc1", f"{o}/mlp/up", depth=depth) + linear(f"{t}.fc2", f"{o}/mlp/down", depth=depth)
    return rows + norm(f"{t}.final_layer_norm", f"{o}/mlp_norm", depth=depth)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    p = "model." if model.decoders else ""
    rows = [
        *(
            row
            for theirs, ours in (("conv1", "convolve_first"), ("conv2", "convolve_second"))
            for row in (
                Row(f"{p}encoder.{theirs}.weight", (f"encoders_audio/{ours}/kernel",), Kernel1D()),
                Row(f"{p}encoder.{theirs}.bias", (f"encoders_audio/{ours}/bias",), Vector()),
            )
        ),
        Row(f"{p}encoder.embed_positions.weight", ("encoders_audio/fixed_position/table",), Table()),
        *layers(f"{p}encoder", "encoders_audio", model.encoders["audio"].depth, crossed=False),
        *norm(f"{p}encoder.layer_norm", "encoders_audio/stack/final_norm"),
    ]
    if "classes" in model.heads:
        rows += linear("projector", "heads_classes/project") + linear("classifier", "heads_classes/logits")
    if "caption" in model.decoders:
        decoder = model.decoders["caption"]
        rows += table("model.decoder.embed_tokens.weight", "decoders_caption/words")
        rows += table("model.decoder.embed_positions.weight", "decoders_caption/position")
        rows += layers("model.decoder", "decoders_caption", decoder.depth, crossed=True)
        rows += norm("model.decoder.layer_norm", "decoders_caption/stack/final_norm")
        rows += [] if decoder.tied else linear("proj_out", "decoders_caption/logits", bias=False)
    return rows


WHISPER = Family(
    model_type="whisper",
    texts=("",),
    starts_apart=True,
    models={"WhisperForConditionalGeneration": _generation, "WhisperForAudioClassification": _classification},
    fields=FIELDS,
    rows=_rows,
    prefix="model.",
    dropped=(r"^proj_out\.weight$",),
    ties=(Tie("proj_out.weight", "model.decoder.embed_tokens.weight"),),
    aliases={
        "num_key_value_heads": "encoder_attention_heads",
        "num_attention_heads": "encoder_attention_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
    },
)
