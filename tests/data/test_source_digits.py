"""The digits are those of scikit-learn, split once and for all."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mmjax.core.errors import UserError
from mmjax.data import Digits


@pytest.fixture(scope="module")
def splits():
    return {split: Digits(split).build() for split in ("train", "validation", "test")}


def test_split_is_64_16_20_stratified_and_disjoint(splits):
    assert {split: len(records) for split, records in splits.items()} == {"train": 1149, "validation": 288, "test": 360}
    everything = np.concatenate([records.images[..., 0].reshape(-1, 64) for records in splits.values()])
    expected = np.rint(load_digits().images.reshape(-1, 64) * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, everything)) == sorted(map(bytes, expected))
    for records in splits.values():
        share = np.bincount(records.labels) / len(records)
        np.testing.assert_allclose(share, np.bincount(load_digits().target) / 1797, atol=0.003)


def test_fingerprints_tell_splits_apart_and_never_change(splits):
    assert {split: records.fingerprint() for split, records in splits.items()} == {
        "train": "07bb0c725e05254c0ed3e237b4b8f083",
        "validation": "b182701aaf96ce77dca078d7df3a6214",
        "test": "a7a90274d9ae5cf79d39344c86aae716",
    }


def test_record(splits):
    records = splits["test"]
    record = records[3]
    assert record["image"].shape == (8, 8, 3) and record["image"].dtype == np.uint8
    assert record["image"].max() == 255  # 16 of 16
    assert record["group"] == record["label"] == records.labels[3]
    assert record["name"] == records.classes[record["label"]]
    assert records.classes[0] == "zero" and len(records.classes) == 10
    assert list(records.texts()) == []


def test_unknown_split_names_the_nearest():
    with pytest.raises(UserError, match=r"Digits.split='trian' is not a split \(did you mean 'train'\?\)"):
        Digits("trian").build()
