"""Texts spoken by espeak-ng: by one that a few lines of shell stand for, and by the real one where it is installed."""

import os
import pickle
import shutil
import stat
import threading

import pytest

from mmjax.core.errors import UserError
from mmjax.data import BadRecordError, Spoken
from mmjax.data.sound import hear, wav
from mmjax.data.sources import spoken

FAKE = """#!/bin/sh
case "$1" in
--voices=variant)
  printf 'Pty Language       Age/Gender VoiceName          File                 Other\\n'
  for v in m1 m2 m3 f1 f2 "Mr serious"; do printf ' 5  variant         --/M      X        !v/%s              \\n' "$v"; done ;;
--voices) printf 'Pty Language\\n 5  en-us  --/M  x  y\\n 5  en-gb  --/M  x  y\\n' ;;
*)
  echo "$* $(cat)" >> LOG
  for word; do [ "$before" = -w ] && file="$word"; [ "$before" = -s ] && speed="$word"; before="$word"; done
  [ "$speed" = 111 ] && { head -c 99 SOUND > "$file"; echo "no such speed" >&2; exit 1; }
  cat SOUND > "$file" ;;
esac
"""
VOICES = ("m1", "m2", "m3", "f1", "f2", "Mr serious")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """What the stand-in was asked, a line each."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "sound.wav").write_bytes(wav(spoken.np.zeros(800), 8000))
    log, script = place / "log", place / spoken.PROGRAM
    script.write_text(FAKE.replace("LOG", str(log)).replace("SOUND", str(place / "sound.wav")))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    spoken._known.cache_clear()
    yield lambda: log.read_text().splitlines() if log.exists() else []
    spoken._known.cache_clear()


def spec(tmp_path, split="train", **more):
    given = {"cache": str(tmp_path / "kept"), "voices": VOICES, "accents": ("en-us", "en-gb")}
    return Spoken(split, 40, **given | more)


def test_what_is_said_is_a_function_of_split_seed_and_place(program, tmp_path):
    first, again = spec(tmp_path).build(), spec(tmp_path).build()
    said = [first.said(n) for n in range(40)]
    assert said == [again.said(n) for n in range(40)] and first.fingerprint() == again.fingerprint()
    assert first.fingerprint() == spec(tmp_path / "elsewhere").build().fingerprint(), "wherever it is kept"
    others = spec(tmp_path, seed=1).build(), spec(tmp_path, "test").build()
    assert all(said != [own.said(n) for n in range(40)] and own.fingerprint() != first.fingerprint() for own in others)
    assert {len(one.text.split()) for one in said} == {1, 2, 3, 4} and len(set(said)) == 40
    assert {one.accent for one in said} == {"en-us", "en-gb"} and {one.voice for one in said} == set(first.voices)
    assert all(30 <= one.pitch <= 70 and 130 <= one.speed <= 200 for one in said)
    all_words, *texts = first.texts()
    assert all_words.split() == list(spoken.NAMES) and texts == [one.text for one in said]
    assert first.described(3) == (f"3: {said[3]}", -1, (said[3].text,)) and not program(), "nothing is spoken yet"
    with pytest.raises(IndexError):
        first[40]


def test_no_voice_is_in_two_splits(program, tmp_path):
    splits = [spec(tmp_path, split).build().voices for split in ("train", "validation", "test")]
    assert sorted(voice for own in splits for voice in own) == sorted(VOICES)
    shares = [Spoken(split).own_voices() for split in ("train", "validation", "test")]
    assert sorted(voice for own in shares for voice in own) == sorted(spoken.VOICES) and min(map(len, shares)) == 8


def test_each_is_spoken_once_and_kept(program, tmp_path):
    records = pickle.loads(pickle.dumps(spec(tmp_path).build()))
    record, said = records[5], records.said(5)
    assert record["text"] == said.text and record["voice"] == said.voice
    x, heard = hear(record["audio"], 8000, 1.0)
    assert len(x) == 800 and heard.silent
    asked = f"-v {said.accent}+{said.voice} -p {said.pitch} -s {said.speed} -w"
    assert len(program()) == 1 and program()[0].startswith(asked) and program()[0].endswith(f"--stdin {said.text}")
    threads = [threading.Thread(target=records.__getitem__, args=(n,)) for n in (5, 6, 6, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(program()) <= 4 and sorted(os.listdir(tmp_path / "kept")) == sorted(
        map(os.path.basename, map(records.file, (5, 6)))
    )


def test_what_is_kept_needs_no_program(program, tmp_path, monkeypatch):
    small = Spoken("train", 3, cache=str(tmp_path / "kept"), voices=VOICES, accents=("en-us",))
    for n in range(3):
        small.build()[n]
    monkeypatch.setenv("PATH", "")
    assert small.build()[2]["text"] == small.build().said(2).text
    with pytest.raises(
        UserError, match=r"^Spoken: espeak-ng is not installed, which speaks the texts: apt-get install espeak-ng$"
    ):
        spec(tmp_path).build()


def test_a_text_that_is_not_spoken_is_a_bad_record(program, tmp_path):
    records = spec(tmp_path, speed=(111, 111)).build()
    with pytest.raises(BadRecordError, match=r"espeak-ng did not speak it \(no such speed\)$"):
        records[0]
    assert os.listdir(tmp_path / "kept") == [], "and nothing is left half written"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^Spoken\.cache='.*file': it cannot be written \("):
        spec(tmp_path, cache=str(tmp_path / "file")).build()[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"voices": ("m1", "m9")},
            r"^Spoken\.voices has 'm9' \(did you mean 'm\d'\?\): the installed espeak-ng has no such voice$",
        ),
        ({"accents": ("en-us", "en-gbb")}, r"^Spoken\.accents has 'en-gbb' \(did you mean 'en-gb'\?\)"),
        ({"split": "dev"}, r"^Spoken\.split='dev' is not a split"),
        ({"voices": ("m1",), "split": "test"}, r"^Spoken\.split='test': none of the 1 voices are in it; give more$"),
        ({"length": (3, 2)}, r"^Spoken\.length=\(3, 2\): give \(low, high\) with low <= high$"),
        ({"words": ()}, r"^Spoken\.words=\(\): give a tuple of names, one at least$"),
        ({"words": ("one", " ")}, r"^Spoken\.words=\('one', ' '\)"),
        ({"accents": "en-us"}, r"^Spoken\.accents='en-us': give a tuple"),
        ({"pitch": (0, 100)}, r"^Spoken\.pitch=\(0, 100\): use a number from 0 and up to 99$"),
        ({"fractions": (0.5, 0.5, 0.5)}, r"^Spoken\.fractions=\(0\.5, 0\.5, 0\.5\): give three shares"),
    ],
)
def test_what_it_cannot_do_is_named(program, tmp_path, more, words):
    with pytest.raises(UserError, match=words):
        spec(tmp_path, **more).build()


@pytest.mark.skipif(shutil.which(spoken.PROGRAM) is None, reason="espeak-ng is not installed")
def test_the_real_one_has_all_the_voices_and_speaks(tmp_path):
    spoken._known.cache_clear()
    sounds = {}
    for split in ("train", "validation", "test"):
        records = Spoken(split, 2, cache=str(tmp_path)).build()
        for n in range(2):
            x, heard = hear(records[n]["audio"], 16_000, 5.0)
            assert 0.2 < heard.seconds < 3 and not heard.silent
            sounds[split, n] = x.tobytes()
    assert len(set(sounds.values())) == 6
