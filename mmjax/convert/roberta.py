"""RoBERTa (Liu et al. 2019): base, masked LM, sequence and token classification, answers in passages.

Positions count from the padding id.
"""

from __future__ import annotations

from typing import Any

from mmjax.convert import bert
from mmjax.convert.bert import TEXT, labels, layers, spans
from mmjax.convert.config_paths import get
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Tie
from mmjax.convert.layout import Row, Vector, linear, norm, table
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.heads import Classifier, TokenClassifier


def _model(**heads: Any) -> Multimodal:
    text = TextTransformer(norm_placement="post", embed_norm=True, segments=2, position_offset=2)
    return Multimodal(encoders={"text": text}, heads=heads)


def _pooled(classes: int) -> Classifier:
    """Tanh layer on <s>, then logits; no classes: the pooled vector itself."""
    return Classifier(classes=classes, input="text", pool="cls", hidden_width=1, activation="tanh")


def _masked_lm(config: Config) -> TokenClassifier:
    # Its activation is GELU whatever `hidden_act` says.
    return TokenClassifier(input="text", activation="gelu", tied_to="text" if get(config, "tie_word_embeddings", True) else "")


MODELS = {
    "RobertaModel": lambda c: _model(pooler=_pooled(0)),
    "RobertaForMaskedLM": lambda c: _model(masked_lm=_masked_lm(c)),
    "RobertaForSequenceClassification": lambda c: _model(classes=_pooled(labels(c))),
    "RobertaForTokenClassification": lambda c: _model(
        token_classes=TokenClassifier(classes=labels(c), input="text", transform=False)
    ),
    "RobertaForQuestionAnswering": lambda c: _model(spans=spans(c)),
}

FIELDS: dict[str, ConfigField] = {
    **bert.FIELDS,
    "vocab_size": Honoured(50265, (f"{TEXT}.vocab_size", "heads.masked_lm.classes")),
    "hidden_act": Honoured("gelu", (f"{TEXT}.activation",), ACTIVATIONS),
    "pad_token_id": Honoured(
        1, (f"{TEXT}.position_offset",), read=lambda pad: pad + 1, write=lambda offset: offset - 1, kind="any"
    ),
}


def _complete(config: Config) -> Config:
    """`max_position_embeddings` as the longest text: the rows up to the padding id's are no token's."""
    pad, rows = config.get("pad_token_id", 1), config.get("max_position_embeddings", 512)
    if not isinstance(pad, int) or not 0 <= pad < rows - 1:
        raise UserError(f"pad_token_id={pad!r}: positions count from it, so it must be in [0, {rows - 1})")
    return {**config, "max_position_embeddings": rows - pad - 1}


def _restore(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "max_position_embeddings": config["max_position_embeddings"] + config["pad_token_id"] + 1}


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    p = "" if architecture == "RobertaModel" else "roberta."
    rows = [
        *table(f"{p}embeddings.word_embeddings.weight", "encoders_text/words"),
        *table(f"{p}embeddings.position_embeddings.weight", "encoders_text/position"),
        *table(f"{p}embeddings.token_type_embeddings.weight", "encoders_text/segment"),
        *norm(f"{p}embeddings.LayerNorm", "encoders_text/embed_norm"),
        *layers(f"{p}encoder.layer", "encoders_text/stack", model.encoders["text"].depth),
    ]
    if "pooler" in model.heads:
        rows += linear("pooler.dense", "heads_pooler/project")
    if "classes" in model.heads:
        rows += linear("classifier.dense", "heads_classes/project")
        rows += linear("classifier.out_proj", "heads_classes/logits")
    if "token_classes" in model.heads:
        rows += linear("classifier", "heads_token_classes/logits")
    if "spans" in model.heads:
        rows += linear("qa_outputs", "heads_spans/logits")
    if "masked_lm" in model.heads:
        rows += linear("lm_head.dense", "heads_masked_lm/project")
        rows += norm("lm_head.layer_norm", "heads_masked_lm/norm")
        if model.heads["masked_lm"].tied_to:
            rows.append(Row("lm_head.bias", ("heads_masked_lm/tied_bias",), Vector()))
        else:
            rows += linear("lm_head.decoder", "heads_masked_lm/logits", bias=False)
            rows.append(Row("lm_head.decoder.bias", ("heads_masked_lm/logits/bias",), Vector(), copies=("lm_head.bias",)))
    return rows


ROBERTA = Family(
    model_type="roberta",
    texts=("",),
    models=MODELS,
    fields=FIELDS,
    rows=_rows,
    prefix="roberta.",
    # The pooler in files of the masked LM was never trained: RoBERTa has no next-sentence task.
    dropped=(r"embeddings\.position_ids$", r"^lm_head\.(decoder\.(weight|bias)|bias)$", r"^roberta\.pooler\.dense\."),
    complete=_complete,
    ties=(Tie("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),),
    restore=_restore,
)
