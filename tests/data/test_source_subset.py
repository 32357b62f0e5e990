"""Subsets: which records are chosen, that nothing but what they are decides it, and what is refused."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.data import Data, Digits, Folder, Manifest, Normalise, Scenes, Subset, WordPiece
from mmjax.train.config_file import apply_flags


@dataclasses.dataclass(frozen=True)
class Plain:
    """A source of a user's own: it says nothing of its records without reading them."""

    order: tuple[int, ...] = tuple(range(24))
    names: tuple[str, ...] = ("a", "b", "c", "none")

    def build(self):
        return PlainRecords(self.order, self.names)


@dataclasses.dataclass(frozen=True)
class PlainRecords:
    order: tuple
    classes: tuple

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        number = self.order[index]
        label = number % 3 if number < 21 else -1
        return {"image": np.full((2, 2, 3), number, np.uint8), "text": f"number {number}", "label": label}

    def texts(self):
        return (self[i]["text"] for i in range(len(self)))

    def fingerprint(self):
        return str(self.order)


def numbers(records):
    return [int(records[i]["image"][0, 0, 0]) for i in range(len(records))]


@given(st.permutations(range(24)), st.integers(0, 5), st.integers(1, 3))
def test_the_choice_depends_on_what_records_are_and_k_is_part_of_2k(order, seed, shots):
    def made(order, shots):
        return Subset(Plain(order), but=("none",), shots=shots, seed=seed).build()

    few = made(tuple(order), shots)
    assert numbers(few) == numbers(made(tuple(range(24)), shots)), "whatever the order of files"
    assert set(numbers(few)) <= set(numbers(made(tuple(order), 2 * shots)))
    assert few.counts() == dict.fromkeys("abc", shots) and few.fingerprint() == made(tuple(range(24)), shots).fingerprint()
    assert [few[i]["label"] for i in range(len(few))] == [number % 3 for number in numbers(few)]


def test_seeds_choose_differently_and_evenly():
    chosen = [number for seed in range(200) for number in numbers(Subset(Plain(), ("a",), shots=2, seed=seed).build())]
    counts = np.bincount(chosen, minlength=21)[0:21:3]
    assert counts.sum() == 400 and counts.min() > 30 and counts.max() < 85, "of seven records each is chosen 57 times"


def test_labels_are_numbered_anew_and_texts_are_its_own():
    records = pickle.loads(pickle.dumps(Subset(Plain(), only=("c", "b")).build()))
    assert records.classes == ("b", "c"), "in the order of the source"
    assert numbers(records) == [n for n in range(21) if n % 3], "in its order too"
    assert [records[i]["label"] for i in range(len(records))] == [n % 3 - 1 for n in numbers(records)]
    assert list(records.texts()) == [f"number {n}" for n in numbers(records)]
    data = Data(Subset(Plain(), ("b", "c")), (Normalise(),), batch_size=14, max_length=8, threads=0)
    dataset = data.build(WordPiece(64).train(data.texts()), 0)
    assert dataset.names == {"label": ("b", "c")} and np.bincount(dataset.batch(0)["label"]).tolist() == [7, 7]


def test_folders_and_manifests_say_what_their_records_are(image_folder, tmp_path, monkeypatch):
    folder = Subset(Folder(str(image_folder), "all"), shots=3)
    monkeypatch.setattr("mmjax.data.sources.folder.read_image", None)  # no image is read to choose among them
    few = folder.build()
    assert few.counts() == {"cat": 3, "dog": 3} and few.classes == ("cat", "dog")
    files = {few.own[i].identity for i in range(6)}
    assert {name.partition("/")[0] for name in files} == {"cat", "dog"}
    moved = tmp_path / "elsewhere"
    image_folder.rename(moved)
    assert {own.identity for own in Subset(Folder(str(moved), "all"), shots=3).build().own} == files
    lines = [{"image": f"{n}.png", "text": f"text {n}", "label": "xy"[n % 2]} for n in range(12)]
    chosen = []
    for order in (lines, lines[::-1]):
        path = tmp_path / "list.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in order))
        chosen.append(list(Subset(Manifest(str(path), "all"), ("y",), shots=2).build().texts()))
    assert chosen[0] == chosen[1] and len(chosen[0]) == 2 and all(int(text.split()[1]) % 2 for text in chosen[0])


def test_sources_that_say_nothing_are_read():
    digits = Subset(Digits("validation"), only=("seven", "two"), shots=4).build()
    assert digits.counts() == {"two": 4, "seven": 4}
    assert {digits[i]["name"] for i in range(8)} == {"two", "seven"}
    scenes = Subset(Scenes(count=40), fewer=True, shots=1)
    assert scenes.build().fingerprint() == scenes.build().fingerprint()


def test_a_config_and_flags_reach_it():
    made = Data(Subset(Plain(), ("a",), shots=2))
    assert from_json(to_json(Data(Subset(Digits(), ("two",), shots=2)))) == Data(Subset(Digits(), ("two",), shots=2))
    flags = "--source subset --source.source digits --source.source.split test --source.only two three --source.shots 5"
    words = [*flags.split(), "--source.seed", "3"]
    assert apply_flags(made, words).source == Subset(Digits("test"), ("two", "three"), shots=5, seed=3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            Subset(Plain(), but=("none",), shots=8),
            r"shots=8: the split has less of 3 class\(es\): 'a' 7, 'b' 7, 'c' 7; ask for",
        ),
        (Subset(Plain(), shots=2), "shots=2: the split has less of 1 class.*: 'none' 0"),
        (Subset(Plain(), only=("none",)), "Subset.only: the split has no record of 'none'"),
        (Subset(Plain(), only=("nine",)), r"Subset.only: 'nine' is no class of the source \(did you mean 'none'\?\)"),
        (Subset(Plain(), but=("x",)), "Subset.but: 'x' is no class of the source: one of 'a', 'b', 'c', 'none'"),
        (Subset(Plain(), only=("a",), but=("a",)), "leave no class of the 4 there are"),
        (Subset(Plain(names=())), "source=Plain: its records have no classes"),
        (Subset(Plain(), shots=-1), "Subset.shots=-1: use a number from 0"),
        (Subset(Digits("tset")), "source: Digits.split='tset' is not a split"),
    ],
)
def test_what_cannot_be_chosen_is_refused(source, message):
    with pytest.raises(UserError, match=message):
        source.build()


def test_fewer_takes_what_there_is_and_says_so(caplog):
    records = Subset(Plain(), but=("none",), shots=8, fewer=True).build()
    assert records.counts() == {"a": 7, "b": 7, "c": 7}
    assert "shots=8: of 3 class(es) there are less: 'a' 7" in caplog.text
