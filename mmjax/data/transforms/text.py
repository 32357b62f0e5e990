"""Transforms that write text: captions from class names, and pairs of sentences."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Iterator

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.types import Record, Records

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SPACE = re.compile(r"\s+")
DRAWS = 16  # how often NextSentence looks for another text before it lets the pair stand


@dataclasses.dataclass(frozen=True)
class Caption:
    """Write `text` from the class's name, with a template drawn for each record.

    Attributes:
      templates: each with one placeholder or more, `{}` or `{name}`, and `{text}` for the caption that the source has.
      replaces: how often it takes the place of a caption that the source has: a share, drawn for each record. 0 refuses such
        records.
      separator: of names with this in them ("/": `animals/birds`) a beginning is drawn for each record, `animals` as often as
        the whole; "" takes them as they are.
    """

    templates: tuple[str, ...] = ("a photo of a {}.",)
    replaces: float = setting(least=0, most=1, default=0.0)
    separator: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, "Caption.")
        if not self.templates or isinstance(self.templates, str):
            raise UserError(f"Caption.templates={self.templates!r}: give a tuple of one template or more")
        for template in self.templates:
            try:
                found = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
            except ValueError as error:
                raise UserError(f"Caption.templates: {template!r} is not a template ({error})") from None
            if not found:
                raise UserError(f"Caption.templates: {template!r} has no placeholder; write {{}} where the class's name goes")
            for field in found:
                if field not in ("", "name", "text"):
                    known = "only {}, {name} and {text} can be filled"
                    raise UserError(f"Caption.templates: {template!r} has {{{field}}}; {known}")
            if set(found) == {"text"}:
                raise UserError(f"Caption.templates: {template!r} has no placeholder for the class's name; add {{}}")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        if "name" not in record:
            whose = "this record has none (label below 0)" if "label" in record else "the source has none"
            raise UserError(f"transforms: Caption needs records with a class name, and {whose}")
        if "text" in record and not self.replaces:
            raise UserError(
                "transforms: Caption would replace the captions that the source has; drop one of the two, or say how often it "
                "does (Caption.replaces=0.5)"
            )
        if "text" in record and rng.random() >= self.replaces:
            return record
        template = self.templates[rng.integers(len(self.templates))]
        if "text" not in record and _reads_text(template):
            raise UserError(f"Caption.templates: {template!r} has {{text}}, and the source has no captions")
        names = self._beginnings(record["name"])
        name = names[rng.integers(len(names))] if len(names) > 1 else names[0]
        return {**record, "text": _fill(template, name, record.get("text", ""))}

    def texts(self, records: Records) -> Iterator[str]:
        """Every template with every class, for the tokenizer to be trained on; captions of the source's own it gives itself."""
        names = dict.fromkeys(name for whole in records.classes for name in self._beginnings(whole))
        own = [template for template in self.templates if not _reads_text(template)]
        return (_fill(template, name) for template in own for name in names)

    def _beginnings(self, name: str) -> list[str]:
        parts = name.split(self.separator) if self.separator else [name]
        return [self.separator.join(parts[: count + 1]) for count in range(len(parts))]


@dataclasses.dataclass(frozen=True)
class NextSentence:
    """Write `text`, `text_pair` and `next` (1 = the second text follows the first, 0 = it is another record's).

    The next-sentence task of BERT (Devlin et al. 2019, arXiv:1810.04805, section 3.1). A record without `text_pair` is cut in
    two at the sentence end nearest its middle, or at the space nearest its middle if it is one sentence.

    Attributes:
      probability: how often the second text is another record's.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"NextSentence.probability={self.probability} is not between 0 and 1")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        first, second = _parts(record)
        if rng.random() < self.probability:
            for _ in range(DRAWS):
                other = _parts(records[int(rng.integers(len(records)))])
                if other[1] != second:
                    return {**record, "text": first, "text_pair": other[1], "next": 0}
        return {**record, "text": first, "text_pair": second, "next": 1}


def _reads_text(template: str) -> bool:
    return any(field == "text" for _, field, _, _ in string.Formatter().parse(template))


def _fill(template: str, name: str, text: str = "") -> str:
    return template.format(*[name] * template.count("{"), name=name, text=text)


def _parts(record: Record) -> tuple[str, str]:
    text = record.get("text")
    if text is None:
        raise UserError("transforms: NextSentence needs text, and the source has none")
    text = text if isinstance(text, str) else text[0]
    return (text, record["text_pair"]) if "text_pair" in record else _cut(text)


def _cut(text: str) -> tuple[str, str]:
    text = text.strip()
    for boundary in (SENTENCE_END, SPACE):
        gaps = list(boundary.finditer(text))
        if gaps:
            gap = min(gaps, key=lambda gap: abs(gap.start() + gap.end() - len(text)))
            return text[: gap.start()], text[gap.end() :]
    return text, ""
