"""Whatever is written is JSON for every reader, and finite floats come back bit for bit."""

import json
import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.strict_json import fitting, line, lines, pages, readable

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def no_constant(word):
    raise AssertionError(word)


def expected(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [expected(child) for child in value]
    return {name: expected(child) for name, child in value.items()} if isinstance(value, dict) else value


@given(VALUES)
def test_every_value_comes_back(value):
    for text in (
        line(value),
        pages(value),
        readable(value),
        fitting(readable(value), "ascii"),
        fitting(readable(value), "cp932"),
    ):
        assert json.loads(text, parse_constant=no_constant) == expected(value)
    assert "\n" not in line(value) and pages(value).endswith("\n")
    assert len(readable(value).splitlines()) == 1 and readable(value).encode().decode() == readable(value)
    fitting(readable(value), "cp932").encode("cp932")
    assert fitting(readable(value), "ascii") == line(value).replace("\x7f", "\\u007f")


def test_letters_are_letters_where_they_can_be():
    said = {"answer": "naïve 猫 😀"}
    assert readable(said) == '{"answer": "naïve 猫 😀"}' == lines([said]).strip()
    assert fitting(readable(said), "latin-1") == '{"answer": "naïve \\u732b \\ud83d\\ude00"}'
    assert fitting(readable(said), "utf-8") == fitting(readable(said), None) == readable(said)
    assert readable("a\u2028b\x85c\ud83d") == r'"a\u2028b\u0085c\ud83d"'


def test_numbers_of_arrays_are_numbers():
    found = {"a": np.float32(0.5), "b": jnp.asarray(2), "c": np.float64("nan"), "d": (1, np.bool_(True))}
    assert json.loads(line(found)) == {"a": 0.5, "b": 2, "c": None, "d": [1, True]}
