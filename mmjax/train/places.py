"""Texts that stand a token of another modality where its id is (`SplicedDecoder`), held against how many tokens that has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from mmjax.core.errors import UserError
from mmjax.models.forward import spliced_tokens
from mmjax.train.setup import Setup
from mmjax.train.state import with_variables


def check_places(setup: Setup, name: str, batches: Iterable[Mapping[str, Any]]) -> None:
    """Read batches of one record of a set of data to their end.

    A text without a place is one about no image; that every text is so is a mistake, which would train on texts alone.

    Raises:
      UserError: a text with other than as many places as the decoder's context has tokens, or with none in all of them.
    """
    wanted = {decoder: _tokens(setup, name, decoder) for decoder in _splicing(setup, name)}
    seen = dict.fromkeys(wanted, 0)
    for batch in batches:
        for decoder, tokens in wanted.items():
            part = setup.experiment.model.decoders[decoder]
            places = int((batch[part.writes] == part.place).sum())
            seen[decoder] += places
            if places not in (0, tokens):
                raise _wrong(setup, name, decoder, f"a {part.writes} holds it {places} times", tokens)
    for decoder in (decoder for decoder, places in seen.items() if not places):
        writes = setup.experiment.model.decoders[decoder].writes
        raise _wrong(setup, name, decoder, f"no {writes} holds it", wanted[decoder])


def _splicing(setup: Setup, name: str) -> list[str]:
    """The decoders with places for a context that some task or evaluator gives them on this data."""
    e = setup.experiment
    asked = [task.objective for task in e.tasks.values() if task.data == name]
    asked += [spec for spec in e.evaluate.values() if getattr(spec, "data", None) == name]
    found: dict[str, None] = dict.fromkeys(getattr(one, "decoder", "") for one in asked if getattr(one, "context", None) != ())
    decoders, spec = e.model.decoders, setup.datasets[name].spec()
    return [one for one in found if one in decoders and hasattr(decoders[one], "place") and decoders[one].writes in spec]


def _tokens(setup: Setup, name: str, decoder: str) -> int:
    """How many tokens of the context stand in a text."""
    shapes = {key: jax.ShapeDtypeStruct((1, *shape[1:]), dtype) for key, (shape, dtype) in setup.datasets[name].spec().items()}
    params = with_variables(setup.abstract.params, setup.abstract.variables.get("model", {}))
    return spliced_tokens(setup.experiment.model, params, shapes, decoder)


def _wrong(setup: Setup, name: str, decoder: str, found: str, tokens: int) -> UserError:
    part, length = setup.experiment.model.decoders[decoder], setup.experiment.data[name].max_length
    return UserError(
        f"model.decoders.{decoder}.place={part.place}: {found}, and {part.context[0]!r} has {tokens} tokens to stand there; "
        f"write its token {tokens} times into each text about one (max_length={length} must leave room)"
    )
