"""Batches of texts of like lengths: the losses are those of the padded texts, and a run of several programs is one run."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import tiny

import mmjax
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.data import Buckets, Manifest
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.models.multimodal import init_params
from mmjax.plan.batches import batch_shapes
from mmjax.train import Checkpoint, train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.metrics import read_lines
from mmjax.train.setup import set_up
from mmjax.train.speed import Speed
from mmjax.train.teacher import Known, Teacher
from mmjax.train.text_rows import check_buckets
from mmjax.train.validate import validated

pytestmark = pytest.mark.usefixtures("single")
FLAGS = "--data.train.packing buckets --data.train.packing.lengths 8 --data.train.packing.window 3"
SPEC = Buckets((8,), window=3)
MODEL = Multimodal(
    encoders={"text": TextTransformer(**tiny.TEXT, **tiny.SIZE)}, heads={"classes": Classifier(classes=10, input="text")}
)


def made(packing=SPEC, **changes):
    chosen = {"model": MODEL, "data": {"train": tiny.data(packing=packing)}, "tasks": tiny.tasks("classify"), "evaluate": {}}
    return tiny.experiment(**{**chosen, "steps": 5, "checkpoint": Checkpoint(every=5), "test_data": "", **changes})


@pytest.fixture(scope="module")
def setup():
    mesh = tiny.ONE.build(jax.devices()[:1])
    return validated(set_up(made(), None, mesh))


def test_every_loss_is_that_of_the_same_records_padded(setup):
    """Of texts, with and without an image to look at; the padded rows are made without buckets."""
    bucketed = setup.datasets["train"]
    plain = tiny.data().build(setup.tokenizer, setup.experiment.seed, "train")
    step = next(step for step in range(9) if bucketed.batch(step)["text"].shape[1] == 8)
    given, places = bucketed.batch(step), bucketed._stream(16, None, once=False).drawn(step)[1]
    rows = [{key: x[place % 16] for key, x in plain.batch(place // 16).items()} for place in places]
    padded = {key: np.stack([row[key] for row in rows]) for key in given} | {"index": given["index"]}
    assert padded["text"].shape == (16, 12) and given["text_mask"].sum() == padded["text_mask"].sum()
    whole = tiny.model()
    heads = {"classes": Classifier(classes=10, input="text"), "masked_lm": whole.heads["masked_lm"]}
    model = whole.copy(fusions={"cross": whole.fusions["cross"]}, heads=heads)
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    objectives = {name: tiny.OBJECTIVES[name] for name in ("classify", "masked_lm", "caption")}

    @jax.jit
    def losses(batch):
        forward = BoundForward(model, params, batch)
        return {name: one(forward, batch, jax.random.key(1)) for name, one in objectives.items()}

    short, long = losses(given), losses(padded)
    for name in objectives:
        assert short[name].count == long[name].count > 0, name
        np.testing.assert_allclose(short[name].sum, long[name].sum, rtol=1e-5, err_msg=name)


def test_a_run_of_two_programs_goes_on_inside_a_window(tmp_path, capsys):
    """It ends as a session that was never stopped, which is set up by flags."""
    train(made(steps=4), tmp_path)  # windows end after steps 3 and 6
    said = "".join(capsys.readouterr())
    assert "data.train: batches of shorter texts have text 8 (packing.lengths)" in said and "2 programs compiled in" in said
    told = re.search(r"data.train: 64 texts in batches of 8 or 12 tokens: ([\d.]+)% is padding, and would be ([\d.]+)%", said)
    assert float(told[1]) < float(told[2])
    train(made(), tmp_path)
    assert "going on from step 4" in "".join(capsys.readouterr())
    lines, lengths = read_lines(tmp_path / "metrics.jsonl"), set()
    with mmjax.set_up(made(packing=None), FLAGS) as session:
        for line in lines[:5]:
            lengths.add(session.batch()["train"]["text"].shape[1])
            figures = session.step()
            assert figures == {name: line[name] for name in figures}
    assert lengths == {8, 12} and [line["step"] for line in lines[:5]] == [1, 2, 3, 4, 5]
    kept = Checkpoints(tmp_path / "checkpoints", Checkpoint(), read_only=True)
    tiny.assert_identical(tiny.host(session.state.params), kept.params(5)[0])


def test_flops_are_those_of_the_lengths_that_came(setup):
    group = ("train",)
    assert setup.kinds(group) == [(group, (8,)), (group, (12,))]
    shorter = dataclasses.replace(tiny.data(), max_length=8)
    alone = set_up(made(data={"train": shorter}), None, setup.mesh)
    assert setup.step_flops(group, (8,)) == alone.step_flops(group) < setup.step_flops(group, (12,))
    assert setup.step_flops(group) == setup.step_flops(group, (12,)) == setup.flops[group]
    speed = Speed({(group, (8,)): 10, (group, (12,)): 40}, jax.devices())
    for length in (8, 12, 12):
        speed.tick((group, (length,)), 16)
    figures = speed.figures()
    assert figures["model_flops_per_second"] / figures["steps_per_second"] == pytest.approx(30)


def test_several_streams_have_a_step_for_all_their_lengths_together(setup):
    other = dataclasses.replace(tiny.data("validation", 8), packing=Buckets((6, 9)))
    datasets = {
        **setup.datasets,
        "other": other.build(setup.tokenizer, 0, "other"),
        "plain": tiny.data("validation", 96).build(setup.tokenizer, 0),
    }
    several = dataclasses.replace(setup, datasets=datasets)
    group = ("train", "other", "plain")
    lengths = [(8, 6, 0), (8, 9, 0), (8, 12, 0), (12, 6, 0), (12, 9, 0), (12, 12, 0)]
    assert several.kinds(group) == [(group, one) for one in lengths]
    shapes = several.batch_shapes(group, (8, 9, 0))
    assert [shapes[name]["text"].shape for name in group] == [(16, 8), (8, 9), (96, 12)]
    assert [shape["text_mask"].shape[1] for shape in several.batch_shapes(group).values()] == [12, 12, 12]
    batches = {"train": {"text": np.zeros((16, 8))}, "other": {"text": np.zeros((8, 12))}, "plain": {}}
    assert several.kind_of(batches) == (group, (8, 12, 0))


def test_a_plan_is_of_the_longest_texts_and_says_so():
    assert from_json(json.loads(json.dumps(to_json(made())))) == made()
    shapes, said = batch_shapes(made())
    assert shapes["train"]["text"][0] == (16, 12)
    assert said == "the data; data.train with the longest texts of its buckets in every step"
    absent = dataclasses.replace(tiny.data(packing=SPEC), source=Manifest("no/such/list.jsonl"))
    shapes, said = batch_shapes(made(data={"train": absent}))
    assert shapes["train"]["text"][0] == (16, 12) and "text_lengths" not in shapes["train"]
    assert said.startswith("the model (data.train is not at hand") and said.endswith("of its buckets in every step")


@pytest.mark.parametrize("place", ["encoder", "context"])
def test_a_part_that_counts_padding_is_refused(setup, place):
    whole, tasks = tiny.model(), tiny.tasks("caption")
    if place == "encoder":
        text = whole.encoders["text"].copy(mask_padding=False)
        model, said = whole.copy(encoders={**whole.encoders, "text": text}), "model.encoders.text.mask_padding=False reads"
    else:
        caption = whole.decoders["caption"].copy(context=("cross",), mask_context=False)
        model, said = whole.copy(decoders={"caption": caption}), "model.decoders.caption.mask_context=False attends to the pad"
    with pytest.raises(UserError, match=rf"^data.train.packing: {said}") as found:
        set_up(made(model=model, tasks=tasks), None, setup.mesh)
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match="data.train.packing: teachers.old." + said.removeprefix("model.")):
        asking = made(teachers={"old": Teacher("anywhere", inputs={"text": "text"})})
        check_buckets(asking, setup.datasets, {"old": Known(model)})
    check_buckets(made(teachers={"old": Teacher("anywhere", inputs={"text": "title"})}), setup.datasets, {"old": Known(MODEL)})
    set_up(made(packing=None, model=model, tasks=tasks), None, setup.mesh)
