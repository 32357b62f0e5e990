"""How a text is written: the settings, by the names that `transformers` gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Settings:
    """Greedy, drawn with `do_sample`, or searched for by beams; names and defaults of `transformers.GenerationConfig`.

    Attributes:
      max_new_tokens: at most so many tokens a text.
      min_new_tokens: no text ends before it has so many.
      min_length: no text ends before it and its prompt have so many; not looked at where `min_new_tokens` is given.
      do_sample: draw each token instead of taking the likeliest.
      temperature: of the draw; logits are divided by it.
      top_k: only so many of the likeliest tokens are drawn from; 0 for all.
      top_p: only the likeliest tokens whose chances add up to it (Holtzman 2020, section 3.1).
      min_p: only tokens at least so likely, as a share of the likeliest one's chance; 0 for all.
      num_beams: so many beginnings of a text are followed at once (`beams`); 1 for one.
      length_penalty: a beam's score is divided by its length to this power; above 0 for longer texts.
      early_stopping: of beams: True ends when as many texts as beams have ended, False when no better one is likely, `never`
        when none is possible.
      num_return_sequences: so many texts of each prompt: at most `num_beams`, or with `do_sample` any number.
      repetition_penalty: positive logits of tokens that were there, in the prompt too, are divided by it, others multiplied
        (Keskar 2019, section 4.1).
      no_repeat_ngram_size: no run of so many tokens comes twice; 0 for no such rule.
      bad_words_ids: runs of tokens that are not written.
      suppress_tokens: tokens that are never written.
      begin_suppress_tokens: tokens with which no text begins.
      forced_bos_token_id: the first token of every text that follows one token alone; None for none.
      forced_eos_token_id: the last token of a text that reaches `max_new_tokens`; None for none.
      eos_token_id: each of these ends a text; () for those of the tokenizer.
      stop_strings: each of these ends a text too; the token that completes one is the last.
      seed: of what is drawn.
    """

    max_new_tokens: int = setting(least=1, default=20)
    min_new_tokens: int = setting(least=0, default=0)
    min_length: int = setting(least=0, default=0)
    do_sample: bool = False
    temperature: float = setting(above=0, default=1.0)
    top_k: int = setting(least=0, default=50)
    top_p: float = setting(above=0, most=1, default=1.0)
    min_p: float = setting(least=0, most=1, default=0.0)
    num_beams: int = setting(least=1, default=1)
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = setting(least=1, default=1)
    repetition_penalty: float = setting(above=0, default=1.0)
    no_repeat_ngram_size: int = setting(least=0, default=0)
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = setting(least=0, below=2**32, default=0)

    def __post_init__(self) -> None:
        check_ranges(self)
        if any(not words for words in self.bad_words_ids):
            raise UserError(f"bad_words_ids={self.bad_words_ids}: a run of no tokens cannot be left out")
        if not all(self.stop_strings):
            raise UserError(f"stop_strings={self.stop_strings}: an empty string would end every text")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise UserError(f"early_stopping={self.early_stopping!r}: use True, False or 'never'")
        most = self.num_beams if self.num_beams > 1 else self.num_return_sequences if self.do_sample else 1
        if self.num_return_sequences > most:
            raise UserError(
                f"num_return_sequences={self.num_return_sequences} and num_beams={self.num_beams}: at most {most} texts of a "
                f"prompt {'without do_sample or more beams' if most == 1 else 'from so many beams'}"
            )


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Settings by their names; lists become tuples, a number alone one of them where there may be several. None says nothing.

    Raises:
      UserError: a name that there is not, or a value of another kind than the setting has.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in known:
            raise UserError(
                f"{name}={given[name]!r}: generation has no such setting{nearest(name, known)}; it has {', '.join(known)}"
            )
    return Settings(**{name: _typed(name, value) for name, value in given.items() if value is not None})


def token_ids(s: Settings) -> dict[str, tuple[int, ...]]:
    """The token ids that settings name, by the setting."""
    found = {name: getattr(s, name) for name in ("suppress_tokens", "begin_suppress_tokens", "eos_token_id")}
    forced = {name: getattr(s, name) for name in ("forced_bos_token_id", "forced_eos_token_id")}
    found |= {name: (token,) for name, token in forced.items() if token is not None}
    return {**found, "bad_words_ids": tuple(token for words in s.bad_words_ids for token in words)}


SEVERAL = {"eos_token_id": int, "suppress_tokens": int, "begin_suppress_tokens": int, "stop_strings": str}
WHOLE = ("forced_bos_token_id", "forced_eos_token_id")  # whose default, None, does not say that they are whole numbers


def _typed(name: str, value: Any) -> Any:
    """The value as `Settings` has it."""
    if name == "early_stopping":
        return value  # which says itself what it may be
    if name == "bad_words_ids":
        return tuple(tuple(_one(name, token, int) for token in _several(name, words)) for words in _several(name, value))
    if name in SEVERAL:
        alone = isinstance(value, str | int | np.integer)
        return tuple(_one(name, item, SEVERAL[name]) for item in ((value,) if alone else _several(name, value)))
    default = next(field.default for field in dataclasses.fields(Settings) if field.name == name)
    return _one(name, value, int if name in WHOLE else type(default))


def _several(name: str, value: Any) -> list[Any]:
    if isinstance(value, list | tuple | set | np.ndarray):
        return sorted(value) if isinstance(value, set) else list(value)
    raise UserError(f"{name}={value!r}: use a list")


def _one(name: str, value: Any, kind: type) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    said = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}[kind]
    raise UserError(f"{name}={value!r}: use {said}")
