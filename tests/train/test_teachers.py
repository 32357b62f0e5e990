"""A student beside its teachers: what a step makes of them, how they are kept, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.data import Class, Data, Digits, Normalise, Resize
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.nn.augment import ImageAugment
from mmjax.objectives import Classification, DistilLogits, DistilTokens
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, Checkpoint, Experiment, Log, Task, Teacher, train
from mmjax.train.evaluate import evaluate_run
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.step import accumulated
from mmjax.train.validate import validated

MEAN, SPREAD = (0.3,) * 3, (0.35,) * 3


def data(split="train", mean=MEAN, **changes):
    return Data(Digits(split), (Normalise(mean, SPREAD),), batch_size=16 if split == "train" else 96, threads=0, **changes)


def experiment(width=16, teachers=None, tasks=None, **changes):
    heads = {"classes": Classifier(classes=10, input="image"), "project": TokenClassifier(16, input="image", transform=False)}
    model = Multimodal(encoders={"image": tiny.vit(width=width)}, heads=heads if teachers else {"classes": heads["classes"]})
    base = Experiment(
        model=model,
        data={"train": data(), "validation": data("validation")},
        tasks=tasks or {"classes": Task(Classification())},
        optimizer=SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0),
        steps=4,
        evaluate={"report": Report()},
        checkpoint=Checkpoint(every=2),
        log=Log(every=1, tensorboard=False, progress=False),
        teachers=teachers or {},
    )
    return dataclasses.replace(base, **changes)


TASKS = {"classes": Task(Classification()), "logits": Task(DistilLogits()), "tokens": Task(DistilTokens())}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(experiment(steps=2, seed=3), folder)
    return folder


def student(teacher, tasks=TASKS, dtype="float32", inputs=None, **changes):
    return experiment(8, {"teacher": Teacher(str(teacher), dtype, inputs or {})}, tasks, **changes)


def made(e, mesh=tiny.ONE, run=None):
    built = mesh.build(jax.devices()[: 1 if mesh == tiny.ONE else 8])
    with tiny.use_mesh(built):
        return validated(set_up(e, run, built))


def stepped(e, mesh=tiny.ONE, steps=2):
    """The state and the figures after some steps."""
    setup = made(e, mesh)
    with tiny.use_mesh(setup.mesh):
        state, step = setup.init(), setup.compile_step(("train",))[0]
        for number in range(steps):
            batch = {"train": setup.place(setup.datasets["train"].batch(number))}
            state, figures = step(state, batch)
        return tiny.host(state), tiny.host(figures)


def test_a_step_leaves_the_teacher_as_it_was_and_it_is_what_its_run_answers(teacher):
    setup = made(student(teacher))
    assert not any("classes of teachers" in note for note in setup.notes)  # a head that projects has none
    begun = tiny.host(setup.init().variables["teachers"]["teacher"])
    after, figures = stepped(student(teacher))
    tiny.assert_identical(after.variables["teachers"]["teacher"], begun)
    batch = setup.datasets["train"].batch(0)
    params, _ = tiny_params(teacher)
    forward = BoundForward(setup.experiment.model, tiny.host(setup.init().params), batch, teachers=taught(setup, begun))
    own = BoundForward(Run(teacher).experiment().model, params, batch)
    np.testing.assert_allclose(forward.teacher("teacher").head("classes"), own.head("classes"), atol=1e-6)
    assert np.isfinite(figures["loss/logits"]) and figures["loss/tokens"] > 0


def tiny_params(folder):
    from mmjax.convert import load

    model, params = load(folder)
    return params, model


def taught(setup, params):
    return {"teacher": (setup.teachings["teacher"], params)}


def test_two_objectives_on_one_teacher_run_it_once_also_in_micro_batches(teacher):
    setup = made(student(teacher))
    e, variables = setup.experiment, setup.init().variables
    batch = {key: jnp.asarray(x) for key, x in setup.datasets["train"].batch(0).items()}
    alone = setup.teachings["teacher"].model
    once = count_flops(lambda p: BoundForward(alone, p, batch).head("classes"), variables["teachers"]["teacher"])

    def flops(tasks, parts):
        params = setup.init().params

        def loss(p):
            args = (jax.random.key(0), parts, variables, setup.teachings)
            return sum(loss.sum for loss in accumulated(e.model, tasks, p, {"train": batch}, *args)[0].values())

        return count_flops(jax.grad(loss), params)

    def of(*names):
        return {name: TASKS[name] for name in names}

    without = count_flops(lambda p: BoundForward(e.model, p, batch).head("project"), setup.init().params)
    own_head = 3 * (
        without - count_flops(lambda p: BoundForward(e.model, p, batch).encode("image").embeddings, setup.init().params)
    )
    assert flops(of("classes", "logits"), 1) - flops(of("classes"), 1) == once
    both = flops(of("classes", "logits", "tokens"), 1) - flops(of("classes", "logits"), 1)
    assert both == own_head  # the student's projection, and nothing of the teacher's
    assert flops(of("classes", "logits"), 4) - flops(of("classes"), 4) == once


@pytest.mark.parametrize("mesh", [Mesh(data=8), Mesh(data=2, fsdp=2, tensor=2)], ids=["data", "data.fsdp.tensor"])
def test_the_loss_is_that_of_one_device(teacher, mesh):
    (alone, figures), (spread, same) = stepped(student(teacher)), stepped(student(teacher), mesh)
    for name in ("loss", "loss/logits", "loss/tokens", "train/logits/agreement"):
        np.testing.assert_allclose(same[name], figures[name], rtol=2e-5)
    for x, y in zip(jax.tree.leaves(spread.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6)


def test_the_loss_in_micro_batches_is_that_of_the_batch(teacher):
    parts = SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0, accumulate=4)
    (whole, figures), (split, same) = stepped(student(teacher)), stepped(student(teacher, optimizer=parts))
    np.testing.assert_allclose(same["loss"], figures["loss"], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(split.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_it_is_kept_in_bfloat16_but_for_norms_and_shared_out(teacher):
    setup = made(student(teacher, dtype="bfloat16"), Mesh(data=2, fsdp=2, tensor=2))
    kept = setup.init().variables["teachers"]["teacher"]
    kernel = kept["encoders_image"]["stack"]["layers"]["attention"]["q"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor", None)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(kept)}
    assert dtypes == {"bfloat16", "float32"}


def test_it_sees_what_the_student_sees(teacher):
    """Augmented alike, and normalised as it was trained."""
    e = student(teacher, data={"train": data(mean=(0.5,) * 3), "validation": data("validation", (0.5,) * 3)})
    e = dataclasses.replace(e, model=e.model.copy(augment={"image": ImageAugment(flip=0.5, noise=0.1)}))
    setup = made(e)
    assert any("normalised by mean (0.3, 0.3, 0.3)" in note for note in setup.notes)
    batch = {key: jnp.asarray(x) for key, x in setup.datasets["train"].batch(0).items()}
    params = setup.init()
    forward = BoundForward(
        e.model, params.params, batch, jax.random.key(1), teachers=taught(setup, params.variables["teachers"]["teacher"])
    )
    theirs = forward.teacher("teacher").batch["image"]
    seen = (np.asarray(forward.view("image")) * 0.35 + 0.5 - 0.3) / 0.35
    np.testing.assert_allclose(theirs, seen, atol=1e-5)
    assert np.abs(seen - (np.asarray(batch["image"]) * 0.35 + 0.2) / 0.35).max() > 0.1


def test_a_run_goes_on_bit_for_bit_without_the_teachers_folder_and_writes_it_once(teacher, tmp_path, single):
    shutil.copytree(teacher, tmp_path / "teacher")
    e = student(tmp_path / "teacher", steps=4)
    train(e, tmp_path / "whole")
    train(dataclasses.replace(e, steps=2), tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    train(e, tmp_path / "moved")
    states = []
    for name in ("whole", "moved"):
        run = Run(tmp_path / name)
        from mmjax.train.checkpoint import Checkpoints

        setup = made(e, run=run)
        states.append(tiny.host(Checkpoints(run.checkpoints, e.checkpoint, read_only=True).restore(setup.abstract)[0]))
        assert len(list((run.checkpoints / "frozen").iterdir())) == 1
    tiny.assert_identical(*states)
    assert "teachers" in states[0].variables
    with pytest.raises(UserError, match=r"teachers\.teacher: path=.*no config.json"):
        train(e, tmp_path / "new")
    metrics = evaluate_run(tmp_path / "moved")
    assert metrics["step"] == 4
    assert main(["predict", str(tmp_path / "moved"), "--help"]) == 0


WRONG = {
    "no such teacher": (
        lambda t: student(t, {"logits": Task(DistilLogits("tutor"))}),
        r"tasks\.logits\.objective\.teacher='tutor'",
    ),
    "no run": (lambda t: student(t / "no"), r"teachers\.teacher: path='.*no': there is no config\.json"),
    "images of another size": (
        lambda t: student(
            t, data={"train": dataclasses.replace(data(), transforms=(Resize((16, 16)), Normalise(MEAN, SPREAD)))}, evaluate={}
        ),
        r"teachers\.teacher: it reads 'image' of 8x8, and 'image' of data\.train is 16x16",
    ),
    "other tokens": (
        lambda t: finer(student(t)),
        r"model\.heads\.project reads 16 tokens.*teachers\.teacher gives 4",
    ),
    "other width": (lambda t: wider(student(t)), r"model\.heads\.project\.classes=12: teachers\.teacher is 16 wide"),
    "no head": (lambda t: student(t, {"logits": Task(DistilLogits(teacher_head="kinds"))}), r"there is no 'kinds'"),
    "other inputs": (lambda t: student(t, inputs={"image": "large"}), r"teachers\.teacher: inputs=.*no 'large'"),
    "inputs by another name": (
        lambda t: student(t, inputs={"img": "image"}),
        r"teachers\.teacher: inputs=\{'img': 'image'\}: it reads no 'img'.*, but image",
    ),
    "other number of classes": (
        lambda t: more_classes(student(t, {"logits": Task(DistilLogits())}, evaluate={})),
        r"model\.heads\.classes has 11 classes, and teachers\.teacher has 10",
    ),
}


def finer(e):
    return dataclasses.replace(e, model=e.model.copy(encoders={"image": tiny.vit(width=8).copy(patch=(2, 2))}))


def wider(e):
    return dataclasses.replace(e, model=e.model.copy(heads={**e.model.heads, "project": TokenClassifier(12, input="image")}))


def more_classes(e):
    return dataclasses.replace(e, model=e.model.copy(heads={"classes": Classifier(classes=11, input="image")}))


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_name(name, teacher):
    wrong, said = WRONG[name]
    with pytest.raises(UserError, match=said):
        made(wrong(teacher))


def test_classes_are_those_of_the_teacher_by_name(teacher, tmp_path):
    """Data of classes in another order is numbered as the teacher has them; a class that it does not know is refused."""
    names = tuple(reversed(Digits().build().classes))
    columns = {"label": Class(names)}
    shuffled = {"train": data(columns=columns), "validation": data("validation", columns=columns)}
    setup = made(student(teacher, data=shuffled))
    assert setup.classes["classes"] == tuple(Digits().build().classes)
    plain = data().build(None, 0, "train").batch(0)
    np.testing.assert_array_equal(setup.datasets["train"].batch(0)["label"], plain["label"])
    copy = tmp_path / "other"
    shutil.copytree(teacher, copy)
    (copy / "classes.json").write_text(json.dumps({"classes": ["nil", *Digits().build().classes[1:]]}))
    with pytest.raises(UserError, match=r"tasks\.logits: teachers\.teacher does not know the class 'zero' of data\.train"):
        made(student(copy))


def test_a_wrong_teacher_on_the_command_line_is_one_line_and_status_2(tmp_path, capfd):
    assert main(["train", "distil_digits", "--workdir", str(tmp_path / "run"), "--teachers.teacher.path", str(tmp_path)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
