"""What the logits of a head are taken for: held against the data by name, the same on any mesh, and answered as trained."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

import mmjax
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Array, Class, Classes, Digits, Number
from mmjax.evaluate import Errors, MultiLabels, Ordinals, Ranked, Report
from mmjax.models import Multimodal
from mmjax.models.heads import Classifier, OrdinalClassifier
from mmjax.objectives import MultiLabel, Ordinal, Ranking, Regression
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import SGD, AdamW, Checkpoint, Task, train
from mmjax.train.classes import Use, check_outcomes
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.teachers import of_run
from mmjax.train.validate import validated

TAGS = ("even", "small", "round")
GRADES = ("none", "mild", "severe", "dire")  # the alphabet has them otherwise
SEVERAL = MultiLabel("tags", "tags")
MESH = tiny.ONE.build(jax.devices()[:1])


def tags(label):
    facts = {"even": label % 2 == 0, "small": label < 5, "round": label in (0, 3, 6, 8, 9)}
    return [name for name in TAGS if facts[name]]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is so of each digit; of every fourth nothing is known."""

    random = False
    names: tuple[str, ...] = TAGS

    def __call__(self, record, rng, records):
        if "label" not in record:
            return record
        known = record["image"].sum() % 4 > 0.5
        found = [name for name in tags(record["label"]) if name in self.names]
        ink = float(record["image"].mean()) / 255 if known else np.nan
        record = {**record, "topic": int(record["image"].sum() % 3), "relevance": float(record["label"])}
        record = {**record, "level": str(record["label"] // 2)}
        record = {**record, "grade": GRADES[min(record["label"] // 2, 3)] if known else None}
        return {**record, "tags": found if known else None, "hot": np.ones(3, np.float32), "ink": ink}


def data(split, columns, size=16):
    made, facts = tiny.data(split, size, columns=columns), Facts(getattr(columns.get("tags"), "names", TAGS))
    return dataclasses.replace(made, transforms=(facts, *(t for t in made.transforms if not hasattr(t, "texts"))))


def made(objective=SEVERAL, heads=None, other=TAGS, columns=None, **changes):
    """An experiment on facts; `other` are the names in the order of the validation data."""
    columns = columns or {"tags": Classes(TAGS)}
    named = {**columns, **({"tags": Classes(other)} if "tags" in columns else {})}
    heads = heads or {"tags": Classifier(classes=3)}
    settings = {
        "model": Multimodal(encoders={"image": tiny.vit()}, heads=heads),
        "data": {"train": data("train", columns), "validation": data("validation", named, 96)},
        "tasks": {"facts": Task(objective)},
        "tokenizer": None,
        "evaluate": {},
    }
    return tiny.experiment(**settings | changes)


def looked_at(experiment):
    with use_mesh(MESH):
        return validated(set_up(experiment, Run("nowhere"), MESH))


# Several classes an example.


def test_names_of_several_classes_are_those_of_the_head_in_any_order():
    """The validation data has them in another order and lacks one, of which it then knows nothing."""
    setup = looked_at(made(evaluate={"tags": MultiLabels("tags", "tags")}, other=("small", "even")))
    assert setup.classes == {"tags": TAGS}
    assert "heads.tags: 3 classes, even first and round last" in setup.notes
    assert any(line.startswith("data.validation: its classes are small, even; matched by name") for line in setup.notes)
    dataset, records = setup.datasets["validation"], Digits("validation").build()
    assert dataset.spec()["tags"][0] == (96, 3)
    rows = next(iter(dataset.epoch()))["tags"]
    assert (rows[:, 2] == -1).all() and {*rows[:, 0]} == {-1.0, 0.0, 1.0}
    for row, n in zip(rows, range(96), strict=True):
        if row[0] >= 0:
            assert row[:2].tolist() == [float(name in tags(records[n]["label"])) for name in TAGS[:2]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": {"tags": Classifier(classes=4)}}, "gives logits for 4, and the labels of 'tags' are 3: several classes"),
        (
            {"other": ("even", "big")},
            "data.validation has the class 'big', which is not one of those that heads.tags is trained",
        ),
        ({"columns": {"tags": Class(TAGS)}}, "tags=.* a class is a whole number or a name"),
        (
            {"evaluate": {"report": Report("tags", label="tags")}},
            "evaluate.report: it takes the logits of heads.tags for one class an example, and tasks.facts for several classes "
            "an example: give each a head of its own",
        ),
        (
            {"objective": MultiLabel("tags", "label"), "columns": {"label": Class()}},
            "the labels of 'label' are one an example: several classes an example need one label a logit",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_first_step(changes, said):
    changes = {"evaluate": {"tags": MultiLabels("tags", "tags")}} | changes
    if "columns" in changes:
        changes["evaluate"] = {}
    with pytest.raises(UserError, match=said) as error:
        looked_at(made(**changes))
    assert "\n" not in str(error.value)


def test_an_array_says_which_classes_an_example_has_by_ones():
    experiment = made(MultiLabel("tags", "hot"), columns={"hot": Array("float32")})
    assert looked_at(experiment).datasets["train"].batch(0)["hot"].shape == (16, 3)
    twice = {name: dataclasses.replace(d, transforms=(*d.transforms, Twice())) for name, d in experiment.data.items()}
    with pytest.raises(UserError, match=r"hot=2\.0: give 1 for a class that is there, 0 for one that is not"):
        looked_at(dataclasses.replace(experiment, data=twice))


@dataclasses.dataclass(frozen=True)
class Twice:
    random = False

    def __call__(self, record, rng, records):
        return {**record, "hot": 2 * record["hot"]}


def one_step(objective, mesh, accumulate=1, **changes):
    """The loss and the update of one step."""
    optimizer = SGD(learning_rate=0.1, schedule="constant", clip_norm=0.0, accumulate=accumulate)
    setup, step = tiny.prepared(made(objective, optimizer=optimizer, **changes), mesh)
    state, figures = step(setup.init(), {"train": setup.place(setup.datasets["train"].batch(0))})
    return {"loss": figures["loss"], **figures, "params": tiny.host(state.params)}


def check_same(objective, **changes):
    whole = one_step(objective, tiny.ONE, **changes)
    for mesh, accumulate in ((Mesh(data=8), 1), (tiny.ONE, 2)):
        other = one_step(objective, mesh, accumulate, **changes)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), tiny.host(other), tiny.host(whole))


def test_a_step_is_the_same_on_any_mesh_and_in_micro_batches():
    """Of some examples nothing is known, so the parts of a batch count differently many labels."""
    check_same(MultiLabel("tags", "tags", loss="asymmetric"))


def test_a_mean_and_a_variance_are_learned_the_same_in_micro_batches():
    """The ink of a picture, of which a quarter is not known; the likelihood has an evaluator that needs no word more."""
    heads, columns = {"value": Classifier(classes=2)}, {"ink": Number()}
    objective = Regression(target="ink", loss="gaussian_nll")
    check_same(objective, heads=heads, columns=columns)
    assert looked_at(made(objective, heads, columns=columns, evaluate={"errors": Errors(target="ink")}))
    with pytest.raises(UserError, match="head='value' gives 2 and 'ink' is one an example: a regression needs one logit"):
        looked_at(made(Regression(target="ink"), heads, columns=columns))


# Items of a query.

RANKED = {"columns": {"topic": Array("int32")}, "heads": {"score": Classifier(classes=1)}}


@pytest.mark.parametrize("loss", ["pairwise", "listwise"])
def test_a_step_of_a_ranking_is_the_same_on_any_mesh_and_in_no_micro_batches(loss):
    """Items of a query lie on different devices; micro-batches would tear it apart."""
    objective = Ranking(query="topic", loss=loss, scattered=True)
    whole, split = (one_step(objective, mesh, **RANKED) for mesh in (tiny.ONE, Mesh(data=8)))
    assert whole["train/facts/paired"] > 0.5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), tiny.host(split), tiny.host(whole))
    with pytest.raises(UserError, match=r"accumulate=2 and tasks.facts: Ranking .* micro-batches would change the loss"):
        looked_at(made(objective, optimizer=SGD(accumulate=2), **RANKED))


def test_a_ranking_is_held_against_its_data():
    evaluate = {"ranked": Ranked(query="topic", k=5)}
    assert looked_at(made(Ranking(query="topic", scattered=True), **RANKED, evaluate=evaluate)).notes
    refused = r"tasks.facts: Ranking compares the records of one 'topic', which data.train scatters over its batches: put"
    with pytest.raises(UserError, match=refused):
        looked_at(made(Ranking(query="topic"), **RANKED))
    with pytest.raises(UserError, match=r"tasks.facts needs 'topik' in the batch"):
        looked_at(made(Ranking(query="topik", scattered=True), **RANKED))
    with pytest.raises(UserError, match="head='score' gives 2 logits an item: a ranking needs one"):
        looked_at(made(Ranking(query="topic", scattered=True), {"score": Classifier(classes=2)}, columns=RANKED["columns"]))


def test_weights_are_said_beside_the_names_of_their_classes():
    notes = looked_at(made(MultiLabel("tags", "tags", positive_weights=(2.0, 1.0, 0.5)))).notes
    assert "tasks.facts.positive_weights: even 2, small 1, round 0.5" in notes


# Ordered classes.

LEVELS = {"level": Class(tuple("01234"))}
ORDINAL = Ordinal("grade", "grade", GRADES)
GRADED = {"columns": {"grade": Class(tuple(sorted(GRADES)))}, "heads": {"grade": OrdinalClassifier(classes=4)}}


def test_ordered_classes_are_in_the_order_that_is_said_whatever_the_datas():
    setup = looked_at(made(ORDINAL, **GRADED, evaluate={"grades": Ordinals("grade", "grade")}))
    assert setup.classes == {"grade": GRADES}
    labels = setup.datasets["train"].batch(0)["grade"]
    assert (labels == -1).any() and labels.max() == 3
    grades, digits = labels[labels >= 0], setup.datasets["train"].batch(0)["label"][labels >= 0]
    assert grades.tolist() == np.minimum(digits // 2, 3).tolist()


def test_a_step_of_ordered_classes_is_the_same_on_any_mesh_and_in_micro_batches():
    check_same(ORDINAL, **GRADED)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"objective": Ordinal("grade", "grade")},
            r"tasks.facts: data.train names its classes dire, mild, none, severe, which says nothing of their order: name them "
            r"in order=\(...\)",
        ),
        (
            {"objective": Ordinal("grade", "grade", GRADES[:3])},
            "has the class 'dire', which is not one of those that heads.grade",
        ),
        (
            {"heads": {"grade": Classifier(classes=4)}},
            r"tasks.facts: model.heads.grade gives 4 logits, and its 4 ordered classes need 3: Classifier\(classes=3\) or "
            r"OrdinalClassifier\(classes=4\)",
        ),
        (
            {"evaluate": {"report": Report("grade", label="grade")}},
            "evaluate.report: it takes the logits of heads.grade for one class an example, and tasks.facts for ordered classes",
        ),
        (
            {"columns": LEVELS, "objective": Ordinal("grade", "level"), "heads": {"grade": Classifier(classes=5)}},
            "tasks.facts: model.heads.grade gives 5 logits, and its 5 ordered classes need 4",
        ),
    ],
)
def test_ordered_classes_that_do_not_fit_are_one_line_before_the_first_step(changes, said):
    with pytest.raises(UserError, match=said) as error:
        looked_at(made(**{"objective": ORDINAL, **GRADED, **changes}))
    assert "\n" not in str(error.value)


def test_numbers_that_rise_are_an_order_by_themselves():
    setup = looked_at(made(Ordinal("grade", "level"), {"grade": OrdinalClassifier(classes=5)}, columns=LEVELS))
    assert setup.classes == {"grade": tuple("01234")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("outcomes") / "run"
    evaluate = {"tags": MultiLabels("tags", "tags"), "grades": Ordinals("grade", "grade")}
    tasks = {"facts": Task(SEVERAL), "grade": Task(ORDINAL)}
    rooms = {"heads": {"tags": Classifier(classes=3), **GRADED["heads"]}}
    rooms["columns"] = {"tags": Classes(TAGS), **GRADED["columns"]}
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=5)
    changes = {
        "steps": 120,
        "evaluate": evaluate,
        "evaluate_every": 0,
        "optimizer": optimizer,
        "checkpoint": Checkpoint(every=120),
    }
    train(made(**rooms, tasks=tasks, **changes), path)
    return path


def test_a_run_learns_several_classes_and_answers_with_each_by_itself(run, capsys):
    metrics = json.loads((run / "finished.json").read_text())["metrics"]
    assert metrics["tags/mean_average_precision"] > 0.8 and metrics["tags/f1/even"] > 0.6
    ask, records = mmjax.Predictor(run), Digits("validation").build()
    found = ask.classify([records[n]["image"] for n in range(24)], top_k=0, threshold=0.5, head="tags")
    sums = [sum(one["score"] for one in row) for row in found]
    assert max(sums) > 1.05  # which shares of a softmax never are
    right = np.mean(
        [
            (name in {one["label"] for one in row}) == (name in tags(records[n]["label"]))
            for n, row in enumerate(found)
            for name in TAGS
        ]
    )
    assert right > 0.75
    assert of_run(str(run)).numbers == ("tags", "grade")  # a softmax of such logits teaches nothing
    assert main(["evaluate", str(run), "--evaluate.tags.threshold", "1.5"]) == 2
    assert "threshold=1.5: use a number above 0 and below 1" in capsys.readouterr().err


def test_a_run_answers_with_ordered_classes_as_its_evaluation(run):
    """The first is the evaluator's; the shares are of all classes and sum to 1."""
    metrics = json.loads((run / "finished.json").read_text())["metrics"]
    assert metrics["grades/quadratic_weighted_kappa"] > 0.5 and metrics["grades/mean_absolute_error"] < 1
    ask, records = mmjax.Predictor(run), Digits("validation").build()
    images = [records[n]["image"] for n in range(len(records))]
    found = ask.classify(images, top_k=0, head="grade")
    assert all(sum(one["score"] for one in row) == pytest.approx(1, abs=1e-5) and len(row) == 4 for row in found)
    known = [n for n, image in enumerate(images) if image.sum() % 4 > 0.5]
    right = [found[n][0]["label"] == GRADES[min(records[n]["label"] // 2, 3)] for n in known]
    assert np.mean(right) == pytest.approx(metrics["grades/accuracy"], abs=1e-6)


def test_a_head_is_trained_on_classes_or_on_numbers():
    use = Use("value", "train", "label", "tasks.kind", True)
    with pytest.raises(UserError, match=r"heads.value for one class an example, and another task trains them on numbers"):
        check_outcomes([use], {"value": None})
    check_outcomes([use], {"other": None})
