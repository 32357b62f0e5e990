"""The mean of runs: its numbers, what works with it, and which runs have none."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
import transformers

from mmjax.adapt import LoRA
from mmjax.cli import main
from mmjax.convert.api import from_hf, load, to_hf
from mmjax.convert.average import _check_variables, average
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.data import WordPiece
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.predict.predictor import Predictor
from mmjax.train import SGD, train
from mmjax.train.evaluate import evaluate_run
from mmjax.train.run import Run


def made(**changes):
    tasks = tiny.tasks("contrastive", "classify")
    return tiny.experiment(**{"tasks": tasks, "steps": 2, "evaluate": {"report": Report()}, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one model from other seeds, and one that adapts the first."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(made(), root / "a")
        train(made(seed=1), root / "b")
        adapt = {"encoders_image/*/attention/[qv]/kernel": LoRA(r=2, init="gaussian")}
        train(made(init_from=str(root / "a"), adapt=adapt), root / "adapted")
    return root


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    tiny.single_device(monkeypatch)


def leaves(folder):
    return {path: np.array(x) for path, x in leaves_by_path(load(folder)[1]).items()}


def test_its_parameters_are_the_mean_and_it_works_as_a_run(runs, tmp_path, capsys):
    out = tmp_path / "mean"
    words = ["convert", "average", str(runs / "a"), str(runs / "b"), str(out), "--weights", "0.25", "0.75"]
    assert main(words) == 0
    assert f"{out}: " in (said := capsys.readouterr().out) and f"0.25 of {runs / 'a'}, 0.75 of {runs / 'b'}" in said
    a, b, mean = leaves(runs / "a"), leaves(runs / "b"), leaves(out)
    assert a.keys() == mean.keys()
    for path, x in mean.items():
        expected = 0.25 * a[path].astype(np.float64) + 0.75 * b[path].astype(np.float64)
        np.testing.assert_array_equal(x, expected.astype(np.float32), path)
    assert json.loads((out / "average.json").read_text())["of"][1] == {"run": str(runs / "b"), "weight": 0.75}
    metrics = evaluate_run(out)
    assert metrics["step"] == 0 and 0 <= metrics["report/accuracy"] <= 1
    image = np.zeros((8, 8, 3), np.uint8)
    assert len(Predictor(out).classify([image])[0]) == 5
    assert main(["evaluate", str(out)]) == 0
    with pytest.raises(UserError, match=r"its parameters are a mean of other runs' \(average.json\).*--init_from"):
        train(made(), out)
    train(made(init_from=str(out), steps=1), tmp_path / "next")


def test_what_is_kept_narrow_is_widened_first(runs, tmp_path):
    """Whole numbers are no parameters of which there is a mean; that of a run and the one it was rounded from is between."""
    frozen = {"init_from": str(runs / "a"), "frozen_dtype": "int8"}
    train(made(optimizer=SGD(learning_rate=0.1, train=("heads_*", "*/bias")), **frozen), tmp_path / "narrow")
    average([runs / "a", tmp_path / "narrow"], tmp_path / "mean", [0.5, 0.5])
    a, mean = leaves(runs / "a"), leaves(tmp_path / "mean")
    assert a.keys() == mean.keys() and all(x.dtype == np.float32 for x in mean.values())
    path = "encoders_image/stack/layers/mlp/up/kernel"
    off = np.abs(mean[path] - a[path])
    assert 0 < off.max() <= np.abs(a[path]).max() / 254
    assert 0 <= evaluate_run(tmp_path / "mean")["report/accuracy"] <= 1


def test_a_run_alone_is_itself_and_equal_runs_are_unchanged(runs, tmp_path):
    average([runs / "a", runs / "b"], tmp_path / "first", (1.0, 0.0))
    average([runs / "a"] * 3, tmp_path / "same", (0.2, 0.3, 0.5))
    for folder in ("first", "same"):
        tiny.assert_identical(leaves(tmp_path / folder), leaves(runs / "a"))


def test_adapters_are_merged_before_so_that_it_is_the_mean_of_what_the_runs_compute(runs, tmp_path, capsys):
    assert main(["convert", "average", str(runs / "adapted"), str(runs / "a"), str(tmp_path / "out")]) == 0
    assert f"what adapts {runs / 'adapted'} was merged" in capsys.readouterr().err
    own, base, mean = leaves(runs / "adapted"), leaves(runs / "a"), leaves(tmp_path / "out")
    assert mean.keys() == base.keys() and Run(tmp_path / "out").experiment().adapt == {}
    path = "encoders_image/stack/layers/attention/q"
    scale = own[f"{path}/lora_scale"]
    update = np.einsum("ldr,lrhk->ldhk", own[f"{path}/lora_a"], own[f"{path}/lora_b"]) * scale.reshape(-1, 1, 1, 1)
    assert np.abs(update).max() > 0
    np.testing.assert_allclose(mean[f"{path}/kernel"], base[f"{path}/kernel"] + 0.5 * update, atol=1e-6)


def test_runs_of_other_models_words_or_classes_are_refused(runs, tmp_path):
    def other(name, **changes):
        train(made(evaluate={}, steps=1, **changes), tmp_path / name)
        with pytest.raises(UserError) as raised:
            average([runs / "a", tmp_path / name], tmp_path / "out", (0.5, 0.5))
        assert not (tmp_path / "out").exists()
        return str(raised.value)

    model = tiny.small_model()
    headless = other("headless", model=model.copy(heads={}), tasks=tiny.tasks("contrastive"))
    assert f"only {runs / 'a'} has heads_classes/logits/bias" in headless
    assert "encoders_image/stack/layers/attention/k/bias is (1, 2, 8) and (1, 4, 4)" in other(
        "n", model=tiny.small_model(heads=4)
    )
    assert "model.encoders.image.activation: " in other("activation", model=tiny.small_model(activation="relu"))
    assert "have different tokenizers" in other("words", tokenizer=WordPiece(50))


def test_dropout_and_augmentation_do_not_make_another_model(runs, tmp_path):
    train(made(model=tiny.small_model(dropout=0.1), steps=1), tmp_path / "dropped")
    average([runs / "a", tmp_path / "dropped"], tmp_path / "out", (0.5, 0.5))
    assert isinstance(load(tmp_path / "out")[0], Multimodal)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a out", "takes two runs or more and a new folder"),
        ("a b out --weights 0.5", "--weights 0.5: give one a run, 2 in all"),
        ("a b out --weights 0.5 0.6", "shares from 0 to 1 and sum to 1, found 1.1"),
        ("a b out --weights -1 2", "shares from 0 to 1 and sum to 1, found 1"),
        ("a b out --weights nan 1", "shares from 0 to 1"),
        ("a b out --weights half half", "--weights half half: give numbers"),
        ("a nowhere out", "nowhere is not a run"),
        ("a b a", "already holds files"),
    ],
)
def test_what_cannot_be_asked(runs, words, message, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert main(["convert", "average", *words.split()]) == 2
    assert message in capsys.readouterr().err and not (runs / "out").exists()


def test_other_classes_in_another_order_are_refused(runs, tmp_path):
    shutil.copytree(runs / "b", tmp_path / "turned")
    names = json.loads((tmp_path / "turned" / "classes.json").read_text())
    (tmp_path / "turned" / "classes.json").write_text(json.dumps({"classes": names["classes"][::-1]}))
    with pytest.raises(UserError, match=r"heads.classes has the classes zero, one, two, ... and nine, eight, seven, ..."):
        average([runs / "a", tmp_path / "turned"], tmp_path / "out", (0.5, 0.5))


def test_variables_that_differ_are_refused(tmp_path):
    mine = {"seen/mean": np.zeros(2)}
    a, b = Run(tmp_path / "a"), Run(tmp_path / "b")
    _check_variables(a, b, mine, dict(mine))
    for theirs in ({"seen/mean": np.ones(2)}, {}):
        with pytest.raises(UserError, match="keep different variables at seen/mean"):
            _check_variables(a, b, mine, theirs)


def test_the_mean_of_two_converted_models_is_written_back(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)
    weights = []
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        theirs = transformers.ViTForImageClassification(config)
        theirs.save_pretrained(tmp_path / name)
        weights.append(theirs.state_dict())
        from_hf(tmp_path / name, tmp_path / f"run_{name}")
    average([tmp_path / "run_a", tmp_path / "run_b"], tmp_path / "mean", (0.5, 0.5))
    assert to_hf(tmp_path / "mean", tmp_path / "back") == {".": "ViTForImageClassification"}
    back = transformers.ViTForImageClassification.from_pretrained(tmp_path / "back").state_dict()
    for name, x in back.items():
        torch.testing.assert_close(x, (weights[0][name] + weights[1][name]) / 2, rtol=1e-6, atol=1e-8)
