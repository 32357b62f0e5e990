"""Moving digits: pure, of held-out digits, and what is said of them is true of their pixels."""

import pickle
from collections import Counter

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import Digits, Moving
from mmjax.data.sources.moving import COUNTS, DIRECTIONS

MANY = 300
# (down, right) of each direction, as said in words.
STEPS = {
    "right": (0, 1),
    "down right": (1, 1),
    "down": (1, 0),
    "down left": (1, -1),
    "left": (0, -1),
    "up left": (-1, -1),
    "up": (-1, 0),
    "up right": (-1, 1),
}


@pytest.fixture(scope="module")
def records():
    return Moving("test", MANY).build()


def test_a_video_is_a_function_of_split_seed_and_place(records):
    again = pickle.loads(pickle.dumps(Moving("test", 2 * MANY).build()))
    for place in (7, 0, MANY - 1, 7):
        assert np.array_equal(again[place]["video"], records[place]["video"])
    videos = [
        spec.build()[0]["video"].tobytes() for spec in (Moving("test"), Moving("test", seed=1), Moving(), Moving("validation"))
    ]
    assert len({*videos}) == 4
    assert records[0]["video"].shape == (8, 32, 32, 3) and records[0]["video"].dtype == np.uint8
    prints = [
        spec.build().fingerprint() for spec in (Moving(), Moving("test"), Moving(seed=1), Moving(frames=4), Moving(side=8))
    ]
    assert len({*prints}) == 5
    with pytest.raises(IndexError, match=f"video {MANY} of {MANY}"):
        records[MANY]


def test_digits_move_as_is_said(records):
    """Each frame is the first one moved that way: by one pixel a frame or two, round the edges."""
    for place in range(60):
        record = records[place]
        grey_THW = record["video"][..., 0].astype(int)
        down, right = STEPS[record["direction"]]
        last = 0
        for frame in grey_THW[1:]:
            fits = [n for n in range(20) if np.array_equal(np.roll(grey_THW[0], (n * down, n * right), axis=(0, 1)), frame)]
            assert fits and fits[0] - last in (0, 1, 2), (place, fits)
            last = fits[0]
        assert 7 <= last <= 14, "1 to 2 pixels a frame"


def test_as_many_digits_as_are_said(records):
    """By the ink that there is: digits do not touch."""
    counts = Counter(records[n]["count"] for n in range(MANY)), Counter(records[n]["direction"] for n in range(MANY))
    assert [set(one) for one in counts] == [set(COUNTS), set(DIRECTIONS)] and min(counts[0].values()) > 70
    sums = {name: [] for name in COUNTS}
    for n in range(MANY):
        grey = records[n]["video"][0, ..., 0].astype(int)
        sums[records[n]["count"]].append((grey > grey.min() + 20).sum())
    means = [np.mean(sums[name]) for name in COUNTS]
    np.testing.assert_allclose(np.divide(means, means[0]), [1, 2, 3], atol=0.15)
    assert set(records.texts()) >= {records[n]["text"] for n in range(MANY)} and len(list(records.texts())) == 24


def test_no_digit_of_a_split_is_in_another():
    drawn_of = {split: {ink.tobytes() for ink in Moving(split).build().ink} for split in ("train", "validation", "test")}
    for split, drawn in drawn_of.items():
        assert drawn == {image[..., 0].tobytes() for image in Digits(split).build().images}
    assert not drawn_of["test"] & (drawn_of["train"] | drawn_of["validation"])


def test_mistakes_are_named():
    for spec, said in (
        (Moving("all"), r"Moving\.split='all'"),
        (Moving(frames=1), r"Moving\.frames=1"),
        (Moving(side=16), r"Moving\.side=16: three such digits have no room on \(32, 32\); use 10 or less"),
    ):
        with pytest.raises(UserError, match=said):
            spec.build()
