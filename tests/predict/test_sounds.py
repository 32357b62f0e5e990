"""`mmjax predict` on sounds as they come: long, silent, cut, fast, and lines of a manifest that are none."""

import json
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("soundfile", reason="what reads sounds is not installed")
import soundfile
import speech
from test_subtitles import parsed

from mmjax.cli import main
from mmjax.data.sound import wav
from mmjax.predict.answers import listed
from mmjax.predict.sounds import heard_through
from mmjax.predict.work import open_work
from mmjax.predict.writer import Writer
from mmjax.predict.writing import Written

RATE = speech.RATE


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    speech.save(folder, seed=5, times=True)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A short one, a long one, one of 192 kHz, a silent one, one that is cut, one whose end is no number, one of nothing."""
    folder = tmp_path_factory.mktemp("sounds")
    long = np.concatenate([speech.sound(n) for n in range(5)])
    soundfile.write(folder / "a_short.wav", speech.sound(1), RATE)
    soundfile.write(folder / "b_long.flac", long, RATE)
    soundfile.write(folder / "c_high.wav", np.repeat(long, 12), 12 * RATE)
    soundfile.write(folder / "d_silent.wav", np.zeros(RATE * 2), RATE)
    (folder / "e_cut.wav").write_bytes(wav(long, RATE)[:-4000])
    soundfile.write(folder / "f_nan.wav", np.append(long, np.nan), RATE, subtype="FLOAT")
    (folder / "g_none.wav").write_bytes(wav(np.zeros(0), RATE))
    return folder


def said(capsys, *words):
    capsys.readouterr()
    status = main(["predict", *map(str, words)])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder_of_all_kinds(whisper, sounds, tmp_path, capsys):
    status, lines = said(capsys, whisper, sounds, "--srt", tmp_path / "s", "--vtt", tmp_path / "v", "--batch_size=1")
    short, long, high, silent, *bad = lines
    assert status == 1 and [one["audio"] for one in lines] == sorted(map(str, sounds.iterdir()))
    assert "it is truncated" in bad[0]["error"] and "no finite numbers" in bad[1]["error"] and "it is empty" in bad[2]["error"]
    assert silent["silent"] is True and not any("silent" in one for one in (short, long, high))
    assert not any("heard" in one or "seconds" in one for one in lines)
    assert 2.5 < long["segments"][-1]["end"] < 4 and high["segments"][-1]["end"] > 2.5
    for kind, folder in (("srt", "s"), ("vtt", "v")):
        assert sorted(file.name for file in (tmp_path / folder).iterdir()) == [
            f"{name}.{kind}" for name in ("a_short", "b_long", "c_high", "d_silent")
        ]
        cues = parsed((tmp_path / folder / f"b_long.{kind}").read_text(), kind)
        assert [text for _, _, text in cues] == [
            " ".join(own["text"].split()) for own in long["segments"] if own["text"].split()
        ]
    again, _ = said(capsys, whisper, sounds, "--srt", tmp_path / "s")
    assert again == 2  # the files are there
    status, plain = said(capsys, whisper, sounds / "a_short.wav", sounds / "b_long.flac", "--batch_size=1")
    assert status == 0 and plain[1] == {"audio": str(sounds / "b_long.flac"), "transcript": long["transcript"], **cut(long)}
    assert "segments" not in plain[0]


def cut(answer):
    return {"cut": True} if "cut" in answer else {}


def test_flags_of_the_sequential_way(whisper, sounds, capsys, monkeypatch):
    given = {}

    def generate(self, sounds, **settings):
        given.update(settings)
        return [Written("yes", [], 0.0, True)] * len(sounds)

    monkeypatch.setattr(Writer, "generate", generate)
    words = ["--condition_on_prev_tokens", "--temperature", "0,0.8", "--logprob_threshold=0", "--timestamps"]
    status, (line,) = said(capsys, whisper, sounds / "b_long.flac", *words)
    assert (status, line["segments"]) == (0, [])
    asked = {"condition_on_prev_tokens": True, "temperature": (0.0, 0.8), "logprob_threshold": 0.0, "timestamps": True}
    assert given == {**asked, "decoder": "", "numbers": [0], "num_return_sequences": 1, "details": True}
    for more, complaint in (
        (["--no_speech_threshold", "2"], "--no_speech_threshold=2.0"),
        (["--srt", str(sounds), "--text"], "--srt and --vtt are of what is said in sounds"),
    ):
        assert main(["predict", str(whisper), str(sounds), *more]) == 2
        assert complaint in capsys.readouterr().err


def test_a_line_of_a_manifest_that_is_none_ends_nothing(whisper, sounds, tmp_path, capsys):
    good = json.dumps({"audio": str(sounds / "a_short.wav")})
    lines = [good, "{broken", '{"audio": 3}', '["a"]', '{"other": "x"}', good]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    status, found = said(capsys, whisper, tmp_path / "m.jsonl")
    assert status == 1 and len(found) == 6 and found[0]["transcript"] == found[5]["transcript"]
    names, errors = [one["audio"] for one in found[1:5]], [one["error"] for one in found[1:5]]
    assert names == [f"{tmp_path / 'm.jsonl'}:{number}" for number in (2, 3, 4, 5)]
    for error, wanted in zip(
        errors, ("not JSON", "'audio' is 3, no string", "one object a line", "the line has other"), strict=True
    ):
        assert wanted in error
    (tmp_path / "m.csv").write_text(f"audio,question\n{sounds / 'a_short.wav'},\n1,2,3\n")
    good, bad = listed([str(tmp_path / "m.csv")], "audio")
    assert not good.wrong and "as many values as the header has" in bad.wrong and bad.given.endswith("m.csv:3")
    (tmp_path / "m.jsonl").write_text("\n".join(lines[1:5]))  # no line is one: another file was meant
    assert main(["predict", str(whisper), str(tmp_path / "m.jsonl")]) == 2
    assert "m.jsonl:1: not JSON" in capsys.readouterr().err


def test_eight_hours_are_never_in_memory(whisper, tmp_path):
    """A file with a hole: all zeros, which take no room on the disk, but for the last sample."""
    seconds, rate = 8 * 3600, 1000
    head = bytearray(wav(np.zeros(0), rate))
    size = 2 * rate * seconds
    head[4:8], head[40:44] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    with open(tmp_path / "day.wav", "wb") as file:
        file.write(head)
        file.truncate(42 + size)
        file.seek(42 + size)
        file.write(b"\1\1")
    work = open_work(whisper)
    tracemalloc.start()
    found = heard_through(work, str(tmp_path / "day.wav"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.heard.silent and found.heard.seconds == seconds and len(found.waveform) == RATE
    assert most < 40e6  # a minute at a time; all of it would be 1.8 GB
