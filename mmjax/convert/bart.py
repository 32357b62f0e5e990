"""BART (Lewis et al. 2019): a text read by an encoder, and another written of it; summaries, and what is denoised.

Both sides read by one word table, the encoder's, and each has positions of its own, of which the first two are never used.
Texts are `text` (read) and `target` (written).
"""

from __future__ import annotations

from typing import Any

from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert, Only, Tie
from mmjax.convert.layout import Row, Vector, norm, table
from mmjax.convert.t5 import check_one_table
from mmjax.convert.weights import Weights
from mmjax.convert.whisper import layers
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer

TEXT, TARGET = "encoders.text", "decoders.target"
STYLE: dict[str, Any] = {"norm_placement": "post", "norm_epsilon": 1e-5, "embed_norm": True, "position_offset": 2}


def _generation(config: Config) -> Multimodal:
    decoder = TextDecoder(context=("text",), writes="target", words_of="text", output_bias=True, **STYLE)
    return Multimodal(encoders={"text": TextTransformer(**STYLE)}, decoders={"target": decoder})


def _both(leaf: str) -> tuple[str, ...]:
    return f"{TEXT}.{leaf}", f"{TARGET}.{leaf}"


WRITES = "how texts are written; generation_config.json says it"
FIELDS: dict[str, ConfigField] = {
    "is_encoder_decoder": Only((True,)),
    "is_decoder": Only((False,)),
    "vocab_size": Honoured(50265, _both("vocab_size")),
    "max_position_embeddings": Honoured(1024, _both("max_length")),
    "d_model": Honoured(1024, _both("width")),
    "encoder_layers": Honoured(12, (f"{TEXT}.depth",)),
    "encoder_attention_heads": Honoured(16, (f"{TEXT}.heads",)),
    "encoder_ffn_dim": Honoured(4096, (f"{TEXT}.mlp_width",)),
    "decoder_layers": Honoured(12, (f"{TARGET}.depth",)),
    "decoder_attention_heads": Honoured(16, (f"{TARGET}.heads",)),
    "decoder_ffn_dim": Honoured(4096, (f"{TARGET}.mlp_width",)),
    "activation_function": Honoured("gelu", _both("activation"), ACTIVATIONS),
    "dropout": Honoured(0.1, _both("dropout")),
    "attention_dropout": Honoured(0.0, _both("attention_dropout")),
    "activation_dropout": Honoured(0.0, _both("mlp_dropout")),
    "scale_embedding": Honoured(False, _both("scale_words")),
    "tie_word_embeddings": Only((True,)),  # False unties the words of both sides from one another as well
    "decoder_start_token_id": Honoured(2, (f"{TARGET}.start_token",)),
    "encoder_layerdrop": Only((0.0,)),
    "decoder_layerdrop": Only((0.0,)),
    # Of files of version 2; mBART and Pegasus, which said them otherwise, are families of their own since.
    "add_bias_logits": Only((False,)),
    "add_final_layer_norm": Only((False,)),
    "normalize_before": Only((False,)),
    "normalize_embedding": Only((True,)),
    "static_position_embeddings": Only((False,)),
    "extra_pos_embeddings": Only((2,)),
    "force_bos_token_to_be_generated": Inert(WRITES),
    "forced_bos_token_id": Inert(WRITES),
    "forced_eos_token_id": Inert(WRITES),
    "classifier_dropout": Inert("of classes that are not read here"),
    "classif_dropout": Inert("of classes that are not read here"),
    "init_std": Inert("only initialises"),
}


def _side(name: str, ours: str, depth: int, crossed: bool) -> list[Row]:
    theirs = f"model.{name}"
    rows = table(f"{theirs}.embed_positions.weight", f"{ours}/position")
    rows += norm(f"{theirs}.layernorm_embedding", f"{ours}/embed_norm")
    return rows + layers(theirs, ours, depth, crossed, key_bias=True)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    rows = table("model.shared.weight", "encoders_text/words")
    rows += _side("encoder", "encoders_text", model.encoders["text"].depth, crossed=False)
    rows += _side("decoder", "decoders_target", model.decoders["target"].depth, crossed=True)
    return [*rows, Row("final_logits_bias", ("decoders_target/tied_bias",), Vector(lead=1))]


def _observe(config: Config, weights: Weights) -> Config:
    check_one_table(weights, "shared.weight", ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))
    return config


BART = Family(
    model_type="bart",
    texts=("",),
    models={"BartForConditionalGeneration": _generation},
    fields=FIELDS,
    rows=_rows,
    prefix="model.",
    dropped=(r"^model\.(encoder|decoder)\.(embed_tokens\.weight|version)$", r"^lm_head\.weight$"),
    observe=_observe,
    ties=(Tie("lm_head.weight", "model.shared.weight"),),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    },
)
