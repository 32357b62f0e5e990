"""By which tokens the text of each sound begins, where a model knows several languages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.convert import FAMILIES
from mmjax.core.errors import UserError
from mmjax.predict.made import listened
from mmjax.predict.work import Work


def begun(
    work: Work,
    decoder: str,
    prompts: Any,
    beside: dict[str, list[Any]],
    language: str,
    task: str,
    batch_of: Callable[..., dict[str, np.ndarray]],
    rows_of: Callable[..., Any],
) -> tuple[list[list[int]] | None, dict[str, list[Any]]]:
    """The tokens by which the text of each sound begins, None where all begin alike; and what it is written of, listened to.

    Args:
      beside: modality -> inputs.
      language, task: "" for the language that each sound is heard to be in, and to transcribe it.
      batch_of, rows_of: as `writing.ready` and `writing.written` take them.

    Raises:
      UserError: a language or a task that the model has not, or where it is said of what is no sound.
    """
    sounds, said = beside.get("audio"), f"language={language!r}, task={task!r}"
    family = FAMILIES.get(work.model.huggingface.get("model_type", ""))
    if sounds is not None and prompts is not None and family is not None and family.starts_apart:
        raise UserError(f"{work.path}: what it writes of a sound begins with tokens of its own; leave the prompt out")
    if (language or task) and (sounds is None or prompts is not None):
        raise UserError(f"{said}: these are said of sounds, and without a prompt")
    check(work, language, task)
    if work.speech is None or sounds is None or prompts is not None:
        return None, beside
    start = work.prompt(None)[0]
    heard = {**beside, "audio": [listened(work, sound) for sound in sounds]}
    spoken = [language] * len(sounds) if language else work.speech.heard(decoder, start, batch_of(heard, None), rows_of)
    return [work.speech.opening(start, one, task) for one in spoken], heard


def check(work: Work, language: str, task: str) -> None:
    """Raises `UserError` for a language or a task that the model has not; "" is none."""
    if (language or task) and work.speech is None:
        said = f"language={language!r}, task={task!r}"
        raise UserError(f"{work.path}: {said}: its texts all begin alike; leave these out")
    if work.speech is not None:
        work.speech.check(work.path, language, task)
