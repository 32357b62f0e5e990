"""T5 (Raffel et al. 2019), its version 1.1 and mT5 (Xue et al. 2020): a text read by an encoder, and another written of it.

Both sides read by one word table, the encoder's. In version 1.0 the output is tied to it and scaled; in 1.1 it is a matrix of
its own. Texts are `text` (read) and `target` (written).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.convert.family import Config, ConfigField, Family, Honoured, Inert, Only, Tie
from mmjax.convert.layout import Row, Table, linear, norm, table
from mmjax.convert.weights import Weights
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer

TEXT, TARGET = "encoders.text", "decoders.target"
BOTH = (TEXT, TARGET)
STYLE: dict[str, Any] = {
    "positions": "relative",
    "norm": "rmsnorm",
    "query_scale": 1.0,
    "qkv_bias": False,
    "bias": False,
}
# `transformers` takes gated-gelu for the approximation by tanh, whatever the function is called elsewhere.
FORWARD = {
    "relu": "relu",
    "gated-gelu": "geglu_tanh",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "gated-gelu_new": "geglu_tanh",
    "gated-gelu_python": "geglu",
    "gated-silu": "swiglu",
    "gated-relu": "reglu",
}
SCALED = "scale_decoder_outputs"  # which T5's config says since version 5 of transformers, and mT5's never


def _encoder(config: Config) -> Multimodal:
    return Multimodal(encoders={"text": TextTransformer(**STYLE)})


def _generation(config: Config) -> Multimodal:
    decoder = TextDecoder(context=("text",), writes="target", words_of="text", **STYLE)
    return Multimodal(encoders={"text": TextTransformer(**STYLE)}, decoders={"target": decoder})


def _of(leaf: str, parts: tuple[str, ...] = BOTH) -> tuple[str, ...]:
    return tuple(f"{part}.{leaf}" for part in parts)


def _fields(default: dict[str, Any]) -> dict[str, ConfigField]:
    return {
        "is_encoder_decoder": Inert("the class says it"),
        "is_decoder": Only((False,)),
        "vocab_size": Honoured(default["vocab_size"], _of("vocab_size")),
        "d_model": Honoured(512, _of("width")),
        "d_kv": Honoured(64, _of("head_width")),
        "d_ff": Honoured(default["d_ff"], _of("mlp_width")),
        "num_layers": Honoured(default["num_layers"], (f"{TEXT}.depth",)),
        "num_decoder_layers": Honoured(default["num_layers"], (f"{TARGET}.depth",)),
        "num_heads": Honoured(default["num_heads"], _of("heads")),
        "relative_attention_num_buckets": Honoured(32, _of("relative_buckets")),
        "relative_attention_max_distance": Honoured(128, _of("relative_distance")),
        "n_positions": Honoured(512, _of("max_length")),
        "dropout_rate": Honoured(
            0.1,
            tuple(path for leaf in ("dropout", "attention_dropout", "mlp_dropout", "final_dropout") for path in _of(leaf)),
        ),
        "layer_norm_epsilon": Honoured(1e-6, _of("norm_epsilon")),
        "feed_forward_proj": Honoured(default["feed_forward_proj"], _of("activation"), FORWARD),
        "tie_word_embeddings": Honoured(True, (f"{TARGET}.tied",)),
        "decoder_start_token_id": Honoured(0, (f"{TARGET}.start_token",)),
        "initializer_factor": Inert("only initialises"),
        "classifier_dropout": Inert("of classes that are not read here"),
        "dense_act_fn": Inert("follows from feed_forward_proj"),
        "is_gated_act": Inert("follows from feed_forward_proj"),
    }


T5_SIZES = {"vocab_size": 32128, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "feed_forward_proj": "relu"}
MT5_SIZES = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
T5_FIELDS = {**_fields(T5_SIZES), SCALED: Honoured(True, (f"{TARGET}.scale_output",))}


def _complete(config: Config) -> Config:
    """The decoder is as deep as the encoder where nothing else is said."""
    depth = config.get("num_decoder_layers")
    return config if depth is not None else {**config, "num_decoder_layers": config.get("num_layers", T5_SIZES["num_layers"])}


def _complete_mt5(config: Config) -> Config:
    return _complete({"num_layers": MT5_SIZES["num_layers"], **config})


def _complete_t5(config: Config) -> Config:
    """The output is scaled unless a file of version 4 says that it is not tied, by which those of 1.1 were told."""
    return {**_complete(config), SCALED: config.get(SCALED, config.get("tie_word_embeddings") is not False)}


def check_one_table(weights: Weights, shared: str, copies: tuple[str, ...]) -> None:
    """Raises `UserError` where a file has another word table for one of the sides than the one that both read by."""
    named = {end: name for name in weights.names for end in (shared, *copies) if name.removeprefix("model.") == end}
    for copy in copies:
        if copy in named and shared in named and not np.array_equal(weights.read(named[copy]), weights.read(named[shared])):
            raise UserError(f"{named[copy]} is another word table than {named[shared]}: both sides read by one here")


def _observe(config: Config, weights: Weights) -> Config:
    check_one_table(weights, "shared.weight", ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))
    return config


def _observe_t5(config: Config, weights: Weights) -> Config:
    """What the flag of the tie says beside it, before the files say whether there is one (`Tie.always`)."""
    return _complete_t5(_observe(config, weights))


def _restore(config: dict[str, Any]) -> dict[str, Any]:
    """The other spelling of the activation, where a config has it."""
    if "dense_act_fn" in config:
        words = config["feed_forward_proj"].split("-")
        plain = "gelu_new" if config["feed_forward_proj"] == "gated-gelu" else words[-1]
        config |= {"dense_act_fn": plain, "is_gated_act": words[0] == "gated"}
    return config


def _attention(theirs: str, ours: str, depth: int) -> list[Row]:
    rows: list[Row] = []
    for name in "qkv":
        rows += linear(f"{theirs}.{name}", f"{ours}/{name}", bias=False, depth=depth)
    return rows + linear(f"{theirs}.o", f"{ours}/out", axes=2, bias=False, depth=depth)


def _stack(side: str, ours: str, text: TextTransformer, crossed: bool) -> list[Row]:
    t, o, depth = f"{side}.block.{{l}}.layer", f"{ours}/stack/layers", text.depth
    rows = _attention(f"{t}.0.SelfAttention", f"{o}/attention", depth)
    relative = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows += table(relative, f"{ours}/stack/relative")
    rows += norm(f"{t}.0.layer_norm", f"{o}/attention_norm", bias=False, depth=depth)
    if crossed:
        rows += _attention(f"{t}.1.EncDecAttention", f"{o}/cross_attention", depth)
        rows += norm(f"{t}.1.layer_norm", f"{o}/cross_attention_norm", bias=False, depth=depth)
    last = f"{t}.{1 + crossed}"
    gated = text.activation in ("swiglu", "geglu", "geglu_tanh", "reglu")
    names = (("wi_0", "gate"), ("wi_1", "up")) if gated else (("wi", "up"),)
    for their, our in (*names, ("wo", "down")):
        rows += linear(f"{last}.DenseReluDense.{their}", f"{o}/mlp/{our}", bias=False, depth=depth)
    rows += norm(f"{last}.layer_norm", f"{o}/mlp_norm", bias=False, depth=depth)
    return rows + norm(f"{side}.final_layer_norm", f"{ours}/stack/final_norm", bias=False)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    rows = [Row("shared.weight", ("encoders_text/words/table",), Table())]
    rows += _stack("encoder", "encoders_text", model.encoders["text"], crossed=False)
    if model.decoders:
        decoder = model.decoders["target"]
        rows += _stack("decoder", "decoders_target", decoder, crossed=True)
        rows += [] if decoder.tied else linear("lm_head", "decoders_target/logits", bias=False)
    return rows


DROPPED = (
    *(r"^(encoder|decoder)\.embed_tokens\.weight$", r"^lm_head\.weight$"),
    r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
)
TIES = (Tie("lm_head.weight", "shared.weight", always=True),)
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
T5 = Family(
    model_type="t5",
    texts=("",),
    models={"T5ForConditionalGeneration": _generation, "T5EncoderModel": _encoder},
    fields=T5_FIELDS,
    rows=_rows,
    dropped=DROPPED,
    complete=_complete_t5,
    observe=_observe_t5,
    restore=_restore,
    ties=TIES,
    aliases=ALIASES,
)
MT5 = Family(
    model_type="mt5",
    texts=("",),
    models={"MT5ForConditionalGeneration": _generation, "MT5EncoderModel": _encoder},
    fields=_fields(MT5_SIZES),
    rows=_rows,
    dropped=DROPPED,
    complete=_complete_mt5,
    observe=_observe,
    restore=_restore,
    ties=TIES,
    aliases=ALIASES,
)
