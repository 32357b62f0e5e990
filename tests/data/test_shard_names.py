"""Patterns of files: `*` sorted, braces in their order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.config import rooted
from mmjax.core.errors import UserError
from mmjax.data import WebDataset
from mmjax.data.files import shard_names as names
from mmjax.data.files.shard_names import braces, shard_names


@pytest.mark.parametrize(
    "pattern, expected",
    [  # as bash and the package braceexpand 0.1.7 have them
        ("a.tar", ["a.tar"]),
        ("a{00..03}", ["a00", "a01", "a02", "a03"]),
        ("a{8..10}", ["a8", "a9", "a10"]),
        ("a{08..10..2}", ["a08", "a10"]),
        ("a{2..0}b", ["a2b", "a1b", "a0b"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{c..a}", ["c", "b", "a"]),
        ("{a,b}/{0,1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("x{,a{1..2},b}", ["x", "xa1", "xa2", "xb"]),
    ],
)
def test_braces(pattern, expected):
    assert braces(pattern, "") == expected


@given(st.integers(0, 1200), st.integers(0, 30), st.integers(1, 5))
def test_ranges_with_zeros_are_as_wide_as_their_ends(low, more, width):
    found = braces(f"s-{{{low:0{width}d}..{low + more:0{width}d}}}.tar", "")
    assert found == [f"s-{number:0{width}d}.tar" for number in range(low, low + more + 1)] or f"{low}" == f"{low:0{width}d}"
    assert [int(name[2:-4]) for name in found] == list(range(low, low + more + 1))


@pytest.mark.parametrize("pattern", ["a{0..1", "a}b", "{abc}", "{0..}", "{a..12}", "{}"])
def test_braces_that_are_none(pattern):
    with pytest.raises(UserError, match=r"^S\.path"):
        braces(pattern, "S.path")


def test_too_many(monkeypatch):
    monkeypatch.setattr(names, "MOST", 10)
    with pytest.raises(UserError, match="more than 10 files"):
        braces("{0..9}{0..999999999}", "S.path")


def test_files(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt", "{x}.tar"):
        (tmp_path / name).touch()
    here = str(tmp_path)
    assert shard_names("S", f"{here}/*.tar") == (f"{here}/a.tar", f"{here}/b.tar", f"{here}/{{x}}.tar")
    assert shard_names("S", f"{here}/{{b,a}}.tar") == (f"{here}/b.tar", f"{here}/a.tar")
    assert shard_names("S", f"{here}/{{x}}.tar") == (f"{here}/{{x}}.tar",), "a file of that very name"
    with pytest.raises(UserError, match=r"no such file as '.*/d\.tar'"):
        shard_names("S", f"{here}/{{a,d}}.tar")


def test_a_run_finds_what_braces_name_from_anywhere(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "01.tar").touch()
    for path in ("s/{00..03}.tar", "s/*.tar", "s/{0,1}{0..3}*.tar"):
        assert rooted(WebDataset(path), tmp_path).path == str(tmp_path / path)
    assert rooted(WebDataset("t/{0..3}.tar"), tmp_path).path == "t/{0..3}.tar"
