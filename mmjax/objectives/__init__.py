"""Rung 1: what a model is trained to do. One objective a file: a frozen dataclass called as `(forward, batch, rng) -> Loss`.

Every objective computes in float32, leaves rows whose `valid` is False out of everything, and draws its randomness per example.
"""

from mmjax.core.types import Objective
from mmjax.objectives.alignment import Alignment
from mmjax.objectives.causal_lm import CausalLM
from mmjax.objectives.classification import Classification
from mmjax.objectives.contrastive import Contrastive
from mmjax.objectives.ctc import CTC
from mmjax.objectives.distil_logits import DistilLogits
from mmjax.objectives.distil_text import DistilText
from mmjax.objectives.distil_tokens import DistilTokens
from mmjax.objectives.distil_towers import DistilTowers
from mmjax.objectives.extract_span import ExtractSpan
from mmjax.objectives.masked_contrastive import MaskedContrastive
from mmjax.objectives.masked_image import MaskedImage
from mmjax.objectives.masked_lm import MaskedLM
from mmjax.objectives.matching import Matching
from mmjax.objectives.multi_label import MultiLabel
from mmjax.objectives.next_sentence import NextSentencePrediction
from mmjax.objectives.ordinal import Ordinal
from mmjax.objectives.prompted import Prompted
from mmjax.objectives.ranking import Ranking
from mmjax.objectives.regression import Regression
from mmjax.objectives.span_corruption import SpanCorruption
from mmjax.objectives.triplet import Triplet

OBJECTIVES: dict[str, type[Objective]] = {
    "alignment": Alignment,
    "causal_lm": CausalLM,
    "classification": Classification,
    "contrastive": Contrastive,
    "ctc": CTC,
    "distil_logits": DistilLogits,
    "distil_text": DistilText,
    "distil_tokens": DistilTokens,
    "distil_towers": DistilTowers,
    "extract_span": ExtractSpan,
    "masked_contrastive": MaskedContrastive,
    "masked_image": MaskedImage,
    "masked_lm": MaskedLM,
    "matching": Matching,
    "multi_label": MultiLabel,
    "next_sentence": NextSentencePrediction,
    "ordinal": Ordinal,
    "prompted": Prompted,
    "ranking": Ranking,
    "regression": Regression,
    "span_corruption": SpanCorruption,
    "triplet": Triplet,
}
