import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import encoded, tone

from mmjax.core.errors import UserError
from mmjax.data import BadRecordError, sound
from mmjax.data.files import remote
from mmjax.data.sound import Recording, hear, recording

soundfile = pytest.importorskip("soundfile", reason="sounds are read by it: pip install 'mmjax[audio]'")
soxr = pytest.importorskip("soxr", reason="sounds are resampled by it: pip install 'mmjax[audio]'")
NOISE = np.random.default_rng(0).normal(0, 0.1, 44_100 * 3).astype(np.float32)


def heard(x, rate, to=16_000, seconds=1.0, kind="WAV", subtype="FLOAT", **how):
    return hear(Recording(encoded(x, rate, kind, subtype), "here"), to, seconds, **how)


@pytest.mark.parametrize(
    ("kind", "subtype", "near"),
    [
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2e-7),
        ("WAV", "FLOAT", 0),
        ("FLAC", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
        ("OGG", "VORBIS", 0.06),
        ("MP3", "MPEG_LAYER_III", 0.06),
    ],
)
def test_a_file_is_what_was_written(kind, subtype, near):
    x = tone(1.0, 16_000)
    own, about = heard(x, 16_000, kind=kind, subtype=subtype)
    assert own.dtype == np.float32 and len(own) == 16_000
    np.testing.assert_allclose(own[400:-400], x[400:-400], atol=near)
    assert (about.rate, about.start, about.cut, about.silent, about.clipped) == (16_000, 0.0, False, False, False)


@pytest.mark.parametrize("own", [8_000, 16_000, 22_050, 44_100, 48_000, 192_000])
def test_a_tone_is_the_same_tone_at_another_rate(own):
    x, about = heard(tone(0.5, own), own)
    assert len(x) == 8_000 and about.seconds == 0.5
    np.testing.assert_allclose(x[300:-300], tone(0.5, 16_000)[300:-300], atol=1e-3)


@pytest.mark.parametrize("at", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("own", [44_100, 16_000])
def test_a_part_is_that_of_the_whole(own, at):
    x, about = heard(NOISE, own, at=at)
    whole = NOISE if own == 16_000 else soxr.resample(NOISE, own, 16_000, quality="HQ")
    first = round(about.start * 16_000)
    assert about.cut and len(x) == 16_000 and abs(about.start - at * (len(NOISE) / own - 1)) < 0.03
    np.testing.assert_allclose(x, whole[first : first + 16_000], atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from((7_999, 11_025, 16_000, 44_100)), st.integers(1, 30_000), st.floats(0.001, 1.0), st.floats(0.0, 1.0))
def test_any_part_of_any_sound_is_that_of_the_whole(own, samples, seconds, at):
    sound, whole = Recording(NOISE[:samples], "here", own), NOISE[:samples]
    whole = whole if own == 16_000 else soxr.resample(whole, own, 16_000, quality="HQ")
    wanted = round(seconds * 16_000)
    x, about = hear(sound, 16_000, seconds, at=at) if len(whole) and wanted else (whole[:0], sound)
    if len(x):
        first = round(about.start * 16_000)
        assert len(x) == min(wanted, len(whole)) and about.cut == (len(whole) > wanted) and (about.cut or not first)
        np.testing.assert_allclose(x, whole[first : first + len(x)], atol=2e-5)


def test_of_a_long_file_no_more_is_read_than_the_part(tmp_path, monkeypatch):
    file, rate = tmp_path / "long.wav", 8_000
    with soundfile.SoundFile(file, "w", rate, 1, "PCM_U8") as out:  # 8 hours
        for _ in range(8):
            out.write(np.zeros(3600 * rate, np.int16))
    read = []
    own = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **kw: read.append(n) or own(self, n, **kw))
    x, about = hear(recording(str(file), ""), 16_000, 2.0, at=0.9)
    assert about.seconds == 8 * 3600 and about.cut and about.silent and len(x) == 32_000
    assert about.start == pytest.approx(0.9 * (8 * 3600 - 2)) and sum(read) < 2.1 * rate


def test_channels_are_averaged_or_chosen():
    left, right = tone(1.0, 16_000, 440), tone(1.0, 16_000, 1000)
    both = np.stack([left, right], axis=1)
    np.testing.assert_allclose(heard(both, 16_000)[0], (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(heard(both, 16_000, channel=1)[0], right)
    with pytest.raises(BadRecordError, match=r"^here: channel=2, and it has 2, numbered from 0$"):
        heard(both, 16_000, channel=2)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros(0, np.float32), "it is empty: no samples"),
        (np.array([0.0, np.nan, 0.5], np.float32), "samples that are no finite numbers"),
        (np.array([0.0, np.inf, 0.5], np.float32), "samples that are no finite numbers"),
    ],
)
def test_samples_that_are_none(x, said):
    with pytest.raises(BadRecordError, match=said):
        heard(x, 16_000)


def test_silence_and_what_is_clipped_are_told():
    assert heard(np.zeros(100, np.float32), 16_000)[1].silent
    loud = np.clip(tone(1.0, 16_000, level=1.5), -1, 1)
    for subtype in ("PCM_16", "FLOAT"):
        assert heard(loud, 16_000, subtype=subtype)[1].clipped
        assert not heard(tone(1.0, 16_000, level=1.0), 16_000, subtype=subtype)[1].clipped, "it touches the limit"
    np.testing.assert_array_equal(heard(3 * loud, 16_000)[0], 3 * loud)


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("OGG", "VORBIS")])
@pytest.mark.parametrize("share", [0.9, 0.02])
def test_a_truncated_file(kind, subtype, share):
    whole = encoded(NOISE, 44_100, kind, subtype)
    with pytest.raises(BadRecordError) as error:
        hear(Recording(whole[: int(len(whole) * share)], "here"), 16_000, 60.0)
    assert str(error.value).startswith("here: ") and "\n" not in str(error.value)


def test_a_wave_of_unknown_length_as_a_pipe_writes_it():
    whole = encoded(tone(1.0, 16_000), 16_000, subtype="PCM_16")
    place = whole.index(b"data")
    piped = whole[: place + 4] + b"\xff\xff\xff\xff" + whole[place + 8 :]
    assert len(hear(Recording(piped, "here"), 16_000, 5.0)[0]) == 16_000


@pytest.mark.parametrize("content", [b"", b"no sound, but a text", b"RIFF\x10\0\0\0WAVE"])
def test_what_is_no_sound(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    for value in (content, str(tmp_path / "a.wav")):
        with pytest.raises(BadRecordError, match="no sound that can be read"):
            hear(recording(value, "here"), 16_000, 1.0)


def test_a_file_at_an_address_is_read_in_part(monkeypatch):
    import fsspec

    storage = fsspec.filesystem("memory")
    storage.pipe_file("/sounds/a.wav", encoded(np.tile(NOISE, 10), 44_100, subtype="FLOAT"))
    read, own = [], remote.ranged
    monkeypatch.setattr(remote, "ranged", lambda *args: read.append(args[2]) or own(*args))
    x, about = hear(recording("a.wav", "", "memory://sounds"), 44_100, 1.0, at=0.5)
    first = round(about.start * 44_100)
    np.testing.assert_array_equal(x, np.tile(NOISE, 10)[first : first + 44_100])
    assert sum(read) < 1_500_000, "of 5.3 MB"
    with pytest.raises(BadRecordError, match=r"^memory://sounds/b\.wav: no such file$"):
        hear(recording("b.wav", "", "memory://sounds"), 44_100, 1.0)


def test_what_is_not_there(tmp_path):
    with pytest.raises(BadRecordError, match=r"gone\.wav: no such file$"):
        hear(recording("gone.wav", "", str(tmp_path)), 16_000, 1.0)


@pytest.mark.parametrize(
    "value",
    [
        {"bytes": None, "path": "a.wav"},
        {"bytes": "content", "path": "elsewhere.wav"},
        {"array": tone(1.0, 16_000).astype(np.float64), "sampling_rate": 16_000},
    ],
    ids=["path", "bytes", "array"],
)
def test_what_huggingface_has(tmp_path, value):
    content = encoded(tone(1.0, 16_000), 16_000)
    (tmp_path / "a.wav").write_bytes(content)
    value = {**value, "bytes": content} if value.get("bytes") else value
    x, _ = hear(recording(value, "here", str(tmp_path)), 16_000, 1.0)
    np.testing.assert_allclose(x, tone(1.0, 16_000), atol=2**-15)


@pytest.mark.parametrize(
    "value",
    [None, 7, "", {}, {"array": [1, 2], "sampling_rate": 8}, {"array": [0.5]}, Recording(np.zeros(4, np.int16), "here", 8)],
)
def test_what_no_sound_is_made_of(value):
    with pytest.raises(BadRecordError, match=r"^here: a sound "):
        recording(value, "here")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    sound._package.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'mmjax\[audio\]'"):
        heard(tone(0.1, 8_000), 8_000)
    sound._package.cache_clear()


def test_a_wave_is_written_as_others_read_it():
    x = np.array([0.0, 0.25, -1.0, 1.0, 2.0], np.float32)
    read, rate = soundfile.read(io.BytesIO(sound.wav(x, 22_050)), dtype="float32")
    assert rate == 22_050
    np.testing.assert_allclose(read, np.clip(x, -1, 1), atol=1e-4)
