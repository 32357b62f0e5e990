"""Fusions: several Tokens -> fused Tokens. Each names the `modalities` it takes."""

from mmjax.models.fusion.cross import Cross
from mmjax.models.fusion.dual import Dual
from mmjax.models.fusion.late import Concatenate, Weighted
from mmjax.models.fusion.single_stream import SingleStream

FUSIONS = {
    "dual": Dual,
    "cross": Cross,
    "single_stream": SingleStream,
    "concatenate": Concatenate,
    "weighted": Weighted,
}
