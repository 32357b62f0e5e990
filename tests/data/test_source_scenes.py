"""Scenes: pure, of held-out digits, and what is said of them is true of their pixels."""

import dataclasses
import pickle
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import Data, Digits, Normalise, Resize, Scenes, Text, WordPiece
from mmjax.data.sources.digits import NAMES
from mmjax.data.sources.language import ANSWERS, COLOURS, KINDS, PLACES
from mmjax.data.sources.scenes import RGB
from mmjax.data.splits import fingerprint

MANY = 1500


@pytest.fixture(scope="module")
def records():
    return Scenes("test", MANY).build()


@pytest.fixture(scope="module")
def scenes(records):
    return [records[i] for i in range(MANY)]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_scene_is_a_function_of_split_seed_and_place(records, scenes):
    again = pickle.loads(pickle.dumps(Scenes("test", 2 * MANY).build()))
    assert all(same(again[i], scenes[i]) for i in (7, 0, MANY - 1, 7)), "in any order, in any number of them"
    assert same(records[-1], scenes[-1]) and len(again) == 2 * MANY
    images = [scenes[0]["image"], scenes[1]["image"]]
    images += [spec.build()[0]["image"] for spec in (Scenes("test", seed=1), Scenes("train"), Scenes("validation"))]
    assert len({image.tobytes() for image in images}) == len(images)
    with pytest.raises(IndexError, match=f"scene {MANY} of {MANY}"):
        records[MANY]


def test_fingerprints_tell_scenes_apart():
    specs = [Scenes(), Scenes("test"), Scenes(seed=1), Scenes(count=9), Scenes(text="question"), Scenes(image_size=(40, 32))]
    prints = [spec.build().fingerprint() for spec in specs]
    assert len(set(prints)) == len(prints) and prints[0] == Scenes().build().fingerprint()


def test_without_pictures_the_texts_are_the_same(records, scenes):
    bare = Scenes("test", MANY, pictures=False).build()
    drawn = {"image", "image_boxes", "image_map"}
    assert all(bare[i] == {k: v for k, v in scenes[i].items() if k not in drawn} for i in (0, 7, MANY - 1))
    assert bare.fingerprint() != records.fingerprint() and list(bare.texts()) == list(records.texts())
    known = [records.digits, "split=test", f"count={MANY}", "seed=0", "image_size=(32, 32)", "text=caption"]
    assert records.fingerprint() == fingerprint(known), "as before there was a choice"


def test_no_digit_of_a_split_is_in_another():
    drawn_of = {}
    for split in ("train", "validation", "test"):
        records, digits = Scenes(split, 400).build(), Digits(split).build()
        for number, rows in enumerate(records.by_digit):
            assert set(digits.labels[rows]) == {number}
        assert sum(map(len, records.by_digit)) == len(digits)
        drawn_of[split] = {ink.tobytes() for ink in records.ink}
        assert drawn_of[split] == {image[..., 0].tobytes() for image in digits.images}
        # Each digit is drawn from that ink alone: without it nothing but the background is there.
        flat = dataclasses.replace(records, ink=np.full_like(records.ink, 255))
        assert not any(same(flat[i], records[i]) for i in range(5))
    assert not drawn_of["test"] & (drawn_of["train"] | drawn_of["validation"])
    assert not drawn_of["train"] & drawn_of["validation"]


def read(scene):
    """(place, digit, colour) of each digit, from the boxes, the map and the colours of the pixels alone."""
    found = []
    height, width = scene["image_map"].shape
    for number, box in enumerate(scene["image_boxes"]):
        if (box == -1).all():
            continue
        left, top, right, bottom = box.astype(int)
        inside = scene["image_map"][top:bottom, left:right]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any(), "the box is tight"
        (digit,) = set(inside[inside > 0].tolist())
        colour_3 = np.percentile(scene["image"][top:bottom, left:right][inside > 0], 90, axis=0)
        colour = min(RGB, key=lambda name: np.abs(colour_3 - RGB[name]).sum())
        place = (
            f"{'top' if (top + bottom) / 2 < height / 2 else 'bottom'} {'left' if (left + right) / 2 < width / 2 else 'right'}"
        )
        assert PLACES[number] == place
        found.append((place, NAMES[digit - 1], colour))
    return found


def in_chinese(one):
    place, name, colour = one
    where = place.replace("top", "上").replace("bottom", "下").replace("left", "左").replace("right", "右").split()
    colours = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "white": "白色"}
    return f"{where[1]}{where[0]}有一个{colours[colour]}的{'零一二三四五六七八九'[NAMES.index(name)]}"


def true_answer(question, found):
    if question == "how many digits are there?":
        return NAMES[len(found)]
    for place, name, colour in found:
        if question in (f"what colour is the digit {place}?", f"what colour is the {name}?"):
            return colour
        if question == f"which digit is {place}?":
            return name
        if question == f"where is the {name}?":
            return place
    asked = re.fullmatch(r"is there a digit (\w+)\?", question).group(1)
    return "yes" if asked in {name for _, name, _ in found} else "no"


def test_captions_answers_and_counts_are_true_of_the_pixels(scenes):
    for scene in scenes[:400]:
        found = read(scene)
        assert scene["caption"] == " and ".join(f"a {colour} {name} {place}" for place, name, colour in found)
        assert scene["masked"] == re.sub(f"\\b({'|'.join(NAMES)})\\b", "[MASK]", scene["caption"])
        assert scene["chinese"] == "和".join(map(in_chinese, found))
        assert scene["answer"] == true_answer(scene["question"], found) == ANSWERS[scene["label"]]
        assert scene["count"] == len(found) == len({name for _, name, _ in found})
        assert scene["image"].shape == (32, 32, 3) and scene["image"].dtype == np.uint8
        assert scene["question"] in KINDS[scene["kind"]]


def test_the_chance_of_each_kind_of_question(scenes):
    """What whoever has not seen the picture can reach: the most common answer of each kind."""
    answers = defaultdict(Counter)
    for scene in scenes:
        answers[scene["kind"]][scene["answer"]] += 1
    kinds = {kind: sum(found.values()) / MANY for kind, found in answers.items()}
    assert kinds.keys() == KINDS.keys() and max(abs(share - 1 / 6) for share in kinds.values()) < 0.03
    chance = {kind: max(found.values()) / sum(found.values()) for kind, found in answers.items()}
    expected = {"count": 1 / 4, "digit": 1 / 10, "colour": 1 / 5, "colour_of": 1 / 5, "place": 1 / 4, "exists": 1 / 2}
    assert chance == pytest.approx(expected, abs=0.08)
    assert {answer for found in answers.values() for answer in found} <= set(ANSWERS)
    assert Counter(len(re.findall("and", scene["caption"])) + 1 for scene in scenes).keys() == {1, 2, 3, 4}
    assert all(COLOURS.count(name) == 1 for name in RGB)


def test_every_word_that_is_said_is_known_to_the_tokenizer(scenes):
    columns = {"answer": Text(max_length=6)}
    data = Data(Scenes("test", 64, text="question"), (Normalise(),), columns, batch_size=16, max_length=16, threads=0)
    tokenizer = WordPiece(128).train([*data.texts()])
    dataset = data.build(tokenizer, 0)
    with dataset.epoch() as epoch:
        batches = list(epoch)
    assert dataset.lost.unknown == dataset.lost.truncated == 0
    assert batches[0]["answer"].shape == (16, 6) and batches[0]["image_boxes"].shape == (16, 4, 4)
    assert [tokenizer.decode(ids) for ids in batches[0]["answer"]] == [scene["answer"] for scene in scenes[:16]]
    assert dataset.classes == ANSWERS
    texts = [scene["caption"] for scene in scenes[:100]]
    captioner = WordPiece(128).train([*Scenes().build().texts()])
    found = captioner.encode(texts, 28)
    assert not found["truncated"].any() and not captioner.unknown(found["ids"], found["mask"]).any()
    assert [captioner.decode(ids) for ids in found["ids"]] == texts, "an exact match is possible"
    assert max(map(len, Scenes().build().texts())) >= max(map(len, texts))


def test_what_lies_over_a_scene_moves_with_it(records):
    small, large = records[3], Resize((64, 64), "nearest")(records[3], np.random.default_rng(0), records)
    np.testing.assert_array_equal(large["image_map"][::2, ::2], small["image_map"])
    there = (small["image_boxes"] != -1).all(axis=1)
    np.testing.assert_array_equal(large["image_boxes"][there], 2 * small["image_boxes"][there])


@pytest.mark.parametrize(
    "spec, complaint",
    [
        (Scenes("tset"), r"Scenes.split='tset' is not a split \(did you mean 'test'\?\)"),
        (Scenes(text="captions"), r"Scenes.text='captions' is none of what is said of a scene \(did you mean 'caption'\?\)"),
        (Scenes(count=0), "Scenes.count=0: use a number from 1"),
        (Scenes(image_size=(33, 32)), r"Scenes.image_size=\(33, 32\): two cells a side need even sides"),
        (Scenes(image_size=(8, 8)), r"Scenes.image_size=\(8, 8\)"),
    ],
)
def test_mistakes_are_named(spec, complaint):
    with pytest.raises(UserError, match=complaint):
        spec.build()
