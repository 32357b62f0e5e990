"""A run with prompts and prefixes: nothing else is trained, it is as exact as any other, and is merged into nothing."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

import mmjax
from mmjax.adapt import LoRA, Prefix, Prompt
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, AdamW, Checkpoint, train
from mmjax.train.config_file import apply_flags
from mmjax.train.evaluate import evaluate_run
from mmjax.train.run import Run
from mmjax.train.setup import set_up

ADAPT = {
    "encoders_text/*": Prompt(n=2, after=1),
    "encoders_image/*": Prompt(n=3, init="uniform", deep=True),
    "decoders_caption/words/*": Prompt(n=2, init="words"),
    "decoders_caption/stack/*": Prefix(n=2),
    "fusions_cross/*": Prefix(n=3),
}
MOVED = ("prompt_tokens", "prompt_layers", "prefix_keys", "prefix_values")
OPTIMIZER = SGD(learning_rate=0.3, schedule="constant", momentum=0.9)


def model():
    """With places for four virtual tokens more than a text has."""
    own = tiny.model()
    longer = {"max_length": tiny.LENGTH + 4}
    return own.copy(
        encoders={**own.encoders, "text": own.encoders["text"].copy(**longer)},
        decoders={"caption": own.decoders["caption"].copy(**longer)},
    )


def made(**changes):
    return tiny.four(**{"model": model(), "adapt": ADAPT, "optimizer": OPTIMIZER, "evaluate": {}} | changes)


@pytest.fixture(scope="module")
def trained():
    return tiny.states(made(), 4)


def test_only_virtual_tokens_and_prefixes_are_trained_and_all_of_them(trained):
    first, last, losses = trained
    before, after = leaves_by_path(first.params), leaves_by_path(last.params)
    changed = {path for path in before if not (before[path] == after[path]).all()}
    assert changed == {path for path in before if path.split("/")[-1] in MOVED} and len(changed) == 7
    assert losses[-1] < losses[0]
    assert {path for path in leaves_by_path(last.optimizer) if "stack" in path and not path.endswith(MOVED)} == set()
    plain = leaves_by_path(tiny.states(made(adapt={}), 0)[0].params)
    assert all((plain[path] == before[path]).all() for path in plain)  # the base begins as it would without


LONG = pytest.param(Mesh(sequence=2, data=-1), marks=pytest.mark.slow)


@pytest.mark.parametrize("mesh", [Mesh(data=2, fsdp=2, tensor=2), LONG], ids=str)
def test_losses_are_the_same_on_every_mesh(mesh, trained):
    np.testing.assert_allclose(tiny.states(made(), 4, mesh)[2], trained[2], rtol=2e-5)


def test_the_plan_counts_virtual_tokens_and_no_gradient_of_what_is_frozen():
    wide = tiny.small_model(depth=3, width=64)
    wide = wide.copy(encoders={"image": wide.encoders["image"]}, fusions={})
    small = made(model=wide, tasks=tiny.tasks("classify"))
    whole = dataclasses.replace(small, adapt={}, optimizer=SGD())

    def flops(adapt, optimizer=OPTIMIZER):
        own = dataclasses.replace(whole, adapt=adapt, optimizer=optimizer)
        return set_up(own, None, tiny.ONE.build(jax.devices()[:1])).step_flops(("train",))

    full = flops({}, SGD())
    few, many = (flops({"encoders_image/*": Prompt(n=n)}) for n in (1, 12))
    assert 0.6 < few / full < 1.0 and 2.6 < many / few < 3.6  # 5 tokens beside 16


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    experiment = made(tasks=tiny.tasks("contrastive", "caption"), steps=4, optimizer=dataclasses.replace(OPTIMIZER, ema=0.5))
    train(experiment, tmp_path / "whole")
    train(dataclasses.replace(experiment, steps=2), tmp_path / "broken")
    train(experiment, tmp_path / "broken")
    (one, a), (two, b) = (mmjax.load(tmp_path / name) for name in ("whole", "broken"))
    assert one == two
    tiny.assert_identical(tiny.host(a), tiny.host(b))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompted") / "run"
    few = {"tasks": tiny.tasks("contrastive", "caption"), "steps": 2, "checkpoint": Checkpoint(every=2)}
    train(made(**few, evaluate=tiny.captioner().evaluate, data=tiny.captioner().data), folder)
    return folder


def test_it_answers_and_writes_and_goes_on_from_where_it_was(run, tmp_path):
    assert "captions/cider_d" in evaluate_run(str(run), None, [])
    predictor = mmjax.Predictor(run)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)
    assert predictor.embed_text(["a photo of the digit three."]).shape == (1, 16)
    written = predictor.generate(images=list(pixels), max_new_tokens=3)
    assert len(written) == 2
    with pytest.raises(UserError, match=r"max_length=16, of which 4 are virtual tokens or a prefix"):
        predictor.generate(images=list(pixels), max_new_tokens=12)
    still = made(tasks=tiny.tasks("caption"), steps=1, optimizer=SGD(learning_rate=0.0), init_from=str(run))
    train(still, tmp_path / "again")
    tiny.assert_identical(*(tiny.host(mmjax.load(path)[1]) for path in (run, tmp_path / "again")))


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ({**ADAPT, "encoders_text/*": Prompt(n=2)}, r"words/prompt_place has shape \(2,\) there and \(1,\) here"),
        (
            {**ADAPT, "encoders_image/*": Prompt(n=4, deep=True)},
            r"prompt_(room|layers) has shape .*3, 16\) there and .*4, 16\) here",
        ),
        ({"all-linear": LoRA(r=1)}, r"what a prefix adds has no place in the model's own parameters"),
    ],
)
def test_another_adaptation_does_not_begin_from_it(adapt, said, run, tmp_path):
    with pytest.raises(UserError, match=said):
        train(made(tasks=tiny.tasks("caption"), steps=1, init_from=str(run), adapt=adapt), tmp_path / "run")


def test_it_is_merged_into_nothing(run, tmp_path, capsys):
    assert main(["convert", "to-hf", str(run), str(tmp_path / "hf")]) == 2
    error = capsys.readouterr().err
    assert "mmjax convert to-peft writes it beside them" in error and error.count("\n") == 1


def test_a_text_that_leaves_no_room_is_one_line_before_the_first_step(tmp_path):
    with pytest.raises(UserError) as error:
        train(made(model=tiny.model()), tmp_path / "run")
    assert "a text of 12 tokens and 2 virtual ones" in str(error.value) and "use texts of at most 10" in str(error.value)
    assert "\n" not in str(error.value)


def test_its_config_goes_through_json_and_a_flag_names_it(tmp_path):
    own = Run(tmp_path)
    own.write_config(made())
    assert own.experiment().adapt == ADAPT
    words = ["--adapt.encoders_image/*", "prompt", "--adapt.encoders_image/*.n", "5", "--adapt.encoders_text/*", "prefix"]

    assert apply_flags(made(adapt={}), words).adapt == {"encoders_image/*": Prompt(n=5), "encoders_text/*": Prefix()}


def test_adamw_and_weights_of_rates_know_them():
    setup = set_up(made(optimizer=AdamW(rates={"*/prompt_tokens": 3.0})), None, tiny.ONE.build(jax.devices()[:1]))
    assert {path.split("/")[-1] for path in leaves_by_path(setup.trained().of(setup.abstract.params))} == set(MOVED)
