"""An adapted run: its base stays bit for bit, only what adapts it is trained, and it is as exact as any other."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

import mmjax
from mmjax.adapt import IA3, BitFit, Bottleneck, LoRA, is_adapter, merged
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, split_layers
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, AdamW, Checkpoint, train
from mmjax.train.evaluate import evaluate_run
from mmjax.train.run import Run
from mmjax.train.setup import set_up

ADAPT = {"encoders_image/*/attention/*": LoRA(r=3, alpha=6, dropout=0.1), "encoders_image/*/mlp/*[1:]": LoRA(r=2)}
OPTIMIZER = SGD(learning_rate=0.05, schedule="constant", momentum=0.9, train=("heads_*", "fusions_*"))


def made(**changes):
    return tiny.experiment(**{"model": tiny.small_model(depth=3), "adapt": ADAPT, "optimizer": OPTIMIZER} | changes)


@pytest.fixture(scope="module")
def trained():
    return tiny.states(made(), 8)


def test_the_base_is_bit_identical_after_training_and_what_adapts_it_is_not(trained):
    first, last, losses = trained
    before, after = leaves_by_path(first.params), leaves_by_path(last.params)
    changed = {path for path in before if not (before[path] == after[path]).all()}
    moving = {path for path in before if path.endswith(("lora_a", "lora_b"))}
    assert moving <= changed and {path for path in changed - moving if not path.startswith(("heads_", "fusions_"))} == set()
    assert losses[-1] < losses[0]
    up = [leaves_by_path(state.params)["encoders_image/stack/layers/mlp/up/lora_b"] for state in (first, last)]
    assert not up[1][0].any() and up[1][1:].any()  # the first layer was not adapted
    assert {path for path in leaves_by_path(last.optimizer) if "encoders_image" in path and "lora" not in path} == set()


def test_the_base_begins_as_it_would_without_adapters(trained):
    plain = tiny.states(made(adapt={}), 0)[0]
    own = leaves_by_path(plain.params)
    adapted = {path: leaf for path, leaf in leaves_by_path(trained[0].params).items() if not is_adapter(path)}
    assert own.keys() == adapted.keys()
    assert all((own[path] == adapted[path]).all() for path in own)


def test_without_a_word_only_what_adapts_is_trained():
    first, last, _ = tiny.states(made(optimizer=SGD(learning_rate=0.05)), 2)
    before, after = leaves_by_path(first.params), leaves_by_path(last.params)
    changed = {path for path in before if not (before[path] == after[path]).all()}
    assert changed and all(path.endswith(("lora_a", "lora_b")) for path in changed)


@pytest.mark.parametrize("mesh", [Mesh(data=2, fsdp=2, tensor=2), Mesh(fsdp=4, data=-1)], ids=str)
def test_losses_are_the_same_on_every_mesh(mesh, trained):
    experiment = made(adapt={**ADAPT, "encoders_image/*/mlp/*[1:]": LoRA(r=2)})
    np.testing.assert_allclose(tiny.states(experiment, 8, mesh)[2], trained[2], rtol=1e-5)


def test_no_gradient_of_a_frozen_kernel_is_formed():
    """Forward once, backward once through activations, and hardly more: two thirds of what training all of it takes, and the
    two layers below the first adapted one have no backward pass at all."""
    wide = tiny.small_model(depth=3, width=64)
    model = wide.copy(encoders={"image": wide.encoders["image"]}, fusions={})
    whole = made(model=model, adapt={}, tasks=tiny.tasks("classify"), evaluate={}, optimizer=SGD())
    flops = {}
    for name, adapt in {
        "all": {"encoders_image/*/layers/*": LoRA(r=1)},
        "last": {"encoders_image/*/layers/*[2:]": LoRA(r=1)},
    }.items():
        own = dataclasses.replace(whole, adapt=adapt, optimizer=SGD(train=("heads_*",)))
        flops[name] = set_up(own, None, tiny.ONE.build(jax.devices()[:1])).step_flops(("train",))
    full = set_up(whole, None, tiny.ONE.build(jax.devices()[:1])).step_flops(("train",))
    assert 0.6 < flops["all"] / full < 0.78 and 0.4 < flops["last"] / full < 0.55


def test_a_killed_run_goes_on_bit_for_bit_and_its_checkpoints_share_the_base(tmp_path):
    experiment = made(steps=6, evaluate={}, optimizer=dataclasses.replace(OPTIMIZER, ema=0.5))
    train(experiment, tmp_path / "whole")
    train(dataclasses.replace(experiment, steps=4), tmp_path / "broken")
    train(experiment, tmp_path / "broken")
    (one, a), (two, b) = (mmjax.load(tmp_path / name) for name in ("whole", "broken"))
    assert one == two
    tiny.assert_identical(tiny.host(a), tiny.host(b))
    assert len(list((tmp_path / "whole" / "checkpoints" / "frozen").iterdir())) == 1


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "run"
    train(made(adapt={}, optimizer=SGD(learning_rate=0.05), steps=4, evaluate={}, checkpoint=Checkpoint(every=4)), folder)
    return folder


def test_adapters_begin_beside_what_was_loaded(base, tmp_path):
    """DoRA's lengths and PiSSA's factors are those of the base that was loaded, not of the one that was drawn."""
    adapt = {"encoders_image/*/attention/*": LoRA(r=3, dora=True), "encoders_image/*/mlp/*": LoRA(r=2, init="pissa")}
    said = made(init_from=str(base), adapt=adapt, steps=1, evaluate={}, optimizer=SGD(learning_rate=0.0))
    train(said, tmp_path / "run")
    own, before = (leaves_by_path(mmjax.load(path)[1]) for path in (tmp_path / "run", base))
    q = "encoders_image/stack/layers/attention/q"
    lengths = np.sqrt(np.sum(np.square(np.asarray(before[f"{q}/kernel"])), axis=1))
    np.testing.assert_allclose(own[f"{q}/dora_magnitude"], lengths, rtol=1e-5)
    up = "encoders_image/stack/layers/mlp/up"
    u, s, v = np.linalg.svd(np.asarray(before[f"{up}/kernel"], np.float64))
    largest = np.einsum("lir,lr,lro->lio", u[:, :, :2], s[:, :2], v[:, :2])
    product = (
        np.asarray(own[f"{up}/lora_a"]) @ np.asarray(own[f"{up}/lora_b"]) * np.asarray(own[f"{up}/lora_scale"])[:, None, None]
    )
    np.testing.assert_allclose(product, largest, atol=1e-5)
    assert all((np.asarray(own[path]) == np.asarray(before[path])).all() for path in before)


def test_an_adapted_run_answers_and_goes_on_as_another_or_without_adapters(base, tmp_path, capsys):
    first = tmp_path / "adapted"
    train(made(init_from=str(base), steps=3, checkpoint=Checkpoint(every=3)), first)
    params = mmjax.load(first)[1]
    assert evaluate_run(str(first), None, [])["prompted/accuracy"] >= 0.0
    again = tmp_path / "again"  # the same adapters go on from where they were
    train(made(init_from=str(first), steps=1, evaluate={}, optimizer=SGD(learning_rate=0.0)), again)
    tiny.assert_identical(tiny.host(mmjax.load(again)[1]), tiny.host(params))
    capsys.readouterr()
    plain = tmp_path / "plain"  # merged where the next model has none
    train(made(init_from=str(first), adapt={}, steps=1, evaluate={}, optimizer=SGD(learning_rate=0.0)), plain)
    assert "is merged into its parameters" in capsys.readouterr().err
    expected, found = leaves_by_path(merged(tiny.small_model(depth=3), params)), leaves_by_path(mmjax.load(plain)[1])
    assert expected.keys() == found.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-6, err_msg=path)


def test_an_adapter_goes_on_with_its_own_scale_or_not_at_all(base, tmp_path):
    train(made(init_from=str(base), steps=1, evaluate={}), tmp_path / "run")
    other = {**ADAPT, "encoders_image/*/attention/*": LoRA(r=3, alpha=12, dropout=0.1)}
    with pytest.raises(UserError, match=r"attention/k/lora_scale is \[2.0, 2.0, 2.0\] there and \[4.0, 4.0, 4.0\] by adapt"):
        train(made(init_from=str(tmp_path / "run"), adapt=other), tmp_path / "other")
    dry = {**ADAPT, "encoders_image/*/attention/*": LoRA(r=3, alpha=6)}  # dropout is training's alone
    still = made(init_from=str(tmp_path / "run"), adapt=dry, steps=1, evaluate={}, optimizer=SGD(learning_rate=0.0))
    train(still, tmp_path / "dry")
    before, after = (leaves_by_path(mmjax.load(tmp_path / name)[1]) for name in ("run", "dry"))
    assert before.keys() - after.keys() == {path for path in before if path.endswith("lora_dropout")} != set()
    assert all((np.asarray(before[path]) == np.asarray(after[path])).all() for path in after)


def test_a_new_head_that_nothing_trains_is_one_line(base, tmp_path):
    said = made(init_from=str(base), init_fresh=("heads_classes/*",), optimizer=AdamW())
    with pytest.raises(
        UserError, match=r"heads_classes/logits/bias is new \(2 such in all\).*--optimizer.train 'heads_classes/\*'"
    ):
        train(said, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapt": {"encoder_image/*": LoRA()}}, "adapt: 'encoder_image/*' matches no kernel that LoRA could be given"),
        ({"adapt": {"encoders_image/*": LoRA(r=500)}}, "LoRA.r=500 is above the rank of encoders_image/"),
        ({"adapt": {"*/mlp/*": LoRA(), "*/up/*": IA3()}}, "a kernel takes one method"),
        ({"adapt": {"heads_*": LoRA(r=1)}, "optimizer": AdamW(train=("heads_*",))}, "heads_classes/logits/kernel is adapted"),
        ({"adapt": {"heads_*/kernel": BitFit()}}, "matches nothing that BitFit trains"),
    ],
)
def test_a_mistaken_adaptation_is_one_line_before_the_first_step(changes, said, tmp_path):
    with pytest.raises(UserError) as error:
        train(made(**changes), tmp_path / "run")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_its_config_goes_through_json(tmp_path):
    run = Run(tmp_path)
    run.write_config(made())
    assert run.experiment().adapt == ADAPT and split_layers(next(reversed(ADAPT)))[1] == slice(1, None)


def test_a_shallower_model_takes_some_layers(base, tmp_path, capsys):
    """Every second of three; what goes with the others stays where it is."""
    small = made(model=tiny.small_model(depth=2), adapt={}, optimizer=SGD(learning_rate=0.0), steps=1, evaluate={})
    said = dataclasses.replace(small, init_from=str(base), init_layers=("encoders_image/*[::2]",))
    train(said, tmp_path / "run")
    assert "encoders_image/*[::2]: layers 0, 2 of 3" in capsys.readouterr().err
    assert Run(tmp_path / "run").read_json("init_from.json")["layers"] == {"encoders_image/*[::2]": [0, 2]}
    before, own = (leaves_by_path(mmjax.load(path)[1]) for path in (base, tmp_path / "run"))
    for path, x in own.items():
        expected = np.asarray(before[path])[::2] if "/layers/" in path else np.asarray(before[path])
        assert (np.asarray(x) == expected).all(), path


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((), r"has shape \(3, .*\) there and \(2, .*\) here; take some of its layers, --init_layers 'encoders_image/\*\[:2\]'"),
        (("encoders_image/*",), r"'encoders_image/\*' says no layers: write them behind it, 'encoders_image/\*\[::2\]'"),
        (("encoder_image/*[::2]",), "matches no parameter of a stack of layers there"),
        (("encoders_image/*[:1]",), "takes 1 of 3 layers of encoders_image/.*, and the model here has 2"),
        (("encoders_image/*[::2]", "*/attention/*[:2]"), "both take layers of encoders_image/"),
    ],
)
def test_layers_that_do_not_fit_are_one_line(layers, said, base, tmp_path):
    small = made(model=tiny.small_model(depth=2), adapt={}, optimizer=SGD(), init_from=str(base), init_layers=layers)
    with pytest.raises(UserError, match=said):
        train(small, tmp_path / "run")


def test_layers_of_no_run_are_one_line():
    with pytest.raises(UserError, match=r"init_layers=.* are of the run in init_from, which is ''"):
        made(init_layers=("encoders_image/*[::2]",)).check()


THIN = {
    "encoders_image/*/mlp/*": Bottleneck(r=3, normed=True),
    "encoders_image/*/attention/*[1:]": Bottleneck(r=2, activation="silu"),
    "encoders_image/*/attention/q/*": LoRA(r=2),
}


def test_bottlenecks_are_trained_alone_and_alike_on_every_mesh_and_over_int8():
    experiment = made(adapt=THIN, optimizer=dataclasses.replace(OPTIMIZER, learning_rate=0.2))
    first, last, losses = tiny.states(experiment, 6)
    before, after = leaves_by_path(first.params), leaves_by_path(last.params)
    changed = {path for path in before if not (before[path] == after[path]).all()}
    own = {path for path in before if "/bottleneck_" in path and not path.endswith("_kind")}
    assert own | {path for path in before if path.endswith("lora_b")} <= changed and losses[-1] < losses[0]
    assert all(is_adapter(path) or path.startswith(("heads_", "fusions_")) for path in changed)
    down = [
        leaves_by_path(state.params)["encoders_image/stack/layers/attention/out/bottleneck_down"] for state in (first, last)
    ]
    assert not down[1][0].any() and (down[0][1:] != down[1][1:]).any()
    for mesh in (Mesh(data=2, fsdp=2, tensor=2), Mesh(sequence=2, data=-1)):
        np.testing.assert_allclose(tiny.states(experiment, 6, mesh)[2], losses, rtol=2e-5)
    narrow = tiny.states(dataclasses.replace(experiment, frozen_dtype="int8"), 6)[2]
    np.testing.assert_allclose(narrow, losses, rtol=0.05)
    assert (narrow != losses).any()


@pytest.mark.slow
def test_a_killed_run_with_bottlenecks_goes_on_bit_for_bit(tmp_path):
    experiment = made(adapt=THIN, steps=4, evaluate={})
    train(experiment, tmp_path / "whole")
    train(dataclasses.replace(experiment, steps=2), tmp_path / "broken")
    train(experiment, tmp_path / "broken")
    tiny.assert_identical(*(tiny.host(mmjax.load(tmp_path / name)[1]) for name in ("whole", "broken")))
