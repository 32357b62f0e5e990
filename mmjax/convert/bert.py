"""BERT (Devlin et al. 2019): base, masked LM, next sentence, both, sequence and token classification, answers in passages."""

from __future__ import annotations

from typing import Any

from mmjax.convert.config_paths import get
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert, Only, Tie
from mmjax.convert.layout import Row, Vector, linear, norm, table
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier, TokenClassifier

TEXT = "encoders.text"


def _text() -> TextTransformer:
    return TextTransformer(norm_placement="post", embed_norm=True, segments=2)


def _pooled(classes: int) -> Classifier:
    """Tanh layer on [CLS], then logits; no classes: the pooled vector itself."""
    return Classifier(classes=classes, input="text", pool="cls", hidden_width=1, activation="tanh")


def _masked_lm(config: Config) -> TokenClassifier:
    return TokenClassifier(input="text", tied_to="text" if get(config, "tie_word_embeddings", True) else "")


def _token_classes(config: Config) -> TokenClassifier:
    return TokenClassifier(classes=labels(config), input="text", transform=False)


def spans(config: Config) -> TokenClassifier:
    """Two logits a token: an answer's first, its last."""
    if labels(config) != 2:
        raise UserError(f"num_labels={labels(config)}: a class that finds answers in passages has 2, for first and last token")
    return TokenClassifier(classes=2, input="text", transform=False)


def labels(config: Config) -> int:
    """The number of classes: of `id2label`, of `num_labels` in old files, 2 by default."""
    return len(config["id2label"]) if config.get("id2label") is not None else config.get("num_labels", 2)


def _model(**heads: Any) -> Multimodal:
    return Multimodal(encoders={"text": _text()}, heads=heads)


MODELS = {
    "BertModel": lambda c: _model(pooler=_pooled(0)),
    "BertForPreTraining": lambda c: _model(masked_lm=_masked_lm(c), next_sentence=_pooled(2)),
    "BertForMaskedLM": lambda c: _model(masked_lm=_masked_lm(c)),
    "BertForNextSentencePrediction": lambda c: _model(next_sentence=_pooled(2)),
    "BertForSequenceClassification": lambda c: _model(classes=_pooled(labels(c))),
    "BertForTokenClassification": lambda c: _model(token_classes=_token_classes(c)),
    "BertForQuestionAnswering": lambda c: _model(spans=spans(c)),
}

POOLED = ("pooler", "next_sentence", "classes")  # heads over BERT's pooler
FIELDS: dict[str, ConfigField] = {
    "vocab_size": Honoured(30522, (f"{TEXT}.vocab_size", "heads.masked_lm.classes")),
    "hidden_size": Honoured(768, (f"{TEXT}.width", *[f"heads.{head}.hidden_width" for head in POOLED])),
    "num_hidden_layers": Honoured(12, (f"{TEXT}.depth",)),
    "num_attention_heads": Honoured(12, (f"{TEXT}.heads",)),
    "intermediate_size": Honoured(3072, (f"{TEXT}.mlp_width",)),
    "hidden_act": Honoured("gelu", (f"{TEXT}.activation", "heads.masked_lm.activation"), ACTIVATIONS),
    "hidden_dropout_prob": Honoured(0.1, (f"{TEXT}.dropout",)),
    "attention_probs_dropout_prob": Honoured(0.1, (f"{TEXT}.attention_dropout",)),
    "classifier_dropout": Inert("only when training; set heads.*.dropout"),
    "max_position_embeddings": Honoured(512, (f"{TEXT}.max_length",)),
    "type_vocab_size": Honoured(2, (f"{TEXT}.segments",)),
    "layer_norm_eps": Honoured(1e-12, (f"{TEXT}.norm_epsilon", "heads.masked_lm.norm_epsilon")),
    "tie_word_embeddings": Honoured(True, ("heads.masked_lm.tied_to",), {True: "text", False: ""}),
    "position_embedding_type": Only(("absolute",)),
    "is_decoder": Only((False,)),
    "add_cross_attention": Only((False,)),
}


def layers(theirs: str, ours: str, depth: int) -> list[Row]:
    """The rows of a stack of BERT's layers: `theirs.{l}....` <-> `ours/layers/...`."""
    t, o = f"{theirs}.{{l}}", f"{ours}/layers"
    rows: list[Row] = []
    for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
        rows += linear(f"{t}.attention.self.{name}", f"{o}/attention/{short}", depth=depth)
    rows += linear(f"{t}.attention.output.dense", f"{o}/attention/out", axes=2, depth=depth)
    rows += norm(f"{t}.attention.output.LayerNorm", f"{o}/attention_norm", depth=depth)
    rows += linear(f"{t}.intermediate.dense", f"{o}/mlp/up", depth=depth)
    rows += linear(f"{t}.output.dense", f"{o}/mlp/down", depth=depth)
    return rows + norm(f"{t}.output.LayerNorm", f"{o}/mlp_norm", depth=depth)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    p = "" if architecture == "BertModel" else "bert."
    rows = [
        *table(f"{p}embeddings.word_embeddings.weight", "encoders_text/words"),
        *table(f"{p}embeddings.position_embeddings.weight", "encoders_text/position"),
        *table(f"{p}embeddings.token_type_embeddings.weight", "encoders_text/segment"),
        *norm(f"{p}embeddings.LayerNorm", "encoders_text/embed_norm"),
        *layers(f"{p}encoder.layer", "encoders_text/stack", model.encoders["text"].depth),
    ]
    logits = {"next_sentence": "cls.seq_relationship", "classes": "classifier"}
    for head in POOLED:
        if head in model.heads:
            rows += linear(f"{p}pooler.dense", f"heads_{head}/project")
            rows += linear(logits[head], f"heads_{head}/logits") if head in logits else []
    if "token_classes" in model.heads:
        rows += linear("classifier", "heads_token_classes/logits")
    if "spans" in model.heads:
        rows += linear("qa_outputs", "heads_spans/logits")
    if "masked_lm" in model.heads:
        rows += linear("cls.predictions.transform.dense", "heads_masked_lm/project")
        rows += norm("cls.predictions.transform.LayerNorm", "heads_masked_lm/norm")
        if model.heads["masked_lm"].tied_to:
            rows.append(Row("cls.predictions.bias", ("heads_masked_lm/tied_bias",), Vector()))
        else:
            rows += linear("cls.predictions.decoder", "heads_masked_lm/logits", bias=False)
            bias = "cls.predictions.decoder.bias"
            rows.append(Row(bias, ("heads_masked_lm/logits/bias",), Vector(), copies=("cls.predictions.bias",)))
    return rows


BERT = Family(
    model_type="bert",
    texts=("",),
    reads=("input_ids", "token_type_ids", "attention_mask"),
    models=MODELS,
    fields=FIELDS,
    rows=_rows,
    prefix="bert.",
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    ties=(Tie("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),),
    dropped=(r"embeddings\.position_ids$", r"^cls\.predictions\.(decoder\.(weight|bias)|bias)$"),
)
