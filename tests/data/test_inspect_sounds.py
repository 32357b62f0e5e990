"""What `mmjax data inspect` says and shows of sounds."""

import base64
import io
import re

import numpy as np
import pytest
from sounds import encoded, tone
from test_inspect_page import harmless

from mmjax.data import Audio, Data, Folder
from mmjax.data.inspect import look
from mmjax.data.inspect_page import page
from mmjax.data.inspect_sounds import picture

soundfile = pytest.importorskip("soundfile", reason="sounds are read by it: pip install 'mmjax[audio]'")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five tones of 1 to 6 s at 24 kHz, of which the last is silent and two are the same; another file is no sound."""
    root = tmp_path_factory.mktemp("sounds")
    for n, seconds in enumerate((1, 2, 6, 2, 1)):
        (root / "ab"[n % 2]).mkdir(exist_ok=True)
        (root / "ab"[n % 2] / f"{n}.wav").write_bytes(encoded(tone(seconds, 24_000, 3000, 0.5 * (n < 4)), 24_000))
    (root / "a" / "9.wav").write_bytes(b"no sound")
    source = Folder(str(root), "all")
    return Data(source, (), {"audio": Audio(24_000, 5.0)}, 6, shuffle=False, threads=0, bad_record_limit=0.5).build(None, 0)


def test_lengths_and_what_is_the_matter_are_told(dataset):
    lines = look(dataset).text.splitlines()
    for line in (
        "audio_mask   [6, 120000] bool, 43.3% true",
        "seconds      1.00 to 6.00 a sound, half of them 2.00 or less",
        "cut          20.0% of the sounds, at seconds=5",
        "silent       20.0% of the sounds, and 0.0% are clipped",
        "unreadable   1 record(s)",
    ):
        assert line in lines, "\n".join(lines)
    assert any(line.startswith("audio        [6, 120000] float32, -0.5 to 0.5") for line in lines)


def test_a_page_has_sounds_to_hear(dataset):
    found = harmless(page("sounds", [("train", dataset, look(dataset))], 100, 0.0).text)
    assert found.tags.count("audio") == 6
    played = [value for name, value in found.attributes if name == "src"]
    sounds = [soundfile.read(io.BytesIO(base64.b64decode(value.partition(",")[2]))) for value in played]
    assert all(rate == 16_000 for _, rate in sounds), "what is faster is slowed down: a page is to be small"
    assert sorted(len(x) / 16_000 for x, _ in sounds)[-2:] == [2.0, 4.0]
    assert "audio: 5.00 s of 5.00 s, the first 4 s to hear" in found.text and "audio: 1.00 s of 5.00 s" in found.text
    assert "a sound cut by 1.00 s" in found.text and "a silent sound" in found.text
    assert "20.0% are cut, 20.0% silent, 0.0% clipped" in found.text
    assert re.search(r"1 groups of equal records .* looked at train 6 of 6", found.text), "the same file in two classes"


def test_a_picture_is_dark_where_a_tone_is():
    image = picture(tone(1.0, 16_000, 2000.0))
    assert image.shape[0] == 64 and image.shape[1] <= 256 and image.dtype == np.uint8
    assert set(np.argmin(image[..., 0], axis=0).tolist()) <= {47, 48}, "2 of 8 kHz, a quarter of the way up"
    assert (picture(np.zeros(3, np.float32)) == 255).all()
