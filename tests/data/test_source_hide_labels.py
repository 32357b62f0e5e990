"""A source of whose records a share keeps its label."""

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import Data, Digits, HideLabels, Normalise, Scenes
from mmjax.data.sources import SOURCES


class Unlabelled:
    def build(self):
        return [{"image": 1}]


def test_a_share_keeps_its_label_the_same_each_time_and_nothing_else_tells_it():
    whole, hidden = Digits().build(), HideLabels(Digits(), keep=0.1).build()
    labels = np.array([hidden[i]["label"] for i in range(len(hidden))])
    kept = labels >= 0
    assert len(hidden) == len(whole) == 1149 and kept.sum() == 115
    np.testing.assert_array_equal(labels[kept], whole.labels[kept])
    np.testing.assert_array_equal(hidden.labelled, HideLabels(Digits(), keep=0.1).build().labelled)
    assert (hidden.labelled != HideLabels(Digits(), keep=0.1, seed=1).build().labelled).any()
    assert hidden.fingerprint() != HideLabels(Digits(), keep=0.2).build().fingerprint()
    assert set(hidden[0]) == {"image", "label"}
    batch = Data(HideLabels(Digits()), (Normalise(),), batch_size=64, threads=0).build(None, 0).batch(0)
    unlabelled = batch["label"] < 0
    assert len(set(batch["group"][unlabelled].tolist())) == unlabelled.sum() > 40


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (HideLabels(Digits(), keep=0.0), r"HideLabels\.keep=0\.0"),
        (HideLabels(Unlabelled()), "no whole number `label`"),
    ],
)
def test_what_cannot_be_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        spec.build()


def test_it_is_in_the_table_and_takes_other_sources():
    assert SOURCES["hide_labels"] is HideLabels
    assert HideLabels(Scenes(count=10), keep=0.5).build().labelled.sum() == 5


def test_classes_that_keep_no_label_are_named(caplog):
    hidden = HideLabels(Digits(), keep=0.004).build()
    names = [hidden.classes[hidden[i]["label"]] for i in np.flatnonzero(hidden.labelled)]
    assert len(names) == 5
    bare = [name for name in hidden.classes if name not in names]
    assert caplog.messages == [
        f"HideLabels.keep=0.004: no record of {len(bare)} class(es) keeps its label: {', '.join(map(repr, bare))}"
    ]
    caplog.clear()
    HideLabels(Digits(), keep=0.1).build()
    assert caplog.messages == []
