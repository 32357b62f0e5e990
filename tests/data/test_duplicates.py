"""Equal and near records: against a brute-force search, on pictures changed in known ways, and on what must not count."""

import io

import numpy as np
import pytest
import scipy.fft
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from mmjax.data import Digits
from mmjax.data.duplicates import BITS, Seen, duplicates, hashes, near_hashes, sample


class Few:
    """Records in memory."""

    classes = ("cat", "dog")

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def photo(seed, size=(60, 80)):
    """Something smooth, as photos are."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6))).astype(np.float32)


def stretched(seed):
    x = photo(seed)
    return ((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)


def test_hashes_are_those_of_a_cosine_transform():
    small = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    grey = small.astype(np.float64) @ [0.299, 0.587, 0.114]
    low = scipy.fft.dctn(grey, type=2, axes=(1, 2))[:, :8, :8].reshape(7, 64) / 4
    bits = low > np.median(low, axis=1, keepdims=True)
    found = hashes(small)
    assert [format(int(one), "064b") for one in found.byteswap()] == ["".join("01"[int(bit)] for bit in row) for row in bits]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 600))
def test_near_hashes_are_all_pairs_that_are_near(values, copies):
    values += [values[n % len(values)] ^ (1 << n % 64) for n in range(copies)] if values else []
    hash_n = np.array(values[:600], np.uint64)
    some = np.random.default_rng(0).permutation(len(hash_n))[:80]
    found = {tuple(pair) for block in near_hashes(hash_n) for pair in block.tolist()}
    assert all(i < j for i, j in found)
    for i in some.tolist():
        for j in some.tolist():
            near = i < j and (int(hash_n[i]) ^ int(hash_n[j])).bit_count() <= BITS
            assert ((i, j) in found) == near


@pytest.mark.parametrize("change", ["jpeg", "half", "brighter", "blurred"])
def test_a_picture_that_was_saved_again_is_near_and_no_other_is(change):
    train = [{"image": stretched(n), "label": 0} for n in range(30)]
    was = Image.fromarray(train[7]["image"])
    if change == "jpeg":
        file = io.BytesIO()
        was.save(file, "JPEG", quality=40)
        now = Image.open(file)
    else:
        now = {"half": was.resize((40, 30)), "blurred": was.filter(ImageFilter.GaussianBlur(1))}.get(change)
        now = now or Image.fromarray(np.clip(train[7]["image"] * 1.04, 0, 255).astype(np.uint8))
    test = [*({"image": stretched(n), "label": 0} for n in range(100, 120)), {"image": np.asarray(now), "label": 1}]
    found = duplicates([*sample("train", Few(train), 100), *sample("test", Few(test), 100)])
    assert [(pair.one.data, pair.one.index, pair.other.data, pair.other.index) for pair in found.near] == [
        ("train", 7, "test", 20)
    ]
    assert found.exact == () and found.across() == (0, 1) and found.near[0].other.name == "dog"


def test_flat_pictures_collide_and_count_only_where_they_look_alike():
    flat = [{"image": np.full((20, 20, 3), level, np.uint8)} for level in (10, 60, 110, 160, 164)]
    assert len(set(hashes(np.stack([one.small for one in sample("a", Few(flat), 9)])).tolist())) == 1
    found = duplicates(sample("a", Few(flat), 9))
    assert found.compared == 10 and [(pair.one.index, pair.other.index) for pair in found.near] == [(3, 4)]
    assert found.near[0].difference == pytest.approx(4)


def test_digits_are_small_and_alike_and_hardly_any_counts():
    found = duplicates(sample("train", Digits("train").build(), 2000))
    assert found.compared > 100 and len(found.near) <= 2 and found.exact == ()


def test_equal_records_are_groups_those_across_sets_first():
    image, other = stretched(0), stretched(1)
    train = [
        {"image": image, "label": 0, "text": "a"},
        {"image": other, "label": 1},
        {"image": other, "label": 1},
        {"text": "one"},
    ]
    test = [{"image": image, "label": 1, "text": "b"}, {"text": ("one",)}, {"x": 1}]
    found = duplicates([*sample("train", Few([*train, {"image": other, "label": 1}]), 9), *sample("test", Few(test), 9)])
    said = [[(one.data, one.index) for one in group] for group in found.exact]
    assert said == [[("train", 0), ("test", 0)], [("train", 3), ("test", 1)], [("train", 1), ("train", 2), ("train", 4)]]
    assert found.across() == (2, 0) and found.near == (), "the same pixels are no near pair as well"
    assert [one.name for one in found.exact[0]] == ["cat", "dog"]


def test_of_many_records_some_are_looked_at():
    found = sample("a", Few([{"text": str(n)} for n in range(10)]), 5)
    assert [one.index for one in found] == [1, 3, 5, 7, 9] and all(isinstance(one, Seen) for one in found)
    assert duplicates([]).near == ()


def test_comparing_pixels_has_an_end(monkeypatch):
    monkeypatch.setattr("mmjax.data.duplicates.MOST", 3)
    flat = [{"image": np.full((9, 9, 3), level, np.uint8)} for level in (10, 60, 110, 160)]
    found = duplicates(sample("a", Few(flat), 9))
    assert found.stopped and found.compared == 0
