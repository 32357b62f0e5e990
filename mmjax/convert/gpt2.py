"""GPT-2 (Radford et al. 2019): base, language model, sequence and token classification.

The language model is a decoder without context, which `CausalLM(context=())` trains; the others are a causal text encoder.
Sequence classification reads the last token that the mask calls real; HuggingFace, the last id that is not `pad_token_id`.
"""

from __future__ import annotations

from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert, Only, Tie
from mmjax.convert.layout import Conv1D, Row, Vector, linear, norm, table
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier, TokenClassifier


def _model(**heads: Any) -> Multimodal:
    return Multimodal(encoders={"text": TextTransformer(causal=True)}, heads=heads)


MODELS = {
    "GPT2Model": lambda c: _model(),
    "GPT2LMHeadModel": lambda c: Multimodal(encoders={}, decoders={"caption": TextDecoder(context=())}),
    "GPT2ForSequenceClassification": lambda c: _model(
        classes=Classifier(classes=labels(c), input="text", pool="last", bias=False)
    ),
    "GPT2ForTokenClassification": lambda c: _model(
        token_classes=TokenClassifier(classes=labels(c), input="text", transform=False)
    ),
}


def _trunk(leaf: str) -> tuple[str, ...]:
    """Where either form of the model has a leaf."""
    return f"encoders.text.{leaf}", f"decoders.caption.{leaf}"


_DOUBLE_HEADS = Inert("of GPT2DoubleHeadsModel alone")
FIELDS: dict[str, ConfigField] = {
    "vocab_size": Honoured(50257, _trunk("vocab_size")),
    "n_positions": Honoured(1024, _trunk("max_length")),
    "n_embd": Honoured(768, _trunk("width")),
    "n_layer": Honoured(12, _trunk("depth")),
    "n_head": Honoured(12, _trunk("heads")),
    "n_inner": Honoured(
        None, _trunk("mlp_width"), read=lambda width: width or 0, write=lambda width: width or None, kind="whole"
    ),
    "activation_function": Honoured("gelu_new", _trunk("activation"), ACTIVATIONS),
    "layer_norm_epsilon": Honoured(1e-5, _trunk("norm_epsilon")),
    "tie_word_embeddings": Honoured(True, ("decoders.caption.tied",)),
    "resid_pdrop": Honoured(0.1, _trunk("dropout")),
    "embd_pdrop": Honoured(0.1, _trunk("embed_dropout")),
    "attn_pdrop": Honoured(0.1, _trunk("attention_dropout")),
    "classifier_dropout": Inert("only when training; set heads.*.dropout"),
    "scale_attn_weights": Only((True,)),
    "scale_attn_by_inverse_layer_idx": Only((False,)),
    "reorder_and_upcast_attn": Inert("the same numbers, with a softmax in float32, which ours always is"),
    "add_cross_attention": Only((False,)),
    "summary_type": _DOUBLE_HEADS,
    "summary_use_proj": _DOUBLE_HEADS,
    "summary_activation": _DOUBLE_HEADS,
    "summary_proj_to_labels": _DOUBLE_HEADS,
    "summary_first_dropout": _DOUBLE_HEADS,
}
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def _complete(config: Config) -> Config:
    """Fields under the names that other families give them."""
    return {**{ALIASES[name]: value for name, value in config.items() if name in ALIASES}, **config}


def _conv1d(theirs: str, ours: tuple[str, ...], depth: int, axes: int = 1) -> list[Row]:
    """Rows of a `Conv1D`, which holds one or several of our linear layers."""
    return [
        Row(f"{theirs}.weight", tuple(f"{name}/kernel" for name in ours), Conv1D(axes), depth),
        Row(f"{theirs}.bias", tuple(f"{name}/bias" for name in ours), Vector(), depth),
    ]


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    p = "" if architecture == "GPT2Model" else "transformer."
    trunk = "encoders_text" if model.encoders else "decoders_caption"
    depth = (model.encoders.get("text") or model.decoders["caption"]).depth
    t, o = f"{p}h.{{l}}", f"{trunk}/stack/layers"
    rows = [
        *table(f"{p}wte.weight", f"{trunk}/words"),
        *table(f"{p}wpe.weight", f"{trunk}/position"),
        *norm(f"{t}.ln_1", f"{o}/attention_norm", depth=depth),
        *_conv1d(f"{t}.attn.c_attn", tuple(f"{o}/attention/{part}" for part in "qkv"), depth),
        *_conv1d(f"{t}.attn.c_proj", (f"{o}/attention/out",), depth, axes=2),
        *norm(f"{t}.ln_2", f"{o}/mlp_norm", depth=depth),
        *_conv1d(f"{t}.mlp.c_fc", (f"{o}/mlp/up",), depth),
        *_conv1d(f"{t}.mlp.c_proj", (f"{o}/mlp/down",), depth),
        *norm(f"{p}ln_f", f"{trunk}/stack/final_norm"),
    ]
    if "classes" in model.heads:
        rows += linear("score", "heads_classes/logits", bias=False)
    if "token_classes" in model.heads:
        rows += linear("classifier", "heads_token_classes/logits")
    if "caption" in model.decoders and not model.decoders["caption"].tied:
        rows += linear("lm_head", "decoders_caption/logits", bias=False)
    return rows


GPT2 = Family(
    model_type="gpt2",
    texts=("",),
    models=MODELS,
    fields=FIELDS,
    rows=_rows,
    prefix="transformer.",
    dropped=(r"\.attn\.(bias|masked_bias)$", r"^lm_head\.weight$"),  # the causal mask as buffers; the tied output
    complete=_complete,
    aliases=ALIASES,
    ties=(Tie("lm_head.weight", "transformer.wte.weight"),),
)
