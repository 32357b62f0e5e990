"""Every mistake in an experiment is one line that names the field, what was found and what would be right."""

import dataclasses
import json

import pytest
import tiny

from mmjax.core.config import differences, from_json, leaves, to_json
from mmjax.core.errors import UserError
from mmjax.data import Data, Digits
from mmjax.evaluate import ZeroShot
from mmjax.parallel.mesh import Mesh
from mmjax.train import AdamW, Checkpoint, Log, Task
from mmjax.train.run import Run
from mmjax.train.setup import set_up

BEST = Checkpoint(best="prompted/accuracy")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": {}}, ["tasks is empty"]),
        ({"steps": 0}, ["steps=0", "1 or more"]),
        ({"tasks": tiny.tasks("classify", data="trian")}, ["tasks.classify.data='trian'", "did you mean 'train'?"]),
        ({"evaluate": {"prompted": ZeroShot(data="tets")}}, ["evaluate.prompted.data='tets'", "did you mean 'test'?"]),
        ({"alternate": ("train", "other")}, ["alternate='other'", "train, validation, test"]),
        ({"alternate": ("test",)}, ["alternate leaves out train"]),
        (
            {"tasks": tiny.tasks("matching"), "optimizer": AdamW(accumulate=2)},
            ["accumulate=2", "tasks.matching", "Matching", "negatives", "accumulate=1"],
        ),
        ({"checkpoint": Checkpoint(best="zero/accuracy")}, ["checkpoint.best='zero/accuracy'", "prompted"]),
        ({"checkpoint": BEST}, ["checkpoint.best needs evaluate_every"]),
    ],
)
def test_check_names_the_field_the_value_and_what_is_right(changes, words):
    with pytest.raises(UserError) as caught:
        tiny.experiment(**changes).check()
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Checkpoint(every=0), "checkpoint.every=0"),
        (lambda: Checkpoint(keep=0), "checkpoint.keep=0"),
        (lambda: Checkpoint(best="a/b", mode="highest"), "checkpoint.mode='highest': use max or min"),
        (lambda: Checkpoint(patience=3), "checkpoint.patience needs checkpoint.best"),
        (lambda: Log(every=0), "log.every=0"),
        (lambda: AdamW(schedule="cosin"), "optimizer.schedule='cosin': use one of constant, cosine,"),
        (lambda: AdamW(on_bad_step="halt"), "optimizer.on_bad_step='halt': use stop or skip"),
        (lambda: AdamW(accumulate=0), "optimizer.accumulate=0"),
        (lambda: AdamW(ema=1.0), "optimizer.ema=1.0"),
    ],
)
def test_specs_refuse_values_out_of_range(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)


def test_the_experiments_of_the_tests_pass():
    for made in (tiny.experiment(), tiny.four(), tiny.experiment(checkpoint=BEST, evaluate_every=2)):
        made.check()
        made.check_batches(8)


def test_check_batches_names_the_data_and_the_devices():
    one = tiny.experiment(tasks=tiny.tasks("classify"), optimizer=AdamW(accumulate=4))
    one.check_batches(4)
    with pytest.raises(UserError, match=r"data.train.batch_size=16 does not divide over 3 devices x accumulate=4"):
        one.check_batches(3)
    with pytest.raises(UserError, match=r"data.train.batch_size=16 does not divide over 3 devices \(the mesh's data x fsdp\)"):
        tiny.experiment().check_batches(3)
    with pytest.raises(UserError, match=r"data.test.batch_size=12 does not divide over 8 devices"):
        tiny.experiment(data={"train": tiny.data(), "test": tiny.data("test", 12)}).check_batches(8)


def test_groups_are_one_mixed_step_or_a_cycle():
    both = {**tiny.tasks("contrastive"), **tiny.tasks("classify", data="test")}
    assert tiny.experiment(tasks=both).groups() == (("train", "test"),)
    assert tiny.experiment(tasks=both, alternate=("test", "train", "test")).groups() == (("test",), ("train",), ("test",))


@pytest.mark.parametrize("make", [tiny.experiment, tiny.four])
def test_json_round_trip(make):
    written = make(checkpoint=BEST, evaluate_every=5, mesh=Mesh(fsdp=2), init_fresh=("heads_*",))
    read = from_json(json.loads(json.dumps(to_json(written))))
    assert type(read) is type(written)
    assert to_json(read) == to_json(written)
    assert leaves(read) == leaves(written)
    assert differences(written, read) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": tiny.small_model(heads=1)}, ["model.encoders.image.heads=1", "mesh.tensor=2"]),
        ({"optimizer": AdamW(freeze=("encoder_image/*",))}, ["optimizer.freeze: 'encoder_image/*'", "matches no parameter"]),
        ({"optimizer": AdamW(rates={"head/*": 0.1})}, ["optimizer.rates: 'head/*'", "matches no parameter"]),
        ({"data": {"train": Data(Digits("trial"))}, "evaluate": {}}, ["trial", "train"]),
    ],
)
def test_set_up_checks_the_experiment_against_model_mesh_and_data(changes, words):
    mesh = Mesh(fsdp=4, tensor=2, data=1).build()
    with pytest.raises(UserError) as caught:
        set_up(tiny.experiment(**changes), Run("nowhere"), mesh)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_set_up_checks_the_vocabulary_and_the_mask():
    masked = tiny.OBJECTIVES["masked_lm"]
    mesh = Mesh().build()
    wrong = tiny.four(tasks={"masked_lm": Task(dataclasses.replace(masked, mask_id=5))})
    with pytest.raises(UserError, match=r"tasks.masked_lm.objective.mask_id=5, and the tokenizer's is 4"):
        set_up(wrong, Run("nowhere"), mesh)
    tokenizer = dataclasses.replace(tiny.four().tokenizer, vocab_size=100)
    with pytest.raises(UserError, match=r"model.encoders.text.vocab_size=64 is smaller than the tokenizer's vocabulary of \d+"):
        set_up(tiny.four(tokenizer=tokenizer), Run("nowhere"), mesh)


def test_a_batch_without_what_an_objective_needs_is_named():
    without_text = dataclasses.replace(tiny.data(), transforms=tiny.data().transforms[:1])
    mesh = Mesh().build()
    setup = set_up(tiny.experiment(data={"train": without_text}, evaluate={}, tokenizer=None), Run("nowhere"), mesh)
    with pytest.raises(UserError, match=r"tasks.contrastive needs 'text' in the batch, and data.train gives image, label"):
        setup.compile_step(("train",))
