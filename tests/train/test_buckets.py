"""Batches of texts of like lengths: the losses are those of the padded texts, and a run of several programs is one run."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import tiny

import mmjax
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Buckets
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.models.multimodal import init_params
from mmjax.objectives import Classification
from mmjax.plan.batches import batch_shapes
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.metrics import read_lines
from mmjax.train.setup import set_up
from mmjax.train.speed import Speed
from mmjax.train.validate import validated

pytestmark = pytest.mark.usefixtures("single")
SPEC = Buckets((8,), window=3)
SPEED = re.compile(r".*_per_second$|model_flops_used$")  # figures of the clock


def made(packing=SPEC, **changes):
    data = {"train": tiny.data(packing=packing), "validation": tiny.data("validation", 96)}
    return tiny.experiment(**{"data": data, "steps": 5, "evaluate": {}, "test_data": ""} | changes)


@pytest.fixture(scope="module")
def setup():
    mesh = tiny.ONE.build(jax.devices()[:1])
    return validated(set_up(made(), None, mesh))


def test_every_loss_is_that_of_the_same_records_padded(setup):
    """The images and texts of four objectives, and classes of the texts; the padded rows are made without buckets."""
    bucketed = setup.datasets["train"]
    plain = tiny.data().build(setup.tokenizer, setup.experiment.seed, "train")
    step = next(step for step in range(9) if bucketed.batch(step)["text"].shape[1] == 8)
    given, places = bucketed.batch(step), bucketed._stream(16, None, once=False).drawn(step)[1]
    rows = [{key: x[place % 16] for key, x in plain.batch(place // 16).items()} for place in places]
    padded = {key: np.stack([row[key] for row in rows]) for key in given} | {"index": given["index"]}
    assert padded["text"].shape == (16, 12) and given["text_mask"].sum() == padded["text_mask"].sum()
    whole = tiny.model()
    model = whole.copy(heads={**whole.heads, "words": Classifier(classes=10, input="text")})
    params = init_params(model, jax.random.key(0))
    objectives = {name: tiny.OBJECTIVES[name] for name in tiny.FOUR} | {"words": Classification(head="words")}

    @jax.jit
    def losses(batch):
        forward = BoundForward(model, params, batch)
        return {name: one(forward, batch, jax.random.key(1)) for name, one in objectives.items()}

    short, long = losses(given), losses(padded)
    for name in objectives:
        assert short[name].count == long[name].count > 0, name
        np.testing.assert_allclose(short[name].sum, long[name].sum, rtol=1e-5, err_msg=name)


def test_a_run_of_two_programs_goes_on_inside_a_window(tmp_path, capsys):
    flags = ["--data.train.packing", "buckets", "--data.train.packing.lengths", "8", "--data.train.packing.window", "3"]
    words = ["train", tiny.__file__, *flags, "--evaluate_every", "0", "--checkpoint.every", "1"]
    assert main([*words, "--steps", "5", "--workdir", str(tmp_path / "whole")]) in (0, None)
    said = "".join(capsys.readouterr())
    assert "data.train: batches of shorter texts have text 8 (packing.lengths)" in said and "2 programs compiled in" in said
    told = re.search(
        r"data.train: 80 texts in batches of 8 or 12 tokens: ([\d.]+)% is padding, and would be ([\d.]+)% of", said
    )
    assert float(told[1]) < float(told[2])
    for steps in ("2", "4", "5"):  # windows end after steps 3 and 6
        assert main([*words, "--steps", steps, "--workdir", str(tmp_path / "broken")]) in (0, None)
    lines = {}
    for name in ("whole", "broken"):
        lines[name] = [
            {k: v for k, v in x.items() if not SPEED.match(k)} for x in read_lines(tmp_path / name / "metrics.jsonl")
        ]
    own = [{k: v for k, v in line.items() if k.startswith(("step", "loss", "gradient"))} for line in lines["broken"]]
    whole = [{k: v for k, v in line.items() if k.startswith(("step", "loss", "gradient"))} for line in lines["whole"]]
    assert [line for line in own if len(line) > 1] == [line for line in whole if len(line) > 1]
    last = [
        Checkpoints(tmp_path / n / "checkpoints", made().checkpoint, read_only=True).params(5)[0] for n in ("whole", "broken")
    ]
    tiny.assert_identical(*last)


def test_a_session_steps_as_a_run_whatever_comes(setup):
    with mmjax.set_up(made(steps=3)) as session:
        lengths = []
        for step in range(3):
            lengths.append(session.batch()["train"]["text"].shape[1])
            assert np.isfinite(session.step()["loss"])
            assert session.step_number == step + 1
    assert set(lengths) == {8, 12} == {length for _, (length,) in session._compiled}


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
    datasets = {**setup.datasets, "other": other.build(setup.tokenizer, 0, "other"), "plain": setup.datasets["validation"]}
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
    shapes, said = batch_shapes(made())
    assert shapes["train"]["text"][0] == (16, 12)
    assert said == "the data; data.train with the longest texts of its buckets in every step"
    absent = dataclasses.replace(tiny.data(packing=SPEC), source=mmjax.data.Manifest("no/such/list.jsonl"))
    shapes, said = batch_shapes(made(data={"train": absent}))
    assert shapes["train"]["text"][0] == (16, 12) and "text_lengths" not in shapes["train"]
    assert said.startswith("the model (data.train is not at hand") and said.endswith("of its buckets in every step")


@pytest.mark.parametrize("place", ["encoder", "context"])
def test_a_part_that_counts_padding_is_refused(setup, place):
    whole = tiny.model()
    if place == "encoder":
        text = whole.encoders["text"].copy(mask_padding=False)
        model, said = whole.copy(encoders={**whole.encoders, "text": text}), "model.encoders.text.mask_padding=False reads"
    else:
        caption = whole.decoders["caption"].copy(context=("cross",), mask_context=False)
        model, said = whole.copy(decoders={"caption": caption}), "model.decoders.caption.mask_context=False attends to the pad"
    with pytest.raises(UserError, match=rf"^data.train.packing: {said}") as found:
        set_up(made(model=model), None, setup.mesh)
    assert "\n" not in str(found.value)
    set_up(made(packing=None, model=model), None, setup.mesh)
