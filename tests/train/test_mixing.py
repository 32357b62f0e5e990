"""A run that mixes: named by a flag, beside a task that sees unmixed images; what cannot be is refused at set-up."""

import dataclasses
import json

import jax
import pytest
import tiny

from mmjax.core.draft import set_fields
from mmjax.core.errors import UserError
from mmjax.core.flags import pairs
from mmjax.objectives.mixing import CutMix, MixOrCut, MixUp
from mmjax.parallel.mesh import use_mesh
from mmjax.train import train
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.validate import validated


def flagged(*words):
    return set_fields(tiny.experiment(evaluate={}), pairs(words))


def test_flags_name_a_mix_and_its_fields():
    field = "--tasks.classify.objective.mix"
    assert flagged(field, "cutmix").tasks["classify"].objective.mix == CutMix()
    made = flagged(field, "mixup", f"{field}.alpha", "0.2", f"{field}.probability", "0.5")
    assert made.tasks["classify"].objective.mix == MixUp(0.2, 0.5)
    both = flagged(field, "mix_or_cut", f"{field}.cutmix.alpha", "0.7").tasks["classify"].objective.mix
    assert both == MixOrCut(cutmix=CutMix(0.7))


def test_a_run_mixes_and_goes_on(tmp_path, monkeypatch):
    tiny.single_device(monkeypatch)
    mixing = flagged("--tasks.classify.objective.mix", "cutmix", "--steps", "2")
    train(mixing, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.experiment().tasks["classify"].objective.mix == CutMix()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    figures = {name for line in lines for name in line}
    assert {"train/classify/mixed_accuracy", "train/classify/share", "train/contrastive/image_to_text_accuracy"} <= figures
    assert "train/classify/accuracy" not in figures
    with pytest.raises(UserError, match=r"tasks\.classify\.objective\.mix"):
        run.check(flagged("--tasks.classify.objective.mix", "mixup", "--steps", "2"))


def test_what_cannot_be_mixed_is_refused_at_set_up():
    odd = flagged("--tasks.classify.objective.mix", "mixup", "--data.train.batch_size", "15")
    mesh = tiny.ONE.build(jax.devices()[:1])
    with use_mesh(mesh), pytest.raises(UserError, match=r"tasks\.classify: mix: rows are mixed in pairs, and there are 15"):
        validated(set_up(odd, None, mesh))
    parts = dataclasses.replace(odd.optimizer, accumulate=16)
    alone = dataclasses.replace(
        flagged("--tasks.classify.objective.mix", "mixup"), optimizer=parts, tasks={"classify": odd.tasks["classify"]}
    )
    with use_mesh(mesh), pytest.raises(UserError, match=r"tasks\.classify: mix: rows are mixed in pairs, and there are 1 "):
        set_up(alone, None, mesh).lower_step(("train",))
