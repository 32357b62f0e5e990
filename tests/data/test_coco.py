"""COCO's captions and instances, LLaVA's conversations: against what was written, and against pixels."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import Array, BadRecordError, Classes, Coco, Data, Flip, Normalise, Resize, WordPiece
from mmjax.data.once import say_once


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "cat"}]


@pytest.fixture
def write(tmp_path):
    """Writes an annotation file; returns its path."""

    def write(whole, name="a.json"):
        path = tmp_path / name
        path.write_text(json.dumps(whole))
        return str(path)

    return write


@pytest.fixture
def images(tmp_path):
    """Nine images of 10 x 20 (height x width), 0.png to 8.png; each has a bright rectangle from (2, 3) to (12, 7)."""
    for i in range(9):
        pixels = np.full((10, 20, 3), i, np.uint8)
        pixels[3:7, 2:12] = 200
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return str(tmp_path / "images")


def listed(count):
    return [{"id": 100 + i, "file_name": f"{i}.png", "height": 10, "width": 20} for i in range(count)]


def captions(count):
    notes = [{"id": i, "image_id": 100 + i % count, "caption": f" caption é {i}\n"} for i in range(2 * count)]
    return {"images": listed(count), "annotations": notes}


def instances(*boxes, count=3, **more):
    """Each box is (image, category, bbox)."""
    notes = [{"image_id": 100 + i, "category_id": own, "bbox": box, **more} for i, own, box in boxes]
    return {"images": listed(count), "annotations": notes, "categories": CATEGORIES}


def test_all_captions_of_an_image(write, images):
    records = Coco(write(captions(4)), images).build()
    records = pickle.loads(pickle.dumps(records))
    assert len(records) == 4 and records.classes == ()
    for i in range(4):
        assert records[i]["text"] == (f"caption é {i}", f"caption é {i + 4}") and records[i].keys() == {"image", "text"}
        assert records[i]["image"].shape == (10, 20, 3) and records[i]["image"][0, 0, 0] == i
    assert records[-1]["text"] == records[3]["text"] and list(records.texts_of("text")) == list(records.texts())
    assert list(records.texts()) == [text for i in range(4) for text in records[i]["text"]]
    with pytest.raises(IndexError):
        records[4]


def test_boxes_classes_and_labels(write, images, caplog):
    boxes = [(0, 18, [2, 3, 10, 4]), (0, 3, [0.5, 0, 1, 1]), (0, 18, [15, 5, 5.5, 5]), (2, 90, [-4, 0, 8, 2])]
    spec = Coco(write(instances(*boxes, (2, 3, [25, 0, 5, 5]), (2, 18, [1, 1, 0, 4]), (7, 3, [0, 0, 1, 1]))), images)
    records = spec.build()
    assert records.classes == ("car", "dog", "cat"), "in the order of their ids"
    first, empty, last = (records[i] for i in range(3))
    assert first["image_boxes"].dtype == np.float32 and first["image_classes"].dtype == np.int32
    assert first["image_boxes"].tolist() == [[2, 3, 12, 7], [0.5, 0, 1.5, 1], [15, 5, 20, 10]]
    assert first["image_classes"].tolist() == [1, 0, 1] and first["labels"] == ("car", "dog")
    left, top, right, bottom = first["image_boxes"][0].astype(int)
    bright = first["image"][..., 0] == 200
    assert bright[top:bottom, left:right].all() and bright.sum() == (bottom - top) * (right - left)
    assert empty["image_boxes"].shape == (0, 4) and empty["image_classes"].shape == (0,) and empty["labels"] == ()
    assert last["image_boxes"].tolist() == [[0, 0, 4, 2]] and last["labels"] == ("car", "dog", "cat")
    said = "\n".join(caplog.messages)
    assert "1 annotation(s) of images that the file does not list" in said and "2 box(es) without an area" in said
    assert "1 box(es) more than a pixel beyond their image, clipped to it" in said
    caplog.clear()
    spec.build()
    assert not caplog.messages, "said once a process"
    say_once.cache_clear()
    spec.build()
    assert "2 box(es) without an area" in "\n".join(caplog.messages), "and in each, not only when the file is read"


def test_crowds(write, images, caplog):
    path = write(instances((0, 3, [0, 0, 20, 10]), iscrowd=1))
    record = Coco(path, images).build()[0]
    assert record["image_boxes"].shape == (0, 4) and record["labels"] == ("car",)
    assert "1 box(es) of crowds" in "\n".join(caplog.messages)
    assert Coco(path, images, crowd=True).build()[0]["image_boxes"].tolist() == [[0, 0, 20, 10]]


def test_boxes_move_with_the_image_into_batches_that_workers_make_alike(write, images):
    source = Coco(
        write(instances(*[(i, 3 if i % 2 else 18, [2, 3, 10, 4]) for i in range(8) for _ in range(i % 3)], count=9)), images
    )
    columns = {"image_boxes": Array(rows=4), "image_classes": Array("int32", rows=4), "labels": Classes(("cat", "dog", "car"))}
    found = []
    for workers in (0, 2):
        data = Data(source, (Resize((20, 40)), Flip(), Normalise()), columns, batch_size=6, workers=workers)
        dataset = data.build(None, seed=1)
        dataset = pickle.loads(pickle.dumps(dataset)) if workers else dataset
        with dataset.batches() as batches:
            found.append([next(batches) for _ in range(4)])
    for one, other in zip(*found, strict=True):
        assert one["image_boxes"].shape == (6, 4, 4) and one["image_classes"].shape == (6, 4) and one["labels"].shape == (6, 3)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
        for boxes, classes in zip(one["image_boxes"], one["image_classes"], strict=True):
            assert ((boxes == -1).all(axis=1) == (classes == -1)).all()
            assert {tuple(box) for box in boxes[classes >= 0].tolist()} <= {(4, 6, 24, 14), (16, 6, 36, 14)}


def test_captions_and_boxes_in_one_file(write, images, caplog):
    whole = instances((0, 3, [2, 3, 10, 4]), (1, 3, [2, 3, 10, 4]))
    whole["annotations"] += [{"image_id": 101, "caption": "one"}, {"image_id": 102, "caption": "two"}, {"image_id": 101}]
    records = Coco(write(whole), images).build()
    assert [records[i]["text"] for i in range(2)] == [("one",), ("two",)] and len(records) == 2
    assert [len(records[i]["image_boxes"]) for i in range(2)] == [1, 0] and records[0]["image"][0, 0, 0] == 1
    said = "\n".join(caplog.messages)
    assert "1 image(s) without a caption" in said and "1 annotation(s) with neither a caption nor a box" in said


def test_splits_and_fingerprints(write, images):
    path = write(captions(9))
    specs = [Coco(path, images, split, (0.4, 0.3, 0.3)) for split in ("train", "validation", "test", "all")]
    parts = [spec.build() for spec in specs]
    levels = [sorted(int(part[i]["image"][0, 0, 0]) for i in range(len(part))) for part in parts]
    assert sorted([*levels[0], *levels[1], *levels[2]]) == levels[3] == list(range(9))
    prints = {part.fingerprint() for part in parts}
    assert len(prints) == 4 and specs[0].build().fingerprint() == parts[0].fingerprint()
    more = captions(9)
    more["annotations"][0]["caption"] = "another"
    assert Coco(write(more), images).build().fingerprint() not in prints
    with pytest.raises(UserError, match="none of the 9 records"):
        Coco(path, images, "test", (1, 0, 0)).build()


def test_conversations(write, images, caplog):
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?\nA. a cat"},
        {"from": "gpt", "value": "A bright box."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "Left."},
    ]
    entries = [
        {"id": "x", "image": "3.png", "conversations": turns},
        {"id": "y", "conversations": turns},
        {"id": "z", "image": "4.png", "conversations": turns[1:2]},
        {"id": "w", "image": ["5.png"], "conversations": [{"from": "human", "value": "Why? <image>"}, *turns[3:], *turns[:2]]},
    ]
    path = write(entries)
    first = Coco(path, images).build()
    assert len(first) == 2 and {**first[0], "image": 0} == {
        "image": 0,
        "text": "What is it?\nA. a cat",
        "question": "What is it?\nA. a cat",
        "answer": "A bright box.",
    }
    assert first[0]["image"][0, 0, 0] == 3 and first[1]["question"] == "Why?" and first[1]["answer"] == "Left."
    said = "\n".join(caplog.messages)
    assert "1 conversation(s) without exactly one image" in said and "1 conversation(s) without a question and" in said
    each = Coco(path, images, conversation="each", text="answer").build()
    assert [each[i]["text"] for i in range(4)] == ["A bright box.", "Left.", "Left.", "A bright box."]
    assert [each[i]["image_id"] for i in range(4)] == [0, 0, 3, 3] and list(each.texts_of("question"))[1] == "Where?"
    assert list(first.texts()) == ["What is it?\nA. a cat", "Why?"] and list(each.texts()) == [
        each[i]["text"] for i in range(4)
    ]
    assert "2 conversation(s)" not in said and "say nowhere" not in said
    history = Coco(path, images, conversation="history").build()
    assert [history[i]["question"] for i in (0, 1)] == ["What is it?\nA. a cat", "What is it?\nA. a cat\nA bright box.\nWhere?"]
    assert [history[i]["answer"] for i in range(4)] == [each[i]["answer"] for i in range(4)] and history[3]["image_id"] == 3
    bare = [{**entries[0], "conversations": [{**turn, "value": turn["value"].replace("<image>", "")} for turn in turns]}]
    unmarked = Coco(write(bare, "bare.json"), images).build()
    assert "1 conversation(s) that say nowhere where their image stands (<image>)" in caplog.text
    assert unmarked.fingerprint() == Coco(write(entries[:1], "marked.json"), images).build().fingerprint(), "as ever"
    tokenizer = WordPiece(80).train([*each.texts(), *each.texts_of("question")])
    batch = Data(Coco(path, images), (Normalise(),), batch_size=2).build(tokenizer, 0).batch(0)
    assert batch["text"].shape == (2, 32)


def test_images_that_are_not_there_or_of_another_size(write, images):
    whole = instances((0, 3, [0, 0, 1, 1]))
    whole["images"][0]["file_name"] = "none.png"
    whole["images"][1]["width"] = 10
    for side in ("height", "width"):
        del whole["images"][2][side]
    whole["annotations"] += [{"image_id": 102, "category_id": 3, "bbox": box} for box in ([15, 5, 9, 9], [30, 0, 4, 4])]
    records = Coco(write(whole), images).build()
    with pytest.raises(BadRecordError, match=r"none\.png: no such file"):
        records[0]
    with pytest.raises(BadRecordError, match=r"1\.png: the image is 10 x 20 pixels, and its annotations are of one of 10 x 10"):
        records[1]
    assert records[2]["image_boxes"].tolist() == [[15, 5, 20, 10]], "clipped to the image as it is"


def test_mistakes(write, images, tmp_path):
    def check(whole, message, **spec):
        with pytest.raises(UserError, match=message) as raised:
            Coco(write(whole), images, **spec).build()
        assert "\n" not in str(raised.value)

    check({}, "neither 'images' and 'annotations'")
    check(3, "neither 'images' and 'annotations'")
    check({"images": {}, "annotations": []}, "'images' is a dict, and should be a list")
    check({"images": [3], "annotations": []}, r"images\[0\] is a int")
    check({"images": [], "annotations": []}, "its 0 annotations have neither")
    check(instances((0, 4, [0, 0, 1, 1])), r"annotations\[0\]: category_id=4 is none of the 3 categories")
    for box in ([0, 0, 1], [0, 0, 1, float("nan")], "0 0 1 1", [0, 0, "1", 1], [0, 0, 1, 10**400]):
        check(instances((0, 3, box)), r"annotations\[0\]\.bbox is .*should be \[left, top, width, height\]")
    whole = captions(2)
    whole["images"][1]["id"] = 100
    check(whole, r"images\[1\]: a second image has the id 100")
    whole["images"][1] = {"id": 7}
    check(whole, r"images\[1\]\.file_name is 'None', and should be a text")
    whole = captions(2)
    whole["annotations"][1]["caption"] = " "
    check(whole, r"annotations\[1\]\.caption is ' '")
    whole = instances((0, 3, [0, 0, 1, 1]))
    whole["categories"] = [{"id": 3, "name": "car"}, {"id": 3, "name": "cart"}]
    check(whole, "two categories have one id or one name")
    check([3], "entry 0 has no list 'conversations'")
    check([{"image": "a", "conversations": [{"value": "b"}]}], "turn 0 does not say whom it is 'from'")
    check(captions(1), r"Coco\.conversation='all' is unknown", conversation="all")
    check(captions(1), r"Coco\.text='answers' is unknown \(did you mean 'answer'\?\)", text="answers")
    check(captions(1), r"Coco\.split='tset'", split="tset")
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        Coco(str(tmp_path / "none.json")).build()
    (tmp_path / "a.json").write_text(json.dumps(captions(3))[:-10])
    with pytest.raises(UserError, match=r"a\.json' is cut or no JSON"):
        Coco(str(tmp_path / "a.json")).build()


WHOLE = [
    json.dumps({**instances((0, 3, [0, 0, 1, 1]), (1, 18, [2, 3, 10, 4])), "info": {}}).encode(),
    json.dumps(captions(3)).encode(),
    json.dumps(
        [{"image": "3.png", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 3
    ).encode(),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_ends_in_an_error_by_name(data, tmp_path, images):
    whole = bytearray(data.draw(st.sampled_from(WHOLE)))
    kind = data.draw(st.sampled_from(["cut", "bytes", "values"]))
    if kind == "cut":
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "bytes":
        for _ in range(data.draw(st.integers(1, 3))):
            whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    else:  # something else where something was
        parsed = node = json.loads(bytes(whole))
        key = None
        while isinstance(node, dict | list) and node and (key is None or data.draw(st.booleans())):
            holder, key = node, data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            node = holder[key]
        holder[key] = data.draw(VALUES)
        whole = json.dumps(parsed).encode()
    path = tmp_path / "damaged.json"
    path.write_bytes(whole)
    try:
        records = Coco(str(path), images).build()
    except UserError as error:
        assert "\n" not in str(error)
        return
    for index in range(len(records)):
        try:
            records[index]
        except BadRecordError:
            continue
    assert all(isinstance(text, str) for text in records.texts())
