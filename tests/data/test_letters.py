"""Letters end after their marks, as Python's own normalisation has it where one character stands for both."""

import itertools
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mmjax.data.letters import is_mark, letter_end

LETTERS = ("e\u0301", "o\u0308\u0304", "\u0928\u093f", "\u2764\ufe0f", "a\u200d", "n", "\u6771", " ")


@given(st.lists(st.sampled_from(LETTERS), min_size=1))
def test_a_part_ends_where_a_letter_does(letters):
    text, begins = "".join(letters), [0, *itertools.accumulate(map(len, letters[:-1]))]
    edges = [*begins, len(text)]
    assert [place for place in range(len(text) + 1) if not is_mark(text, place)] == edges
    assert all(letter_end(text, end) == min(edge for edge in edges if edge >= end) for end in range(len(text) + 1))


def test_a_letter_that_is_one_character_has_no_more_of_it():
    for letter in ("e\u0301", "o\u0308"):
        assert not is_mark(unicodedata.normalize("NFC", letter) + "x", 1) and letter_end(letter + "x", 1) == 2
    assert not is_mark("\u0301", 0) and letter_end("", 0) == 0
