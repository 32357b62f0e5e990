"""The step of every shipped config as far as a machine without a GPU goes: traced and lowered for one, at its full size."""

import dataclasses

import jax
import pytest

from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.plan.batches import Shapes, batch_shapes, with_batch_per_chip
from mmjax.train.config_file import load_config, shipped_configs
from mmjax.train.setup import Setup, abstract_state
from mmjax.train.step import make_step

CONFIGS = [pytest.param(name, marks=[] if name == "siglip_b16" else [pytest.mark.slow]) for name in shipped_configs()]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What is traced is meant for an NVIDIA GPU, with the checks that JAX makes of it."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    for module in ("mmjax.nn.attend", "mmjax.nn.linear", "mmjax.models.casting"):
        monkeypatch.setattr(f"{module}.platform", lambda: "gpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_step_is_lowered_for_a_gpu(name, on_a_gpu):
    experiment = dataclasses.replace(with_batch_per_chip(load_config(name), 1, 16), init_from="")
    mesh = Mesh().build(jax.devices()[:1])
    shapes, _ = batch_shapes(experiment)
    with use_mesh(mesh):
        datasets = {data: Shapes(spec) for data, spec in shapes.items()}
        setup = Setup(experiment, mesh, {}, datasets, abstract_state(experiment, mesh))
        tx, rate = experiment.optimizer.build(setup.abstract.params, 100), experiment.optimizer.rate(100)
        step = make_step(experiment.model, experiment.tasks, experiment.weighting, experiment.optimizer, tx, rate)
        traced = jax.jit(step).trace(setup.abstract, setup.batch_shapes(experiment.groups()[0]))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
