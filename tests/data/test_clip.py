import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sounds import tone
from videos import SIZE, encoded, numbered, numbers

from mmjax.core.errors import UserError
from mmjax.data import BadRecordError, clip
from mmjax.data.clip import Clip, watch

av = pytest.importorskip("av", reason="videos are read by it: pip install 'mmjax[video]'")
RATE, COUNT = 25, 100
FILES = {
    "mp4": ("mp4", "libx264"),  # frames are stored in another order than they are shown in
    "mkv": ("matroska", "libx264"),  # times are rounded to milliseconds
    "avi": ("avi", "mpeg4"),
    "ts": ("mpegts", "libx264"),  # without an index
}


@pytest.fixture(scope="module")
def files():
    return {name: encoded(numbered(COUNT), RATE, kind, codec) for name, (kind, codec) in FILES.items()}


def seen(source, *args, **options):
    x, about = watch(Clip(source, "a.mp4"), *args, **options)
    return numbers(x), about


@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_shown_at_their_times(files, name):
    found, about = seen(files[name], 8)
    assert found == [int((k + 0.5) / 8 * COUNT) for k in range(8)] and about.frames == 8
    assert about.seconds == pytest.approx(COUNT / RATE, abs=0.01) and not about.cut
    found, about = seen(files[name], 5, every=0.3, at=0.0)
    assert found == [int(k * 0.3 * RATE + 1e-9) for k in range(5)] and about.cut and about.start == 0
    found, about = seen(files[name], 5, every=0.2, at=1.0)
    assert found == [75 + 5 * k for k in range(5)] and about.start == pytest.approx(3.0, abs=0.01), "1 s, to the end"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.lists(st.floats(0, 0.99), min_size=30, max_size=30))
def test_any_frames_are_those_of_the_whole_decoded(files, count, at):
    """Jumping from keyframe to keyframe gives what decoding all gives."""
    at = np.round(np.array(at[:count]), 2) + 0.0037  # no frame begins there
    found, _ = seen(files["mp4"], count, at=at)
    assert found == [int((k + own) / count * COUNT) for k, own in enumerate(at)]


def test_of_a_long_file_only_the_frames_around_are_decoded(monkeypatch):
    source, decoded = encoded(numbered(240), RATE, keyframes=10), []
    whole = clip._Decoded._next
    monkeypatch.setattr(clip._Decoded, "_next", lambda self, flow: decoded.append(1) or whole(self, flow))
    assert seen(source, 4)[0] == [30, 90, 150, 210]
    assert len(decoded) <= 4 * 12, "of 240"


def test_a_video_with_too_few_frames_repeats_its_last():
    source = encoded(numbered(5), RATE)
    assert seen(source, 8) == ([0, 1, 2, 3, 4, 4, 4, 4], clip.Seen(5, 0.2))
    assert seen(source, 2)[0] == [1, 3]
    found, about = seen(source, 8, every=0.08, at=0.5)
    assert found == [0, 2, 4, 4, 4, 4, 4, 4] and about.frames == 3 and not about.cut
    assert seen(source, 2, every=9.0)[0] == [0, 0], "there is always one"


def test_a_turned_video_is_upright():
    """A telephone held upright says so beside its frames: FFmpeg's own angle is against the clock."""
    x = numbered(3)
    x[:, : SIZE[0] // 2] = 240  # white above
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.set_display_rotation(90)
        for image in x:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    found, _ = watch(Clip(file.getvalue(), ""), 2)
    assert found.shape == (2, SIZE[1], SIZE[0], 3)
    assert found[:, :, : SIZE[0] // 2 - 2].min() > 200, "a quarter against the clock puts what is above to the left"


def test_frames_one_by_one_are_a_video_too(tmp_path):
    x = numbered(6)
    assert seen(x, 3)[0] == [1, 3, 5] and seen(x, 8)[1] == clip.Seen(6, 6.0)
    (tmp_path / "frames").mkdir()
    for n, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / "frames" / f"{n:02}.png")
    assert seen(str(tmp_path / "frames"), 3)[0] == [1, 3, 5]
    with pytest.raises(BadRecordError, match=r"every=0\.5, and it is frames without times"):
        seen(x, 3, every=0.5)
    (tmp_path / "empty").mkdir()
    for source in (np.zeros((0, 4, 4, 3), np.uint8), str(tmp_path / "empty")):
        with pytest.raises(BadRecordError, match="it has no frames"):
            seen(source, 2)


def test_what_a_field_may_hold(tmp_path):
    assert clip.clip({"bytes": None, "path": "b.mp4"}, "x", str(tmp_path)).source == str(tmp_path / "b.mp4")
    assert clip.clip({"bytes": b"c"}, "x").where == "x" and clip.clip(Clip(b"", "y"), "x").where == "y"
    for value, said in ((3, "not 3"), (np.zeros((2, 4, 4), np.uint8), r"not uint8 \[2, 4, 4\]"), ("", "not ''")):
        with pytest.raises(BadRecordError, match=rf"x: a video is the bytes of a file, a path, or frames .*{said}"):
            clip.clip(value, "x")


def test_a_file_that_is_none_says_why_in_one_line(files, tmp_path):
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(0.5, 16_000)[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    faststart = encoded(numbered(COUNT), RATE, codec="libx264", movflags="faststart")
    damaged = bytearray(files["avi"])
    damaged[len(damaged) // 2 : len(damaged) // 2 + 4000] = b"\xff" * 4000
    for source, said in (
        (b"", "no video that can be read"),
        (b"nothing" * 100, "no video that can be read"),
        (files["mp4"][: len(files["mp4"]) // 2], "no video that can be read"),
        (faststart[: len(faststart) // 2], "truncated"),
        (files["mkv"][: len(files["mkv"]) // 2], "truncated"),
        (bytes(damaged), "damaged"),
        (sound.getvalue(), "there is no video in it, only audio"),
        (str(tmp_path / "gone.mp4"), "no such file"),
    ):
        with pytest.raises(BadRecordError, match=said) as caught:
            seen(source, 8)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_size_that_changes_on_the_way_is_refused():
    joined = encoded(numbered(20), RATE, "mpegts", "mpeg2video") + encoded(numbered(20, (48, 32)), RATE, "mpegts", "mpeg2video")
    with pytest.raises(BadRecordError, match="its size changes on the way, from 32 x 48 to 48 x 32 pixels"):
        seen(joined, 30)


def test_without_the_library_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"videos are read by av: pip install 'mmjax\[video\]'"):
        seen(b"x", 2)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.booleans(), st.integers(0, 255))
def test_a_cut_or_damaged_file_gives_right_frames_or_says_so(where, cut, value):
    place = int(where * (len(WHOLE) - 1))
    source = WHOLE[:place] if cut else WHOLE[:place] + bytes([value]) * 40 + WHOLE[place + 40 :]
    try:
        found, _ = seen(source, 8)
    except BadRecordError as error:
        assert "\n" not in error.reason
    else:
        assert not cut or found == [6, 18, 31, 43, 56, 68, 81, 93]


WHOLE = encoded(numbered(COUNT), RATE, codec="libx264", movflags="faststart")
