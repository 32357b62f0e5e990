"""Rung 4: one evaluator a file. An evaluator is a frozen spec, called with an `Evaluation` and the parameters."""

from mmjax.evaluate.answers import Answers
from mmjax.evaluate.calibration import Calibration
from mmjax.evaluate.captions import Captions
from mmjax.evaluate.entities import Entities
from mmjax.evaluate.evaluation import Evaluation, Evaluator
from mmjax.evaluate.held_out import HeldOut
from mmjax.evaluate.multi_labels import MultiLabels
from mmjax.evaluate.ordinals import Ordinals
from mmjax.evaluate.perplexity import Perplexity
from mmjax.evaluate.ranked import Ranked
from mmjax.evaluate.ranking import Ranking
from mmjax.evaluate.regression import Errors
from mmjax.evaluate.report import Report
from mmjax.evaluate.retrieval import Retrieval
from mmjax.evaluate.segmentation import Segmentation
from mmjax.evaluate.span_answers import SpanAnswers
from mmjax.evaluate.tip_adapter import TipAdapter
from mmjax.evaluate.transcripts import Transcripts
from mmjax.evaluate.zero_shot import ZeroShot

EVALUATORS: dict[str, type] = {
    "zero_shot": ZeroShot,
    "retrieval": Retrieval,
    "report": Report,
    "calibration": Calibration,
    "perplexity": Perplexity,
    "held_out": HeldOut,
    "errors": Errors,
    "multi_labels": MultiLabels,
    "ordinals": Ordinals,
    "ranked": Ranked,
    "segmentation": Segmentation,
    "captions": Captions,
    "answers": Answers,
    "ranking": Ranking,
    "tip_adapter": TipAdapter,
    "entities": Entities,
    "span_answers": SpanAnswers,
    "transcripts": Transcripts,
}

__all__ = [
    "EVALUATORS",
    "Answers",
    "Calibration",
    "Captions",
    "Entities",
    "Errors",
    "Evaluation",
    "Evaluator",
    "HeldOut",
    "MultiLabels",
    "Ordinals",
    "Perplexity",
    "Ranked",
    "Ranking",
    "Report",
    "Retrieval",
    "Segmentation",
    "SpanAnswers",
    "TipAdapter",
    "Transcripts",
    "ZeroShot",
]
