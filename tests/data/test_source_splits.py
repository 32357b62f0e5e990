"""Hash splits and fingerprints."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.sources.splits import fingerprint, hash_split
from mmjax.data.spelling import nearest


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
