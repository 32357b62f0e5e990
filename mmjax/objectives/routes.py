"""The way to a head. A head's own `input` says what feeds it; a spec that says it too is held against it."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Forward


def named(given: str | Sequence[str]) -> tuple[str, ...]:
    """The inputs of a head, one or several, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def check(forward: Forward, head: str, modality: str, fusion: str, context: Sequence[str]) -> None:
    """Hold what a spec says of the way to its head against the head's `input`; "" and () say nothing.

    Raises:
      UserError: it says another way.
    """
    said = fusion or modality
    if not said:
        return
    inputs = named(forward.spec(f"heads.{head}").input)
    if inputs != (said,):
        field = f"fusion={fusion!r}" if fusion else f"modality={modality!r}"
        raise UserError(
            f"{field}: model.heads.{head} has input={inputs[0] if len(inputs) == 1 else inputs!r}, which feeds it; change "
            f"that, or leave {field.partition('=')[0]} away"
        )
    fused = forward.modalities(said)
    if modality and modality not in fused:
        raise UserError(f"modality={modality!r}: fusion {fusion!r} joins {', '.join(fused)}")
    others = set(fused) - {modality}
    if fusion and context and set(context) != (others if modality else set(fused)):
        raise UserError(f"context={tuple(context)}: beside {modality!r} fusion {fusion!r} joins {', '.join(sorted(others))}")


def check_classes(head: str, logits: Array, classes: int, why: str) -> None:
    """Raises UserError unless a head gives so many classes."""
    if logits.shape[-1] != classes:
        raise UserError(f"model.heads.{head}.classes={logits.shape[-1]}: {why}, so it needs {classes}")
