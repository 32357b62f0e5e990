import dataclasses

from plan_tiny import LENGTH, experiment

from mmjax.data import Digits, Normalise
from mmjax.plan.batches import Shapes, batch_shapes, from_model, resized, with_batch_per_chip
from mmjax.train import Task


def test_without_data_shapes_come_from_the_model_and_the_report_says_so():
    shapes, said = batch_shapes(experiment(batch_size=8))
    assert shapes == {
        "train": {
            "image": ((8, 32, 32, 3), "float32"),
            "text": ((8, LENGTH), "int32"),
            "text_mask": ((8, LENGTH), "bool"),
            "group": ((8,), "int32"),
            "index": ((8,), "int32"),
        }
    }
    assert said.startswith("the model (data.train is not at hand: ")
    assert "no/such/captions.jsonl" in said


def test_with_data_they_are_those_of_its_batches():
    made = experiment(batch_size=8)
    train = dataclasses.replace(made.data["train"], source=Digits("train"), transforms=(Normalise((0.5,) * 3, (0.5,) * 3),))
    made = dataclasses.replace(made, data={**made.data, "train": train})
    shapes, said = batch_shapes(made)
    built = train.build(made.tokenizer.train(["some words"]), 0)
    assert said == "the data"
    assert Shapes(shapes["train"]).train_spec() == built.spec()


def test_labels_that_an_objective_reads_are_there():
    class Reader:
        needs = ("text", "text_segments", "next", "label")

    spec = from_model(dataclasses.replace(experiment(), tasks={"own": Task(Reader())}), "train")
    assert set(spec) == {"text", "text_mask", "text_segments", "next", "label", "group", "index"}


def test_a_batch_per_chip_changes_the_batches_of_tasks_alone():
    made = with_batch_per_chip(experiment(batch_size=8), chips=16, examples=4)
    assert made.data["train"].batch_size == 64
    assert made.data["test"].batch_size == 6
    shapes = resized(batch_shapes(experiment(batch_size=8))[0], {"train": 64})
    assert shapes == batch_shapes(made)[0]
