"""Sources are opened once for a run, and texts that nobody reads need no tokenizer."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from PIL import Image
from tiny import small_model, vit

from mmjax.core.errors import UserError
from mmjax.data import Caption, Data, Folder, Manifest, Mix, Normalise, WordPiece
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.plan.batches import batch_shapes
from mmjax.train import Experiment, Task
from mmjax.train.setup import set_up
from mmjax.train.sources import Sources, reads_texts
from mmjax.train.validate import validated

NORMALISE = Normalise((0.3,) * 3, (0.35,) * 3)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Twenty captioned images of two classes: a manifest."""
    root, lines = tmp_path_factory.mktemp("captioned"), []
    for number in range(20):
        kind = ("cat", "dog")[number % 2]
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(root / kind / f"{number}.png")
        lines.append({"image": f"{kind}/{number}.png", "text": f"a {kind}", "label": kind})
    (root / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def experiment(captioned, source=None, **changes):
    spec = Data(source or Manifest(str(captioned / "lines.jsonl"), "all"), (NORMALISE,), batch_size=8, threads=0)
    model = Multimodal({"image": vit()}, heads={"classes": Classifier(2)})
    data = {"train": spec, "validation": spec}
    e = Experiment(model, data, {"classify": Task(Classification())}, steps=1, evaluate={"classes": Report()}, test_data="")
    return dataclasses.replace(e, **changes)


def test_texts_that_nobody_reads_are_left_out_and_that_is_said(captioned, one_device):
    e = experiment(captioned)
    setup = validated(set_up(e, None, one_device))
    assert {*setup.datasets["train"].spec()} == {"image", "label", "group", "index"}
    [line] = [note for note in setup.notes if "texts are left out" in note]
    assert line.startswith("data.train, data.validation: ") and "no tokenizer" in line
    batch = setup.datasets["train"].batch(0)
    np.testing.assert_array_equal(batch["group"], batch["label"])
    shapes, why = batch_shapes(e)
    assert why == "the data" and "text" not in shapes["train"]


@pytest.mark.parametrize(
    "reads",
    [
        {"model": small_model()},
        {"tasks": {"own": Task(dataclasses.make_dataclass("Own", (), namespace={"__call__": lambda *_: None})())}},
        {"tasks": {"own": Task(dataclasses.make_dataclass("Own", (), namespace={"needs": ("text_mask",)})())}},
    ],
)
def test_where_somebody_may_read_them_a_tokenizer_is_demanded(captioned, one_device, reads):
    e = experiment(captioned, **reads)
    assert reads_texts(e)
    with pytest.raises(UserError, match=r"data\.train: the records have text, and no tokenizer was given"):
        Sources(e).dataset("train", {})
    assert "text" in Sources(e).dataset("train", {"": WordPiece(50).train(["a cat", "a dog"])}).spec()


def test_a_source_is_opened_once_and_says_a_thing_once(captioned, one_device, monkeypatch, caplog):
    (captioned / "empty").mkdir(exist_ok=True)
    opened, build = [], Folder.build
    monkeypatch.setattr(Folder, "build", lambda self: opened.append(self) or build(self))
    mixed = Mix({"a": Folder(str(captioned), "all"), "b": Folder(str(captioned), "all")}, {"a": 2.0, "b": 1.0})
    e = experiment(captioned, mixed, tokenizer=WordPiece(50))
    own = dataclasses.replace(e.data["train"], transforms=(NORMALISE, Caption(("a {}",))))
    e = dataclasses.replace(e, data={"train": own, "validation": dataclasses.replace(own, batch_size=16)})
    with caplog.at_level(logging.INFO):
        set_up(e, None, one_device)
        assert len(opened) == 4, "two sources of two sets of data, of which the tokenizer has read one"
        set_up(e, None, one_device, only=("validation",))
    assert len([m for m in caplog.messages if "no images in empty" in m]) == 1
    assert len([m for m in caplog.messages if m.startswith("Mix: while b")]) == 1
