"""Llama (Touvron 2023; Llama 3: Dubey 2024): base, language model, sequence classification."""

from __future__ import annotations

from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.family import Config, ConfigField, Family, Honoured, Inert, Only, Tie
from mmjax.convert.layout import Row, linear, norm, table
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier

STYLE: dict[str, Any] = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}


def _text() -> TextTransformer:
    return TextTransformer(causal=True, **STYLE)


MODELS = {
    "LlamaForCausalLM": lambda c: Multimodal(encoders={}, decoders={"caption": TextDecoder(context=(), **STYLE)}),
    "LlamaModel": lambda c: Multimodal(encoders={"text": _text()}),
    "LlamaForSequenceClassification": lambda c: Multimodal(
        encoders={"text": _text()}, heads={"classes": Classifier(labels(c), "text", "last", bias=False)}
    ),
}


def read_scaling(rope: Config | None) -> tuple[float, ...]:
    """Our `rotary_scaling` for HuggingFace's `rope_parameters` (or `rope_scaling`, in older files).

    Raises:
      UserError: a type that we cannot represent, or one that lacks its numbers.
    """
    rope = rope or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    names = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if kind not in names:
        raise UserError(f"rope_parameters.rope_type={kind!r} is not supported here; use one of {', '.join(map(repr, names))}")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(f"rope_parameters.partial_rotary_factor={rope['partial_rotary_factor']} is not supported here; use 1.0")
    # A file may leave the length out, which `complete_rope` then fills in: 0, no length, where the file itself is read again.
    held = {"original_max_position_embeddings": 0, **rope}
    missing = [name for name in names[kind] if held.get(name) is None]
    if missing:
        raise UserError(f"rope_parameters.{missing[0]} is missing, which rope_type={kind!r} needs")
    return tuple(float(held[name]) for name in names[kind])


def write_scaling(scaling: tuple[float, ...]) -> dict[str, Any]:
    """HuggingFace's `rope_parameters` without its `rope_theta`."""
    if len(scaling) < 2:
        return {"rope_type": "linear", "factor": scaling[0]} if scaling else {"rope_type": "default"}
    factor, low, high, length = scaling
    names = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": int(length)}
    return {"rope_type": "llama3", "factor": factor, **names}


def complete_rope(config: Config) -> Config:
    """The config with `rope_parameters` filled in from the keys of older files, and those from it: both are written back, so
    that either version of `transformers` reads what we write."""
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    rope["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    if "partial_rotary_factor" in config:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    if rope["rope_type"] == "llama3":
        rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings", 2048))
    scaling = None if rope["rope_type"] == "default" else rope
    return {**config, "rope_parameters": rope, "rope_theta": rope["rope_theta"], "rope_scaling": scaling}


def fields(*parts: str) -> dict[str, ConfigField]:
    """The table of a Llama config whose model holds Llama as these parts (`decoders.caption`)."""

    def of(leaf: str) -> tuple[str, ...]:
        return tuple(f"{part}.{leaf}" for part in parts)

    return {
        "vocab_size": Honoured(32000, of("vocab_size")),
        "hidden_size": Honoured(4096, of("width")),
        "intermediate_size": Honoured(11008, of("mlp_width")),
        "num_hidden_layers": Honoured(32, of("depth")),
        "num_attention_heads": Honoured(32, of("heads")),
        "num_key_value_heads": Honoured(None, of("kv_heads"), read=lambda n: n or 0, write=lambda n: n or None, kind="whole"),
        "head_dim": Honoured(None, of("head_width"), read=lambda n: n or 0, write=lambda n: n or None, kind="whole"),
        "hidden_act": Only(("silu", "swish")),
        "max_position_embeddings": Honoured(2048, of("max_length")),
        "original_max_position_embeddings": Only((None,)),
        "rms_norm_eps": Honoured(1e-6, of("norm_epsilon")),
        "pretraining_tp": Inert("the same numbers, computed in parts"),
        "tie_word_embeddings": Honoured(False, of("tied")),
        "rope_scaling": Honoured(
            None,
            of("rotary_scaling"),
            read=read_scaling,
            write=lambda s: write_scaling(s) if s else None,
            kind="object",
        ),
        "rope_parameters": Honoured(None, of("rotary_scaling"), read=read_scaling, write=write_scaling, kind="object"),
        "rope_parameters.rope_theta": Honoured(10000.0, of("theta")),
        "rope_theta": Honoured(10000.0, of("theta")),
        "attention_bias": Honoured(False, (*of("qkv_bias"), *of("bias"))),
        "attention_dropout": Honoured(0.0, of("attention_dropout")),
        "mlp_bias": Honoured(False, of("mlp_bias")),
    }


def body(prefix: str, ours: str, text: TextTransformer) -> list[Row]:
    """The rows of a Llama body, whose names begin with `prefix`, in our text Transformer `ours`."""
    t, o, depth = f"{prefix}layers.{{l}}", f"{ours}/stack/layers", text.depth
    rows = table(f"{prefix}embed_tokens.weight", f"{ours}/words")
    for short in ("q", "k", "v"):
        rows += linear(f"{t}.self_attn.{short}_proj", f"{o}/attention/{short}", bias=text.qkv_bias, depth=depth)
    rows += linear(f"{t}.self_attn.o_proj", f"{o}/attention/out", axes=2, bias=text.bias, depth=depth)
    mlp_bias = text.bias if text.mlp_bias is None else text.mlp_bias
    for name in ("gate", "up", "down"):
        rows += linear(f"{t}.mlp.{name}_proj", f"{o}/mlp/{name}", bias=mlp_bias, depth=depth)
    rows += norm(f"{t}.input_layernorm", f"{o}/attention_norm", bias=False, depth=depth)
    rows += norm(f"{t}.post_attention_layernorm", f"{o}/mlp_norm", bias=False, depth=depth)
    return rows + norm(f"{prefix}norm", f"{ours}/stack/final_norm", bias=False)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    if "caption" in model.decoders:
        decoder = model.decoders["caption"]
        rows = body("model.", "decoders_caption", decoder)
        return rows if decoder.tied else rows + linear("lm_head", "decoders_caption/logits", bias=False)
    rows = body("" if architecture == "LlamaModel" else "model.", "encoders_text", model.encoders["text"])
    return rows + linear("score", "heads_classes/logits", bias=False) if model.heads else rows


LLAMA = Family(
    model_type="llama",
    texts=("",),
    models=MODELS,
    fields=fields("encoders.text", "decoders.caption"),
    rows=_rows,
    prefix="model.",
    dropped=(r"rotary_emb\.inv_freq$", r"^lm_head\.weight$"),
    complete=complete_rope,
    ties=(Tie("lm_head.weight", "model.embed_tokens.weight"),),
)
