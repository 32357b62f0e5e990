"""DeiT (Touvron et al. 2020): a ViT with a distillation token after [CLS]; base, classification, with a teacher or without."""

from __future__ import annotations

from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.family import Family
from mmjax.convert.layout import Row, Table, linear
from mmjax.convert.vit import HEAD_FIELDS, POOLER, RENAMES, complete, encoder, image_fields, modules, pooled
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.heads import DistilledClassifier


def _model(**heads: Any) -> Multimodal:
    return Multimodal(encoders={"image": ViT(cls_token=True, extra_tokens=1)}, heads=heads)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    base = "" if architecture == "DeiTModel" else "deit."
    rows = encoder(base, model.encoders["image"])
    rows.append(Row(f"{base}embeddings.distillation_token", ("encoders_image/extra",), Table(lead=1)))
    if "pooler" in model.heads:
        return rows + linear("pooler.dense", "heads_pooler/project")
    if not model.heads["classes"].classes:
        return rows
    if isinstance(model.heads["classes"], DistilledClassifier):
        rows += linear("distillation_classifier", "heads_classes/second_logits")
        return rows + linear("cls_classifier", "heads_classes/logits")
    return rows + linear("classifier", "heads_classes/logits")


DEIT = Family(
    model_type="deit",
    models={
        "DeiTModel": lambda c: _model(pooler=POOLER),
        "DeiTForImageClassification": lambda c: _model(classes=pooled(labels(c))),
        "DeiTForImageClassificationWithTeacher": lambda c: _model(classes=DistilledClassifier(classes=labels(c))),
    },
    fields={**image_fields(), **HEAD_FIELDS},
    rows=_rows,
    modules=modules,
    prefix="deit.",
    renames=RENAMES,
    complete=complete,
)
