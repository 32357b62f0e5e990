"""Words of a command line: flags and values, a command's own options, values as they are written."""

import dataclasses
import shlex

import pytest

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.flags import hint, pairs, parse, placeholder, take, written


@dataclasses.dataclass(frozen=True)
class Own:
    folder: str | None = None
    count: int = 3
    fast: bool = False
    inside: str = setting(metavar="", default="")


def refused(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_flags_and_their_values():
    assert pairs(["--a.b", "1", "-2", "--c=x=y", "--d=", "e"]) == [("a.b", ["1", "-2"]), ("c", ["x=y"]), ("d", ["", "e"])]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--=3"], "'--=3' names no field"),
        (["--"], "'--' names no field"),
        (["-steps", "3"], "'-steps' is neither a config nor a flag"),
        (["a", "--b", "1"], "'a' is neither a config nor a flag"),
        (["--a", "--b", "1"], "--a: a value is missing"),
        (["--a", "1", "--b"], "--b: a value is missing"),
    ],
)
def test_words_that_are_no_flags(words, said):
    assert refused(lambda: pairs(words)).startswith(said)


def test_a_commands_own_options_are_taken_out_wherever_they_stand():
    words = ["run", "--folder", "a", "--fast", "--count=5", "--count.x", "1", "--folder=b"]
    assert take(words, Own) == Own("b", 5, True)
    assert words == ["run", "--count.x", "1"]
    assert take(["--inside", "x"], Own) == Own()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--folder"], "--folder: a value is missing"),
        (["--folder", "--fast"], "--folder: a value is missing"),
        (["--folder="], "--folder: a value is missing"),
        (["--folder", ""], "--folder: a value is missing"),
        (["--count", "many"], "--count many: expected int"),
        (["--fast=maybe"], "--fast maybe: expected bool"),
    ],
)
def test_an_option_with_a_wrong_value(words, said):
    assert refused(lambda: take(words, Own)) == said


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (str, "a photo of a {}, or not."),
        (str, ""),
        (str, "--x"),
        (int, -3),
        (float, 1e-8),
        (bool, True),
        (float | None, None),
        (tuple[int, int], (4, 4)),
        (tuple[str, ...], ("a, b", "c")),
        (tuple[str, ...], ("this is a {}, written by hand.",)),
        (tuple[str, ...], ("*/bias", "größe")),
        (tuple[str, ...], ()),
    ],
)
def test_what_is_written_of_a_value_sets_it(kind, value):
    assert parse(kind, "x", shlex.split(written(value)), value) == value


def test_placeholders():
    kinds = (int, float | None, tuple[int, int], tuple[str, ...], bool, dict)
    assert [placeholder(kind) for kind in kinds] == ["INT", "FLOAT", "INT INT", "TEXT ...", "true|false", "NAME"]


def test_a_hint_that_cannot_be_found_is_any():
    @dataclasses.dataclass
    class Mine:
        x: "NoSuchName" = 3  # noqa: F821

    assert parse(hint(Mine, "x"), "x", ["4"], 3) == 4
