"""The column of tagged words: named entities, parts of speech; the token ids of the words and a tag for each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError, nearest, within
from mmjax.data.kinds import About, Arrays, Lost
from mmjax.data.schemes import OUTSIDE, check_tag, from_iob1, scheme_of, spans, tag_names, types_of
from mmjax.data.texts import REMEMBERED, column_texts
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Record, Records

SHOWN = 6  # words of a record in a complaint
Sentence = tuple[tuple[str, ...], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Tags:
    """Words with a tag each: the tokens of the words, and the tag of a word at the first of its tokens.

    A record holds a list of words and under the column's own key as many tags. The tokenizer is applied to each word by itself,
    as `transformers` does with `is_split_into_words=True`; one that marks the spaces between words (byte-level BPE) is given
    them. In the batch, B examples of T tokens:

    - `OF` and `OF_mask` [B, T]: token ids int32, and which of them are real;
    - `KEY` [B, T] int32: the tag, as its place among the names, at the first token of each word; -1 at all others;
    - `KEY_words` [B, T] int32: the number of the word at its first token; -1 at all others;
    - `KEY_ends` [B, T] int32: the number of an entity's last word at the first token of its first; -1 at all others;
    - `KEY_lost` [B, types] int32: entities of each type of which a word has no token: cut, or nothing to the tokenizer.
      `evaluate.Entities` counts them as missed.

    Attributes:
      names: all tags, in the order of a head's classes, `O` among them; () for `O`, then type by type in alphabetical order,
        `B-` before `I-`: for that all records are read once.
      scheme: `iob2` (or `bio`), `iobes` (or `bioes`); `iob1` is made `iob2`.
      of: the key of the text that the words make.
      words: the key of the words in a record.
      label_all: the other tokens of a word have its tag too, `I-` for `B-`; for scheme `iob2`. `Entities` reads
        the first ones all the same; `mmjax predict` reads all.
      tokenizer: the name of one of the experiment's `tokenizers`; "" for its `tokenizer`.
      max_length: T; 0 for that of the data.
    """

    names: tuple[str, ...] = ()
    scheme: str = "iob2"
    of: str = "text"
    words: str = "words"
    label_all: bool = False
    tokenizer: str = ""
    max_length: int = setting(least=0, default=0)

    def named(self, tags: Callable[[], Iterable[str]]) -> Tags:
        """With the names that the tags of all records have, unless it has some."""
        return self if self.names else dataclasses.replace(self, names=tag_names(tags(), self.own()))

    def own(self) -> str:
        """The scheme that its tags have in a batch."""
        found = scheme_of(self.scheme, ("iob1",))
        return "iob2" if found == "iob1" else found

    def build(self, key: str, value: Any, about: About, first: Record) -> TagsColumn:
        scheme = self.own()
        if self.words not in first:
            raise UserError(f"words={self.words!r}: no record has it; its keys are {', '.join(first)}")
        if isinstance(self.names, str) or len(set(self.names)) < len(self.names) or OUTSIDE not in self.names:
            raise UserError(f"names={self.names!r}: give a tuple of tags, each once, {OUTSIDE!r} among them")
        for name in self.names:
            check_tag(name, scheme)
        if self.label_all and scheme != "iob2":
            raise UserError(f"label_all=True with scheme={self.scheme!r}: a word that is cut in two has no such tags; use iob2")
        if self.tokenizer not in about.tokenizers:
            known = ", ".join(name for name in about.tokenizers if name) or "none"
            raise UserError(f"tokenizer={self.tokenizer!r}: the words want a tokenizer, and the experiment's are {known}")
        return TagsColumn(self, key, about.tokenizers[self.tokenizer], self.max_length or about.max_length)


class TagsColumn:
    """See `Tags`.

    Attributes:
      names: as the model knows them: `match` may put them into another order.
      texts: the key of the text -> its tokenizer and length.
      padding: the keys that hold a value a token -> what they hold where there is none.
    """

    def __init__(self, spec: Tags, key: str, tokenizer: Tokenizer, max_length: int) -> None:
        self.spec, self.key, self.names = spec, key, spec.names
        self.tokenizer, self.max_length = tokenizer, max_length
        self.texts = {spec.of: (tokenizer, max_length)}
        self.padding = {spec.of: tokenizer.pad_id, f"{spec.of}_mask": 0, key: -1, f"{key}_words": -1, f"{key}_ends": -1}
        self.taken = (spec.words,)
        self._remembered: dict[Sentence, dict[str, np.ndarray]] = {}

    def match(self, names: tuple[str, ...]) -> None:
        """Give tags as places among `names`, which hold all of the column's own."""
        assert set(self.names) <= set(names)
        self.names = names
        self._remembered.clear()

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        sentences = [self._sentence(record[self.spec.words], tags) for record, tags in zip(records, values, strict=True)]
        rows = {one: row for one in sentences if (row := self._remembered.get(one)) is not None}
        if new := list(dict.fromkeys(one for one in sentences if one not in rows)):
            made = self._made(new)
            rows |= made
            if len(self._remembered) + len(new) > REMEMBERED:
                self._remembered.clear()
            self._remembered |= made
        found = {name: np.stack([rows[one][name] for one in sentences]) for name in rows[sentences[0]]}
        told = {name: int(found.pop(name).sum()) for name in ("truncated", "unknown", "words")}
        return found, Lost(**told, tokens=int(found[f"{self.spec.of}_mask"].sum()))

    def _sentence(self, words: Any, tags: Any) -> Sentence:
        """Words and tags of a record, checked as far as one can without its scheme."""
        for what, given in ((self.spec.words, words), (self.key, tags)):
            odd = not isinstance(given, list | tuple | np.ndarray) or any(not isinstance(one, str) for one in given)
            if odd:
                raise UserError(f"{what}={given!r}"[:120] + ": give a list of strings")
        if len(words) != len(tags):
            raise UserError(
                f"{_said(words)} has {len(words)} {self.spec.words} and {len(tags)} {self.key}: give as many of both"
            )
        return tuple(words), tuple(tags)

    def _made(self, sentences: Sequence[Sentence]) -> dict[Sentence, dict[str, np.ndarray]]:
        """The rows of sentences."""
        found = self.tokenizer.encode_words([words for words, _ in sentences], self.max_length)
        unknown = self.tokenizer.unknown(found["ids"], found["mask"])
        rows = {}
        for n, sentence in enumerate(sentences):
            own = {f"{self.spec.of}": found["ids"][n], f"{self.spec.of}_mask": found["mask"][n]}
            told = {"truncated": found["truncated"][n], "unknown": unknown[n]}
            rows[sentence] = own | told | self._tagged(sentence, found["words"][n])
        return rows

    def _tagged(self, sentence: Sentence, word_T: np.ndarray) -> dict[str, np.ndarray]:
        """What the tags of a sentence are to its tokens, of which `word_T` are the words."""
        words, tags = sentence
        try:
            tags = from_iob1(tags) if self.spec.scheme == "iob1" else tags
            entities = spans(tags, self.spec.own())
            ids = np.array([self._place(tag) for tag in tags], np.int32)
        except UserError as error:
            raise UserError(f"{_said(words)}: {error}") from None
        first_T = (word_T >= 0) & (word_T != np.concatenate([[-1], word_T[:-1]]))
        last_T = np.full_like(word_T, -1)
        lost = np.zeros(len(types_of(self.names)), np.int32)
        place = dict(zip(word_T[first_T].tolist(), np.flatnonzero(first_T).tolist(), strict=True))
        for kind, start, end in entities:
            if all(word in place for word in range(start, end + 1)):
                last_T[place[start]] = end
            else:
                lost[types_of(self.names).index(kind)] += 1
        label_T = np.full_like(word_T, -1)
        label_T[first_T] = ids[word_T[first_T]]
        if self.spec.label_all:
            going_on = np.array([self._place(tag.replace("B-", "I-", 1)) for tag in tags], np.int32)
            others_T = (word_T >= 0) & ~first_T
            label_T[others_T] = going_on[word_T[others_T]]
        own = {"": label_T, "_words": np.where(first_T, word_T, -1).astype(np.int32), "_ends": last_T, "_lost": lost}
        return {f"{self.key}{part}": x for part, x in own.items()} | {"words": np.array(len(words) - len(place))}

    def _place(self, tag: str) -> int:
        if tag not in self.names:
            raise UserError(f"{tag!r} is not one of the tags{nearest(tag, self.names)}; they are {', '.join(self.names[:20])}")
        return self.names.index(tag)


def with_names(columns: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """Columns with the names of tags that no spec says, from all records."""
    found = dict(columns)
    for key, spec in columns.items():
        if isinstance(spec, Tags):
            with within(f"columns.{key}"):
                found[key] = spec.named(functools.partial(column_texts, records, key))
    return found


def _said(words: Sequence[str]) -> str:
    """The first words of a record, by which it is found."""
    return repr(" ".join(words[:SHOWN])) + "..." * (len(words) > SHOWN)
