"""The families, by HuggingFace's `model_type`. A new one is one file, one line here, one test."""

from mmjax.convert.bert import BERT
from mmjax.convert.family import Family

FAMILIES: dict[str, Family] = {
    "bert": BERT,
}
