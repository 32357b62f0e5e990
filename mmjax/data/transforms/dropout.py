"""Training with some modalities left out, so that a model can do without any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.lacking import LACKS, Lacks, without
from mmjax.data.types import Record, Records


@dataclasses.dataclass(frozen=True)
class ModalityDropout:
    """Leave modalities out of an example, each by a draw of its own (Neverova 2015, section 3.3).

    Where more would be left out than `keep` allows, those stay that were nearest to staying. The data's `optional` names the
    keys; `KEY_valid` of the batch says what was left out.

    Attributes:
      rates: key of a record -> how often it is left out.
      keep: at least so many of the keys in `optional` that a record has are left in it.
    """

    rates: Mapping[str, float] = setting(least=0, most=1, default_factory=dict)
    keep: int = setting(least=0, default=1)

    def __post_init__(self) -> None:
        check_ranges(self, "ModalityDropout.")
        if not self.rates:
            raise UserError("ModalityDropout.rates={}: give the rate of a key, for instance {'image': 0.3}")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        names = sorted(self.rates)
        drawn = dict(zip(names, rng.random(len(names)), strict=True))
        own = record.get(LACKS)
        optional = own.optional if isinstance(own, Lacks) else ()
        if stranger := next((name for name in names if name not in optional), None):
            raise UserError(f"ModalityDropout.rates.{stranger}: name it in data.optional, which has {optional}")
        assert isinstance(own, Lacks)
        there = [name for name in optional if name not in own.keys]
        left_out = sorted((name for name in names if name in there and drawn[name] < self.rates[name]), key=lambda n: drawn[n])
        return without(record, frozenset(left_out[: max(0, len(there) - self.keep)]))
