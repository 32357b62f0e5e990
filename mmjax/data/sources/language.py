"""What can be said of a scene: its caption, in English and in Chinese, and questions with one right answer each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mmjax.data.sources.digits import NAMES

COLOURS = ("red", "green", "blue", "yellow", "white")
PLACES = ("top left", "top right", "bottom left", "bottom right")  # in the order of reading
ANSWERS = (*NAMES, *COLOURS, *PLACES, "yes", "no")

HIDDEN = "[MASK]"  # in place of a digit's name
# The same in Chinese.
CHINESE_NAMES = ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九")
CHINESE_COLOURS = ("红", "绿", "蓝", "黄", "白")
AND = "和"
CHINESE_PLACES = ("左上", "右上", "左下", "右下")

HOW_MANY = "how many digits are there?"
# Kind of question -> how it is put, of a digit or of a place.
KINDS = {
    "count": (HOW_MANY,),
    "digit": tuple(f"which digit is {place}?" for place in PLACES),
    "colour": tuple(f"what colour is the digit {place}?" for place in PLACES),
    "colour_of": tuple(f"what colour is the {name}?" for name in NAMES),
    "place": tuple(f"where is the {name}?" for name in NAMES),
    "exists": tuple(f"is there a digit {name}?" for name in NAMES),
}


@dataclasses.dataclass(frozen=True)
class Seen:
    """A digit in a scene: its place among `PLACES`, which of the ten it is, its place among `COLOURS`."""

    place: int
    digit: int
    colour: int


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question of a kind of `KINDS`, and its answer of `ANSWERS`."""

    kind: str
    question: str
    answer: str


def phrase(one: Seen) -> str:
    """A digit in words."""
    return f"a {COLOURS[one.colour]} {NAMES[one.digit]} {PLACES[one.place]}"


def caption(seen: Sequence[Seen]) -> str:
    """The whole scene in words, in the order of reading."""
    return " and ".join(phrase(one) for one in sorted(seen, key=lambda one: one.place))


def masked(seen: Sequence[Seen]) -> str:
    """The caption without the digits' names, which the picture alone then tells."""
    return " and ".join(
        f"a {COLOURS[one.colour]} {HIDDEN} {PLACES[one.place]}" for one in sorted(seen, key=lambda one: one.place)
    )


def chinese(seen: Sequence[Seen]) -> str:
    """The caption in Chinese: "左上有一个红色的三"."""
    return AND.join(
        f"{CHINESE_PLACES[one.place]}有一个{CHINESE_COLOURS[one.colour]}色的{CHINESE_NAMES[one.digit]}"
        for one in sorted(seen, key=lambda one: one.place)
    )


def ask(seen: Sequence[Seen], rng: np.random.Generator) -> Asked:
    """A question about a scene: each kind as often as any other, and of those with yes or no as many of both."""
    kind = tuple(KINDS)[rng.integers(len(KINDS))]
    one = seen[int(rng.integers(len(seen)))]
    number = one.place if kind in ("digit", "colour") else one.digit
    if kind == "exists" and rng.integers(2):
        absent = sorted(set(range(len(NAMES))) - {other.digit for other in seen})
        number = absent[rng.integers(len(absent))]
    question = HOW_MANY if kind == "count" else KINDS[kind][number]
    return Asked(kind, question, answer(seen, kind, number))


def answer(seen: Sequence[Seen], kind: str, number: int) -> str:
    """The answer to the question `KINDS[kind][number]` about a scene; what it asks for is there, but for `exists`."""
    if kind == "count":
        return NAMES[len(seen)]
    if kind == "exists":
        return "yes" if any(one.digit == number for one in seen) else "no"
    by_place = kind in ("digit", "colour")
    one = next(one for one in seen if number == (one.place if by_place else one.digit))
    return {
        "digit": NAMES[one.digit],
        "colour": COLOURS[one.colour],
        "colour_of": COLOURS[one.colour],
        "place": PLACES[one.place],
    }[kind]


def captions(say: Callable[[Sequence[Seen]], str] = caption) -> Iterator[str]:
    """Captions that hold every word of all; or what else is said of scenes, `masked` or in `chinese`."""
    for colour in range(len(COLOURS)):
        for digit in range(len(NAMES)):
            yield say([Seen(place, digit, colour) for place in range(len(PLACES))])


def questions() -> Iterator[str]:
    """Every question, once."""
    for asked in KINDS.values():
        yield from asked
