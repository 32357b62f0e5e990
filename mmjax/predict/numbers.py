"""The numbers that heads say of an input: what `Regression` learned, in its own unit, and the scores of `Ranking`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mmjax.predict.heads import reads, suits
from mmjax.predict.work import Work


def measuring(work: Work, given: set[str]) -> list[str]:
    """The heads that say one number of each input, and read just these modalities."""
    return [head for head in work.measured if head in work.model.heads and suits(work, reads(work, head), given)]


def found(
    work: Work, heads: list[str], batch: dict[str, np.ndarray], rows: Callable[..., Mapping[str, np.ndarray]]
) -> list[dict[str, float | list[float]]]:
    """Of each input head -> its number, or several; and `HEAD_deviation`, where it says how sure it is.

    Args:
      rows: see `Predictor._rows`.
    """
    logits = rows(("numbers", *heads), lambda forward: {head: forward.head(head) for head in heads}, batch)
    found: list[dict[str, float | list[float]]] = [{} for _ in next(iter(batch.values()))]
    for head in heads:
        mean, deviation, sure = work.measured[head]
        own = np.asarray(logits[head], np.float64)
        own = own.reshape(len(own), -1)
        values = {head: own}
        if sure:  # means first, or a mean and a logarithm of a variance for each
            pairs = own.reshape(len(own), -1, 2) if logits[head].ndim > 2 else own.reshape(len(own), 2, -1).swapaxes(1, 2)
            values = {head: pairs[..., 0], f"{head}_deviation": np.exp(0.5 * pairs[..., 1])}
        for name, number in values.items():
            scaled = deviation * number + (mean if name == head else 0.0)
            for row, one in zip(found, scaled.tolist(), strict=True):
                row[name] = one[0] if len(one) == 1 else one
    return found
