"""Schemes by which the tags of words say entities: a prefix and a type, `B-PER`; `O` is outside of all.

IOB2 (Tjong Kim Sang and Veenstra 1999) begins each entity with `B-` and goes on with `I-`; IOB1 begins with `I-` where no
entity of the type comes right before. IOBES ends entities of several words with `E-`, and one word alone is `S-`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmjax.core.errors import UserError, nearest

OUTSIDE = "O"
PREFIXES = {"iob2": ("B", "I"), "iobes": ("B", "I", "E", "S")}
ALIASES = {"bio": "iob2", "bioes": "iobes"}
Span = tuple[str, int, int]  # type, first word, last word


def scheme_of(name: str, others: Sequence[str] = ()) -> str:
    """`iob2` or `iobes`, or one of `others`. Raises `UserError` for another name."""
    found = ALIASES.get(name, name)
    if found not in (*PREFIXES, *others):
        known = (*PREFIXES, *ALIASES, *others)
        raise UserError(f"scheme={name!r} is no scheme{nearest(name, known)}: use one of {', '.join(known)}")
    return found


def parted(tag: str) -> tuple[str, str]:
    """Prefix and type; those of `O` are "O" and ""."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def check_tag(tag: object, scheme: str) -> None:
    """Raises `UserError` for what is no tag of a scheme."""
    prefix, kind = parted(tag) if isinstance(tag, str) else ("", "")
    if tag != OUTSIDE and not (prefix in PREFIXES[scheme] and kind):
        forms = ", ".join(f"{one}-TYPE" for one in PREFIXES[scheme])
        raise UserError(f"{tag!r} is no tag of the scheme {scheme}: its tags are {OUTSIDE}, {forms}")


def tag_names(tags: Iterable[str], scheme: str) -> tuple[str, ...]:
    """All tags of the types that some tags have: `O`, then type by type in the order of the alphabet, `B-` before `I-`."""
    kinds: set[str] = set()
    for tag in set(tags):
        check_tag(tag, scheme)
        kinds.add(parted(tag)[1])
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in sorted(kinds - {""}) for prefix in PREFIXES[scheme]))


def types_of(names: Iterable[str]) -> tuple[str, ...]:
    """The types of tags, each once, in their order."""
    return tuple(dict.fromkeys(kind for name in names if (kind := parted(name)[1])))


def from_iob1(tags: Sequence[str]) -> tuple[str, ...]:
    """IOB1 as IOB2: an `I-` that goes on with nothing begins an entity."""
    found, before = [], ""
    for tag in tags:
        check_tag(tag, "iob2")
        prefix, kind = parted(tag)
        found.append(f"B-{kind}" if prefix == "I" and kind != before else tag)
        before = kind
    return tuple(found)


def spans(tags: Sequence[str], scheme: str) -> list[Span]:
    """The entities that tags say, in their order.

    Raises:
      UserError: a tag that the scheme does not have, or one that cannot stand where it stands: an `I-` after `O`.
    """
    found: list[Span] = []
    opened: Span | None = None  # not ended yet
    for place, tag in enumerate(tags):
        check_tag(tag, scheme)
        prefix, kind = parted(tag)
        inside = prefix in ("I", "E")
        if inside and (opened is None or opened[0] != kind):
            before = repr(tags[place - 1]) if place else "nothing"
            tip = "; scheme='iob1' reads it as a beginning" if scheme == "iob2" else ""
            raise UserError(f"tag {place} is {tag!r} after {before}, which {scheme} does not allow{tip}")
        if opened is not None and not inside and scheme == "iobes":
            raise UserError(
                f"tag {place} is {tag!r} after {tags[place - 1]!r}, which {scheme} does not allow: E-{opened[0]} ends it"
            )
        if opened is not None and inside:
            opened = (kind, opened[1], place)
        elif opened is not None:
            found.append(opened)
            opened = None
        if prefix in ("B", "S"):
            opened = (kind, place, place)
        if opened is not None and prefix in ("E", "S"):
            found.append(opened)
            opened = None
    if opened is not None and scheme == "iobes":
        raise UserError(f"the last tag is {tags[-1]!r}, which {scheme} does not allow: E-{opened[0]} ends it")
    return [*found, opened] if opened is not None else found
