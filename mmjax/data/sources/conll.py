"""Tagged words in the format of the CoNLL tasks: a word a line, its tag in another column, blank lines between sentences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data import splits
from mmjax.data.splits import SPLITS
from mmjax.data.types import Record

DOCUMENT = "-DOCSTART-"  # the word of a line that begins a document


@dataclasses.dataclass(frozen=True)
class Conll:
    """Sentences of a file of tagged words; the column `Tags` makes a batch of them.

    The columns of a line are parted by tabs where it has one, else by spaces. Blank lines part sentences, and lines whose first
    column is `-DOCSTART-` are passed over (Tjong Kim Sang and De Meulder 2003).

    Attributes:
      path: the file, UTF-8.
      split: "all", or "train", "validation" or "test" by a hash of each sentence: adding sentences moves no other.
      fractions: shares of train, validation and test.
      word_column: of the word, from 0; from the end below 0.
      tag_column: of the tag.
      comment: lines that begin so are passed over: "# " in CoNLL-U; "" for none.
    """

    path: str = setting(everyday=True, path=True)
    split: str = "all"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    word_column: int = 0
    tag_column: int = -1
    comment: str = ""

    def build(self) -> ConllRecords:
        """Records of `words` and `tags`, tuples of str.

        Raises:
          UserError: no such file, a line that is not UTF-8 or has too few columns (named by its number), no sentence at all or
            none in the split, an unknown split, fractions that do not sum to 1.
        """
        splits.check_split("Conll", self.split, (*SPLITS, "all"))
        splits.check_fractions("Conll", self.fractions)
        if not Path(self.path).is_file():
            raise UserError(f"Conll.path={self.path!r}: no such file")
        whole = tuple(self._sentences())
        if not whole:
            raise UserError(f"Conll.path={self.path!r}: it has no sentence")
        kept = whole
        if self.split != "all":
            kept = tuple(one for one in whole if splits.hash_split("\n".join(one[0]), self.fractions) == self.split)
        if not kept:
            raise UserError(f"Conll.split={self.split!r}: none of the {len(whole)} sentences of {self.path} are in it")
        return ConllRecords(kept)

    def _sentences(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        words: list[str] = []
        tags: list[str] = []
        for number, data in enumerate(Path(self.path).read_bytes().split(b"\n"), 1):
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
            except UnicodeDecodeError as error:
                raise UserError(f"{self.path}:{number}: not UTF-8 text ({error})") from None
            columns = parted(line)
            if any(columns) and not (self.comment and line.startswith(self.comment)) and columns[0] != DOCUMENT:
                words.append(self._column(columns, "word_column", number))
                tags.append(self._column(columns, "tag_column", number))
            elif not any(columns) and words:
                yield tuple(words), tuple(tags)
                words, tags = [], []
        if words:
            yield tuple(words), tuple(tags)

    def _column(self, columns: Sequence[str], option: str, number: int) -> str:
        place = getattr(self, option)
        if not -len(columns) <= place < len(columns) or not columns[place]:
            raise UserError(f"{self.path}:{number}: Conll.{option}={place}, and the line is {columns!r}")
        if len({one + len(columns) * (one < 0) for one in (self.word_column, self.tag_column)}) == 1:
            raise UserError(f"{self.path}:{number}: a word and its tag are two columns, and the line has one: {columns!r}")
        return str(columns[place])


def parted(line: str) -> list[str]:
    """The columns of a line, at its tabs or, where it has none, at its spaces. A wide space, as Japanese has it, is a word."""
    line = line.strip(" ")
    return [one.strip(" ") for one in line.split("\t")] if "\t" in line else re.split(" +", line)


@dataclasses.dataclass(frozen=True)
class ConllRecords:
    """The sentences of a split.

    Attributes:
      sentences: (words, tags) of each.
    """

    sentences: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int, /) -> Record:
        words, tags = self.sentences[index]
        return {"words": words, "tags": tags}

    def texts(self) -> Iterator[str]:
        return iter(())

    def texts_of(self, key: str) -> Iterator[str]:
        """All words, or all tags."""
        for words, tags in self.sentences:
            yield from {"words": words, "tags": tags}.get(key, ())

    def fingerprint(self) -> str:
        return splits.fingerprint("\n".join(part) for one in self.sentences for part in one)
