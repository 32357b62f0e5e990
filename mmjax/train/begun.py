"""The batches that a run has begun with, where its config now says less of them or was written before there was a choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mmjax.data import Data, Flip
from mmjax.data.packing import Packed
from mmjax.train.experiment import Experiment

STORED = "stored"  # the order of data before one could be chosen
ORDER, SIDED = Data.order, Flip.sided  # where nobody has chosen one, or any


def began_with(kept: Experiment, experiment: Experiment) -> dict[str, Any]:
    """What a run's own experiment says of its batches that the one to go on with leaves open; JSON-able, for `as_begun`.

    Data whose order nobody has chosen keep the stored one of runs from before there was a choice; a `Flip` mirrors whatever a
    text says where it did then; and windows of packed rows have as many texts as were drawn for them at the start.
    """
    common = {name: (kept.data[name], own) for name, own in experiment.data.items() if name in kept.data}
    drawn = {name: (before.packing, own.packing) for name, (before, own) in common.items()}
    drawn = {name: pair for name, pair in drawn.items() if all(isinstance(one, Packed) for one in pair)}
    return {
        "stored": [name for name, (before, own) in common.items() if own.order == ORDER and before.order == STORED],
        "heedless": [name for name, own in kept.data.items() if any(flip.sided == () for flip in _flips(own))],
        "examples": {name: before.examples for name, (before, own) in drawn.items() if before.examples and not own.examples},
    }


def as_begun(experiment: Experiment, known: Mapping[str, Any]) -> Experiment:
    """The experiment with what `began_with` found; {}: nothing is known."""
    made = heedless(in_stored_order(experiment, known.get("stored", ())), known.get("heedless", ()))
    return with_examples(made, known.get("examples", {}))


def with_examples(experiment: Experiment, examples: Mapping[str, int]) -> Experiment:
    """The same with so many texts in each window of packed rows, by the name of the data."""
    data = {
        name: dataclasses.replace(own, packing=dataclasses.replace(own.packing, examples=examples[name]))
        if name in examples
        else own
        for name, own in experiment.data.items()
    }
    return dataclasses.replace(experiment, data=data) if examples else experiment


def in_stored_order(experiment: Experiment, names: Collection[str]) -> Experiment:
    """The same with the order of records that there was before it could be chosen, of the data of these names."""
    data = {name: dataclasses.replace(own, order=STORED) if name in names else own for name, own in experiment.data.items()}
    return dataclasses.replace(experiment, data=data) if names else experiment


def heedless(experiment: Experiment, names: Collection[str]) -> Experiment:
    """The same whose `Flip`s mirror whatever a text says, where nobody has chosen their words, in the data of these names."""

    def old(transform: Any) -> Any:
        chosen = not isinstance(transform, Flip) or transform.sided != SIDED
        return transform if chosen else dataclasses.replace(transform, sided=())

    data = {
        name: dataclasses.replace(own, transforms=tuple(map(old, own.transforms))) if name in names else own
        for name, own in experiment.data.items()
    }
    return dataclasses.replace(experiment, data=data) if names else experiment


def _flips(data: Data) -> Iterator[Flip]:
    return (transform for transform in data.transforms if isinstance(transform, Flip))
