"""Schemes of tags against a slow reading of their definition, and against what seqeval 1.2.2 finds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data.schemes import from_iob1, scheme_of, spans, tag_names, types_of

TYPES = ("LOC", "PER")
PIECES = st.lists(st.tuples(st.sampled_from(("", *TYPES)), st.integers(1, 3)), max_size=8)


def written(pieces, scheme):
    """Tags and entities of (type or "", words) pieces, from the definition of each scheme."""
    tags, found = [], []
    for kind, size in pieces:
        start = len(tags)
        if not kind:
            tags += ["O"] * size
            continue
        found.append((kind, start, start + size - 1))
        if scheme == "iobes":
            middle = ["I"] * (size - 2)
            prefixes = ["S"] if size == 1 else ["B", *middle, "E"]
        else:
            first = "B" if scheme == "iob2" or (start and tags[-1].endswith(f"-{kind}")) else "I"
            prefixes = [first] + ["I"] * (size - 1)
        tags += [f"{prefix}-{kind}" for prefix in prefixes]
    return tags, found


@given(PIECES)
def test_entities_come_back_from_their_tags(pieces):
    for scheme in ("iob2", "iobes"):
        tags, found = written(pieces, scheme)
        assert spans(tags, scheme) == found
    tags, found = written(pieces, "iob1")
    assert spans(from_iob1(tags), "iob2") == found and from_iob1(tags) == tuple(written(pieces, "iob2")[0])


@given(st.lists(st.sampled_from(("O", *(f"{p}-{t}" for p in "BIES" for t in TYPES))), max_size=6))
def test_what_is_read_is_what_would_be_written(tags):
    """Every sequence is either the one way of writing its entities, or refused."""
    for scheme, prefixes in (("iob2", "BI"), ("iobes", "BIES")):
        try:
            found = spans(tags, scheme)
        except UserError:
            continue
        pieces, place = [], 0
        for kind, start, end in found:
            pieces += [("", start - place)] * (start > place) + [(kind, end - start + 1)]
            place = end + 1
        assert written([*pieces, ("", len(tags) - place)], scheme)[0] == tags and {tag[0] for tag in tags} <= {"O", *prefixes}


def test_names_are_sorted_with_o_first():
    tags = ["I-PER", "O", "B-LOC", "I-first-name"]
    assert tag_names(tags, "iob2") == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-first-name", "I-first-name")
    assert tag_names(["S-A"], "iobes") == ("O", "B-A", "I-A", "E-A", "S-A")
    assert types_of(("B-PER", "O", "I-LOC", "I-PER")) == ("PER", "LOC")
    assert scheme_of("bio") == "iob2" and scheme_of("bioes") == "iobes"


@pytest.mark.parametrize(
    ("tags", "scheme", "message"),
    [
        (
            ["O", "I-PER"],
            "iob2",
            "tag 1 is 'I-PER' after 'O', which iob2 does not allow; scheme='iob1' reads it as a beginning",
        ),
        (["I-PER"], "iob2", "tag 0 is 'I-PER' after nothing"),
        (["B-LOC", "I-PER"], "iob2", "tag 1 is 'I-PER' after 'B-LOC'"),
        (["B-LOC", "O"], "iobes", "tag 1 is 'O' after 'B-LOC', which iobes does not allow: E-LOC ends it"),
        (["B-LOC"], "iobes", "the last tag is 'B-LOC'"),
        (["S-LOC"], "iob2", "'S-LOC' is no tag of the scheme iob2: its tags are O, B-TYPE, I-TYPE"),
        (["B-"], "iob2", "'B-' is no tag"),
        ([""], "iob2", "'' is no tag"),
        ([3], "iob2", "3 is no tag"),
    ],
)
def test_what_a_scheme_does_not_allow_is_named(tags, scheme, message):
    with pytest.raises(UserError) as raised:
        spans(tags, scheme)
    assert message in str(raised.value)


def test_an_unknown_scheme():
    with pytest.raises(UserError, match=r"scheme='bioe' is no scheme \(did you mean 'bioes'\?\)"):
        scheme_of("bioe")
