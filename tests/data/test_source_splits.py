"""Splits by hash and by rank, and fingerprints."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data.spelling import nearest
from mmjax.data.splits import check_images, fingerprint, hash_split, share_out, warn_of_absent


def test_shares_are_close_to_the_fractions():
    found = [hash_split(f"cat/{i}.jpg", (0.8, 0.1, 0.1)) for i in range(20000)]
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(found.count(split) / 20000 - share) < 0.007  # two and a half standard deviations


@settings(deadline=None)
@given(st.text("ab/"), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_train_share_moves_examples_only_into_train(key, a, b):
    small, large = sorted((a, b))
    assert not (hash_split(key, (small, 1 - small, 0)) == "train" and hash_split(key, (large, 1 - large, 0)) != "train")


def test_fingerprint_sees_where_a_part_ends():
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"]) != fingerprint(["a", b"b", "c"])
    assert len(fingerprint([])) == 32


def test_nearest():
    assert nearest("tets", ["train", "test"]) == " (did you mean 'test'?): one of 'train', 'test'"
    assert nearest("qqq", ["train", "test"]) == ": one of 'train', 'test'"


def counts(found):
    return tuple(list(found.values()).count(split) for split in ("train", "validation", "test"))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (8, 1, 1)), (15, (12, 2, 1)), (199, (159, 20, 20))],
)
def test_a_small_class_is_in_every_split_that_it_can_be_in(size, wanted):
    assert counts(share_out({"a": [f"a/{i}" for i in range(size)]}, (0.8, 0.1, 0.1))) == wanted


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 19), st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any))
def test_any_shares_are_honoured_within_one(size, shares):
    fractions = [share / sum(shares) for share in shares]
    found = counts(share_out({"a": [str(i) for i in range(size)]}, fractions))
    assert sum(found) == size
    for count, share in zip(found, fractions, strict=True):
        assert (count == 0) if share == 0 else (count >= 1 or size < sum(f > 0 for f in fractions))
        assert abs(count - size * share) <= 2


def test_a_large_class_is_split_by_hash_and_each_class_by_itself():
    fractions = (0.8, 0.1, 0.1)
    large, small = [f"large/{i}" for i in range(200)], [f"small/{i}" for i in range(20)]
    found = share_out({"large": large, "small": small}, fractions)
    assert all(found[key] == hash_split(key, fractions) for key in large)
    assert share_out({"small": small}, fractions) == {key: found[key] for key in small}


def test_a_file_more_in_a_small_class_moves_one_across_a_cut_at_most_at_each():
    for size in range(3, 60):
        before = share_out({"a": [str(i) for i in range(size)]}, (0.8, 0.1, 0.1))
        after = share_out({"a": [str(i) for i in range(size + 1)]}, (0.8, 0.1, 0.1))
        assert sum(after[key] != split for key, split in before.items()) <= 2


def test_names_that_are_not_utf8_are_split_and_fingerprinted():
    odd = "caf\udce9.png"
    assert share_out({"a": [odd]}, (0.0, 0.0, 1.0)) == {odd: "test"} and hash_split(odd, (1, 0, 0)) == "train"
    assert fingerprint([odd]) == fingerprint([b"caf\xe9.png"]) != fingerprint(["\ud83d"])


def test_absent_classes_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_absent("here", "test", iter(["a"]), dict.fromkeys("abcdefgh", 2))
        warn_of_absent("here", "test", iter(["a"]), {"a": 9})
    named = "'b' (2 in all), 'c' (2 in all), 'd' (2 in all), 'e' (2 in all), 'f' (2 in all)"
    assert caplog.messages == [f"here: the split test has nothing of 7 class(es): {named} and 2 more"]


def test_windows_and_limits():
    check_images("Folder", None, 1)
    check_images("Folder", (-1, 1.5), 1)
    for window, pixels in (((1, 1), 1), ((0,), 1), (None, 0)):
        with pytest.raises(UserError, match=r"Folder\.(window|max_pixels)="):
            check_images("Folder", window, pixels)
