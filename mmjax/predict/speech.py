"""How a text begins that Whisper writes: with a language and a task, which its tokens say (Radford 2022, section 2.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError, nearest
from mmjax.generate.generation_config import MANNERS

TASKS = ("transcribe", "translate")


@dataclasses.dataclass(frozen=True)
class Speech:
    """What generation_config.json says of the tokens of a model of several languages.

    Attributes:
      languages: "en" -> its token.
      tasks: `transcribe`, `translate` (into English) -> its token.
      untimed: the token that says that no times are written; None where there is none.
    """

    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    untimed: int | None

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Speech | None:
        """None for a model of one language."""
        if not isinstance(languages := said.get("lang_to_id"), Mapping):
            return None
        own = {str(name).strip("<|>"): int(token) for name, token in languages.items()}
        tasks = said.get("task_to_id") or {}
        return cls(own, {str(name): int(token) for name, token in tasks.items()}, said.get("no_timestamps_token_id"))

    def check(self, path: str, language: str, task: str) -> None:
        """Raises `UserError` for a language or a task that the model has not; "" is none."""
        if language and language not in self.languages:
            raise UserError(f"{path}: language={language!r} is none of its{nearest(language, self.languages)}; {self._names()}")
        if task and task not in self.tasks:
            raise UserError(f"{path}: task={task!r}: use one of {', '.join(self.tasks) or 'none'}")

    def opening(self, start: int, language: str, task: str) -> list[int]:
        """The tokens before a text."""
        rest = (self.tasks.get(task or TASKS[0]), self.untimed)
        return [start, self.languages[language], *(token for token in rest if token is not None)]

    def heard(self, decoder: str, start: int, batch: Mapping[str, np.ndarray], rows_of: Callable[..., Any]) -> list[str]:
        """The likeliest language of each sound: of the tokens after the first, as `transformers` asks for it."""

        def ask(forward: Any) -> Any:
            spec = forward.spec(f"decoders.{decoder}")
            rows = next(iter(forward.batch.values())).shape[0]
            ids_B1 = jnp.full((rows, 1), start, jnp.int32)
            written = {spec.writes: ids_B1, f"{spec.writes}_mask": jnp.ones_like(ids_B1, bool)}
            context = {name: forward.tokens(name) for name in spec.context}
            return forward.decode(decoder, written, context, key="language")[:, 0, jnp.asarray([*self.languages.values()])]

        names = list(self.languages)
        return [names[n] for n in rows_of(("language", decoder), ask, dict(batch)).argmax(axis=1)]

    def _names(self) -> str:
        return f"it has {', '.join([*self.languages][:12])}{', ...' if len(self.languages) > 12 else ''}"


@dataclasses.dataclass(frozen=True)
class Clock:
    """The tokens of a model that writes times among its words.

    Attributes:
      untimed: the token that says that there are none; those after it are times.
      latest: the first time of a text is no later than so many ticks; None for any.
      previous: the token before what was said before; None where there is none.
      always: whether times are written where nobody says otherwise (generation_config.json's `return_timestamps`).
      how: what the same file says of `sequential.Manner`.
    """

    untimed: int
    latest: int | None
    previous: int | None
    always: bool = False
    how: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, said: Mapping[str, Any], tokenizer: Any, words: int) -> Clock | None:
        """By generation_config.json and the tokenizer; None for a vocabulary of `words` tokens without times."""
        untimed = said.get("no_timestamps_token_id")
        untimed = getattr(tokenizer, "untimed", None) if untimed is None else untimed
        if untimed is None or words <= untimed + 1:
            return None
        previous = said.get("prev_sot_token_id")
        previous = tokenizer.number("<|startofprev|>") if tokenizer is not None and previous is None else previous
        how = {name: said[name] for name in MANNERS if said.get(name) is not None}
        return cls(int(untimed), said.get("max_initial_timestamp_index"), previous, bool(said.get("return_timestamps")), how)
