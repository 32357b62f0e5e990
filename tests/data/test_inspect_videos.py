"""What `mmjax data inspect` says and shows of videos."""

import base64
import io

import numpy as np
from PIL import Image
from test_inspect_page import harmless
from test_video import Videos
from videos import SIZE, numbered, numbers

from mmjax.data import Data, Normalise, Video
from mmjax.data.inspect import look
from mmjax.data.inspect_page import page
from mmjax.data.inspect_videos import sheet


def test_videos_are_told_and_shown():
    source = Videos((numbered(40), numbered(3), numbered(8)))
    data = Data(source, (Normalise(field="video"),), {"video": Video(frames=8)}, batch_size=3, shuffle=False, threads=0)
    dataset = data.build(None, 0)
    looked = look(dataset)
    lines = looked.text.splitlines()
    for line in (
        "seconds      3.00 to 40.00 a video, half of them 8.00 or less",
        "short        33.3% of the videos, of frames=8, and 0.0% are cut",
    ):
        assert line in lines, looked.text
    found = harmless(page("videos", [("train", dataset, looked)], 100, 0.0).text)
    assert "a short video" in found.text
    uris = [value for name, value in found.attributes if name == "href"]
    sheets = [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) for uri in uris]
    assert [image.shape[:2] for image in sheets] == [(64, 288), (32, 144), (64, 288)]
    tiles = [sheets[0][:32, 48 * n : 48 * (n + 1)] for n in range(6)] + [
        sheets[0][32:, 48 * n : 48 * (n + 1)] for n in range(2)
    ]
    assert numbers(np.stack(tiles)) == [2, 7, 12, 17, 22, 27, 32, 37], "with mean and deviation undone, in reading order"


def test_of_many_frames_some_are_shown():
    found = sheet(numbered(48), np.arange(48) < 24)
    tiles = found.reshape(2, SIZE[0], 6, SIZE[1], 3).transpose(0, 2, 1, 3, 4).reshape(12, *SIZE, 3)
    assert numbers(tiles) == list(range(1, 24, 2)), "of those that are its own"
