"""Labels are matched to the logits of a head by the names of their classes."""

import dataclasses
import types

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import Class
from mmjax.data.kinds import About
from mmjax.evaluate import Report, Segmentation
from mmjax.models import Multimodal
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification, Contrastive
from mmjax.train import Task
from mmjax.train.classes import known_classes, match_classes, uses

NAMES = ("ant", "bee", "cow", "dog")


class Labelled:
    """Data of class columns, as far as matching looks at it."""

    def __init__(self, **names):
        self.columns = {key: Class(tuple(own)).build(key, 0, About({}, 8), {}) for key, own in names.items()}

    @property
    def names(self):
        return {key: column.names for key, column in self.columns.items() if column.names}

    def match(self, key, names):
        self.columns[key].match(names)

    def labels(self, *names, key="label"):
        return self.columns[key](names, [{} for _ in names])[0][key].tolist()


def experiment(tasks=("train",), **changes):
    found = {f"task_{data}": Task(Classification(), data=data) for data in tasks}
    return dataclasses.replace(tiny.experiment(), **{"tasks": found, "evaluate": {}, **changes})


def match(datasets, known=None, evaluators=None, made=None):
    return match_classes(made or experiment(), datasets, known or {}, evaluators or {})


def test_every_task_and_evaluator_with_a_head_and_a_label_is_held_against_its_data():
    tasks = {"class": Task(Classification(label="kind"), "train"), "pairs": Task(Contrastive(), "train")}
    made = dataclasses.replace(experiment(), tasks=tasks)
    found = list(uses(made, {"report": Report(), "segments": Segmentation(data="test")}))
    told = [(use.who, use.head, use.data, use.label, use.trains) for use in found]
    assert told == [
        ("tasks.class", "classes", "train", "kind", True),
        ("evaluate.report", "classes", "validation", "label", False),
        ("evaluate.segments", "segments", "test", "image_map", False),
    ]


def test_the_same_order_needs_nothing():
    data = {name: Labelled(label=NAMES) for name in ("train", "validation")}
    assert match(data, evaluators={"report": Report()}) == ({"classes": NAMES}, [])
    assert data["validation"].labels(*NAMES) == [0, 1, 2, 3]


@given(train=st.permutations(NAMES), other=st.permutations(NAMES), size=st.integers(1, 4), known=st.booleans())
def test_a_label_is_the_place_of_its_name_among_the_heads_whatever_the_order(train, other, size, known):
    """Permuted data and a subset of the classes; of a new head, and of one whose logits have an order already."""
    data = {"train": Labelled(label=train), "validation": Labelled(label=other[:size])}
    order = NAMES if known else tuple(train)
    found, lines = match(data, {"classes": NAMES} if known else {}, {"report": Report()})
    assert found == {"classes": order}
    for name, own in (("train", train), ("validation", other[:size])):
        assert data[name].labels(*own) == [order.index(label) for label in own]
        assert data[name].labels("", None) == [-1, -1]
        said = [line for line in lines if line.startswith(f"data.{name}: its classes are {', '.join(own)}; matched by name")]
        assert len(said) == (tuple(own) != order)


def test_a_task_decides_the_order_before_an_evaluator_does():
    data = {"train": Labelled(label=NAMES[::-1]), "validation": Labelled(label=NAMES)}
    found, _ = match(data, evaluators={"report": Report()})
    assert found == {"classes": NAMES[::-1]} and data["validation"].labels("ant") == [3]


def test_a_stranger_is_refused_with_both_lists():
    data = {"train": Labelled(label=NAMES), "validation": Labelled(label=("ant", "cwo"))}
    said = (
        r"^evaluate.report: data.validation has the class 'cwo', which is not one of those that heads.classes is trained on "
        r"\(did you mean 'cow'\?\): its classes are ant, cwo, and those are ant, bee, cow, dog$"
    )
    with pytest.raises(UserError, match=said):
        match(data, evaluators={"report": Report()})


def test_a_stranger_to_a_head_that_is_kept_is_told_how_to_start_it_anew():
    many = tuple(f"c{i}" for i in range(9))
    said = (
        r"tasks.task_train: data.train has the class 'yak', which is not one of the ones that heads.classes starts with: its "
        r"classes are yak, and those are c0, c1, c2, c3, c4, c5, ... \(9 in all\); init_fresh=\('heads_classes/\*',\)"
    )
    with pytest.raises(UserError, match=said):
        match({"train": Labelled(label=("yak",))}, {"classes": many})


def test_data_without_names_is_left_alone():
    data = {"train": Labelled(label=()), "validation": Labelled(label=NAMES)}
    assert match(data) == ({}, [])
    assert match({}) == ({}, [])  # data that is not built


def two_heads(first, second):
    """Two evaluators of heads whose logits have these orders, on one set of data."""
    evaluators = {"one": Report("classes"), "two": Report("other")}
    return {"classes": first, "other": second}, evaluators


@pytest.mark.parametrize("own", [NAMES, NAMES[::-1], ("bee", "ant", "dog", "cow")])
def test_two_heads_of_different_orders_cannot_read_one_set_of_data(own):
    known, evaluators = two_heads(NAMES, NAMES[::-1])
    said = r"data.validation: heads 'classes' and 'other' both read its 'label' and have their classes in different orders"
    with pytest.raises(UserError, match=said):
        match({"validation": Labelled(label=own)}, known, evaluators)


def test_two_heads_of_one_order_can_and_so_can_two_labels():
    known, evaluators = two_heads(NAMES, NAMES)
    data = {"validation": Labelled(label=NAMES[::-1])}
    assert len(match(data, known, evaluators)[1]) == 1
    assert data["validation"].labels("dog") == [3]
    known, _ = two_heads(NAMES, NAMES[::-1])
    data = {"validation": Labelled(label=NAMES, kind=NAMES)}
    match(data, known, {"one": Report("classes"), "two": Report("other", label="kind")})
    assert data["validation"].labels("dog") == [3] and data["validation"].labels("dog", key="kind") == [0]


class Kept:
    """A run, as far as classes go."""

    def __init__(self, classes, checkpoint=True):
        self._classes, self._checkpoint = classes, checkpoint

    def classes(self):
        return self._classes

    def has_checkpoint(self):
        return self._checkpoint

    def experiment(self):
        return types.SimpleNamespace(model=Multimodal(encoders={}))


def test_a_resumed_run_knows_its_classes_and_a_new_one_those_of_what_it_starts_from(monkeypatch):
    there = {"classes": NAMES, "gone": ("a", "b")}
    made, fresh = experiment(), experiment(init_from="there", init_fresh=("heads_classes/*",))
    monkeypatch.setattr("mmjax.train.classes.Run", lambda path: Kept(there))
    assert known_classes(made, Kept({"classes": NAMES})) == {"classes": NAMES}
    assert known_classes(made, Kept({"classes": NAMES}, checkpoint=False)) == {} == known_classes(made, None)
    begun = experiment(init_from="there")
    assert known_classes(begun, None) == {"classes": NAMES}  # of heads that it has
    assert known_classes(begun, Kept({"classes": NAMES[::-1]})) == {"classes": NAMES[::-1]}
    assert known_classes(fresh, None) == {}
    assert known_classes(experiment(init_from="there", init_fresh=("encoders_image/*",)), None) == {"classes": NAMES}


@pytest.mark.parametrize(
    ("id2label", "found"),
    [
        ({"10": "k", "2": "c", "0": "a"}, {"classes": ("a", "c", "k")}),
        ({"0": "LABEL_0", "1": "LABEL_1"}, {}),
        ({"0": "same", "1": "same"}, {}),
        ({}, {}),
    ],
)
def test_a_converted_model_says_its_classes_unless_they_say_nothing(id2label, found):
    model = Multimodal(encoders={}, heads={"classes": Classifier()}, huggingface={"id2label": id2label})
    assert known_classes(experiment(model=model), Kept({})) == found
    headless = Multimodal(encoders={}, huggingface={"id2label": id2label})
    assert known_classes(experiment(model=headless), Kept({})) == {}
