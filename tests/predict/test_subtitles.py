"""Subtitles are files that say again what was said: parsed back, they have all words, in order, and nothing overlaps."""

import html
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.predict.subtitles import Shelf, subtitles

CLOCK = r"(\d\d):(\d\d):(\d\d)[.,](\d\d\d)"
LINE = {
    kind: re.compile(CLOCK.replace("[.,]", point) + " --> " + CLOCK.replace("[.,]", point))
    for kind, point in (("srt", ","), ("vtt", r"\."))
}


def parsed(text, kind):
    """(start, end, text) of each cue, in milliseconds; fails on what is no such file."""
    blocks = [block for block in text.split("\n\n") if block.strip()]
    if kind == "vtt":
        assert blocks.pop(0).strip() == "WEBVTT"
    found = []
    for number, block in enumerate(blocks, 1):
        lines = block.strip("\n").split("\n")
        if kind == "srt":
            assert lines.pop(0) == str(number)
        times = [int(one) for one in LINE[kind].fullmatch(lines[0]).groups()]
        ms = [((h * 60 + m) * 60 + s) * 1000 + rest for h, m, s, rest in (times[:4], times[4:])]
        (said,) = lines[1:]
        assert "-->" not in said
        found.append((*ms, html.unescape(said) if kind == "vtt" else said))
    return found


SEGMENT = st.fixed_dictionaries(
    {"start": st.integers(0, 200_000), "long": st.integers(-50, 3000), "text": st.text(max_size=12)}
)


@given(st.lists(SEGMENT, max_size=6), st.sampled_from(["srt", "vtt"]))
def test_what_is_written_is_read_again(rows, kind):
    rows = sorted(rows, key=lambda row: row["start"])
    segments = [{"start": one["start"] / 50, "end": (one["start"] + one["long"]) / 50, "text": one["text"]} for one in rows]
    found = parsed(subtitles(segments, kind), kind)
    words = [" ".join(one["text"].split()) for one in rows]
    kept = [(one, text) for one, text in zip(rows, words, strict=True) if text]
    assert [said for _, _, said in found] == [text.replace("-->", "->") if kind == "srt" else text for _, text in kept]
    assert all(end > start for start, end, _ in found)
    assert all(end <= start for (_, end, _), (start, _, _) in itertools.pairwise(found))
    if all(one["long"] > 0 for one, _ in kept) and all(
        a["start"] + a["long"] <= b["start"] for (a, _), (b, _) in itertools.pairwise(kept)
    ):
        assert [(start, end) for start, end, _ in found] == [
            (20 * one["start"], 20 * (one["start"] + one["long"])) for one, _ in kept
        ]


def test_hours_and_marks():
    segments = [{"start": 3661.5, "end": 3662.25, "text": " a <b> & c --> d\nnext"}]
    assert subtitles(segments, "srt") == "1\n01:01:01,500 --> 01:01:02,250\na <b> & c -> d next\n"
    assert subtitles(segments, "vtt") == "WEBVTT\n\n01:01:01.500 --> 01:01:02.250\na &lt;b&gt; &amp; c --&gt; d next\n"
    assert subtitles([], "vtt") == "WEBVTT\n" and subtitles([], "srt") == ""


def test_a_file_an_input(tmp_path):
    row = [{"start": 0, "end": 1, "text": "yes"}]
    shelf = Shelf({"srt": str(tmp_path / "s"), "vtt": ""}, ["one/talk.wav", "two/walk.wav"])
    shelf.put(1, row)
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["walk.srt"]
    shelf = Shelf({"srt": str(tmp_path / "t"), "vtt": str(tmp_path / "v")}, ["one/talk.wav", "two/talk.wav", "two/talk.mp3"])
    for number in range(3):
        shelf.put(number, row)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.vtt"))
    assert files == ["v/one/talk.vtt", "v/two/talk.mp3.vtt", "v/two/talk.wav.vtt"]
    with pytest.raises(UserError, match=r"--srt .*: walk.srt is there already; give another folder"):
        Shelf({"srt": str(tmp_path / "s")}, ["walk.wav"])
    with pytest.raises(UserError, match=r"a.wav: it is given twice"):
        Shelf({"srt": str(tmp_path / "new")}, ["a.wav", "./a.wav"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--vtt .*file: it cannot be made a folder"):
        Shelf({"vtt": str(tmp_path / "file")}, ["a.wav"])
    assert not list(tmp_path.rglob("*.new"))
