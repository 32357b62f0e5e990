"""The held-out loss of objectives, of fakes and of the real ones."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from fake_evaluation import UnigramLoss, make_evaluation, make_params

from mmjax.core.errors import UserError
from mmjax.core.types import Loss
from mmjax.evaluate import HeldOut, Perplexity
from mmjax.models.forward import BoundForward
from mmjax.objectives import Contrastive
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train.run import Run
from mmjax.train.setup import set_up

PARAMS = make_params()


def test_the_loss_is_a_mean_over_the_whole_dataset_and_perplexitys():
    rng = np.random.default_rng(0)
    mask = np.arange(6)[None] < rng.integers(0, 7, (11, 1))
    columns = {"text": rng.integers(0, 64, (11, 6)).astype(np.int32) * mask, "text_mask": mask}
    metrics = HeldOut(UnigramLoss())(make_evaluation(columns), PARAMS)
    logits = PARAMS["unigram"].astype(np.float64)
    expected = np.mean(np.log(np.exp(logits).sum()) - logits[columns["text"][mask]])
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics.items() <= Perplexity(UnigramLoss())(make_evaluation(columns), PARAMS).items()
    with pytest.raises(UserError, match="has no example that UnigramLoss counts: held_out needs at least one"):
        HeldOut(UnigramLoss())(make_evaluation(columns | {"text_mask": np.zeros((11, 6), bool)}), PARAMS)


def test_the_objectives_of_digits_have_one_on_a_mesh_and_off_it():
    """Of objectives that compare no examples it is that of one batch of all; of the others the mean over batches."""
    objectives = {name: tiny.OBJECTIVES[name] for name in tiny.FOUR}
    e = tiny.four(evaluate={name: HeldOut(own) for name, own in objectives.items()})
    small = dataclasses.replace(tiny.data("validation", 96), source=dataclasses.replace(tiny.data().source, split="validation"))
    e = dataclasses.replace(e, data={"train": tiny.data(), "validation": small})
    found = []
    for mesh, count in ((Mesh(data=2, fsdp=4), 8), (Mesh(data=1), 1)):
        built = mesh.build(jax.devices()[:count])
        with use_mesh(built):
            setup = set_up(e, Run("nowhere"), built)
            params = setup.evaluated(setup.init())
            found.append({name: spec(setup.evaluation(), params) for name, spec in e.evaluate.items()})
    for name in objectives:
        assert found[0][name] == pytest.approx(found[1][name], rel=2e-4), name
        assert np.isfinite(found[0][name]["loss"])

    total, count = 0.0, 0.0
    contrastive = jax.jit(lambda p, batch: Contrastive()(BoundForward(e.model, p, batch), batch, jax.random.key(0)))
    for batch in setup.datasets["validation"].epoch():
        loss = contrastive(params, dict(batch))
        total, count = total + float(loss.sum), count + float(loss.count)
    assert found[1]["contrastive"]["loss"] == pytest.approx(total / count, rel=1e-5)


@dataclasses.dataclass(frozen=True)
class Keeps:
    def init_variables(self, params, batch):
        return {}

    def __call__(self, forward, batch, rng):
        return Loss(0.0, 0.0)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="objective=Keeps: it keeps variables"):
        HeldOut(Keeps())
    with pytest.raises(UserError, match="objective is missing: give one, for instance HeldOut"):
        HeldOut(None)
