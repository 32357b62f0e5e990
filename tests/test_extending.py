"""docs/extending.md: its blocks are run in their order, and what each walk builds trains, answers and keeps what it says."""

import dataclasses
import re
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.data import WordPiece
from mmjax.models import init_params
from mmjax.models.forward import BoundForward
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.metrics import read_lines
from mmjax.train.run import Run
from mmjax.train.setup import set_up

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def walks():
    """The module that all blocks of the page make together."""
    module = types.ModuleType("extending")
    module.__file__ = str(ROOT / "docs" / "extending.md")
    sys.modules["extending"] = module
    text = (ROOT / "docs" / "extending.md").read_text()
    exec(compile("\n".join(BLOCK.findall(text)), module.__file__, "exec"), module.__dict__)
    yield module
    del sys.modules["extending"]


@pytest.fixture(autouse=True)
def code_is_not_kept(monkeypatch):
    """The module is in no file that a run could keep."""
    monkeypatch.setattr("mmjax.train.kept_code.collect", lambda experiment: ({}, []))


def test_no_file_of_the_core_knows_the_walks():
    names = ("sensor", "rater", "Centred", "MeanTeacher", "Segmenter")
    for file in (ROOT / "mmjax").rglob("*.py"):
        assert not [name for name in names if name in file.read_text()], file


def test_a_new_modality_and_a_decoder_that_writes_it(walks, tmp_path):
    experiment = walks.sensor_experiment()
    metrics = train(experiment, tmp_path / "run")
    assert metrics["report/accuracy"] > 0.95
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert lines[-2]["loss/forecast"] < 0.3 * lines[0]["loss/forecast"]


def test_a_part_that_must_be_there_is_asked_for_by_name(walks):
    experiment = walks.sensor_experiment()
    readings = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 3)), jnp.float32)
    mask = jnp.arange(8)[None] < jnp.array([5, 8])[:, None]
    params = init_params(experiment.model, jax.random.key(0))

    def tokens(batch):
        forward = BoundForward(experiment.model, params, {"index": jnp.arange(2), **batch})
        return forward.encode("sensor")

    given = {"sensor": readings, "sensor_mask": mask, "sensor_rate": jnp.array([50.0, 5.0])}
    seen, other = tokens(given), tokens(given | {"sensor": jnp.where(mask[..., None], readings, 7.0)})
    np.testing.assert_allclose(seen.embeddings[mask], other.embeddings[mask], rtol=1e-5, atol=1e-6)
    slow = tokens({key: value for key, value in given.items() if key != "sensor_rate"})
    assert not np.allclose(seen.embeddings, slow.embeddings)
    with pytest.raises(UserError, match="the batch has no 'sensor_mask'"):
        tokens({"sensor": readings})


def test_a_segmentation_head_under_flip_crop_and_rotate(walks, tmp_path):
    metrics = train(walks.shape_experiment(), tmp_path / "run")
    assert metrics["segments/mean_iou"] > 0.8
    assert {"segments/iou/ground", "segments/iou/red", "segments/iou/blue"} <= metrics.keys()
    head = walks.Segmenter(input=("text",))
    model = walks.Multimodal(encoders={"text": walks.TextTransformer(vocab_size=8, **walks.SIZE)}, heads={"segments": head})
    with pytest.raises(UserError, match="Segmenter needs a raster, and its input's tokens have no grid"):
        jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def test_a_second_tokenizer_and_a_number(walks, tmp_path):
    metrics = train(walks.price_experiment(), tmp_path / "run")
    assert metrics["price/r2"] > 0.9 and metrics["price/mean_absolute_error"] < 10.0
    kept = Run(tmp_path / "run").tokenizers()
    assert set(kept) == {"", "titles"}
    assert kept["titles"].decode(kept["titles"].encode(["отличный"], 16)["ids"][0]) == "отличный"


def test_an_objective_an_evaluator_and_a_hook(walks, tmp_path):
    experiment = walks.rated_experiment()
    metrics = train(experiment, tmp_path / "run")
    assert metrics == {"confusion/agreed": 0.875, "confusion/bright": 0.5}
    fallen = [line["slope/fallen"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "slope/fallen" in line]
    assert len(fallen) >= 3 and fallen[-1] > 0.1
    other = dataclasses.replace(experiment, tasks={"agreement": walks.Task(walks.Agreement(second="rater_3"))})
    with pytest.raises(UserError, match=r"tasks.agreement needs 'rater_3' in the batch"):
        train(other, tmp_path / "other")


def last_state(folder, experiment, mesh):
    with use_mesh(mesh):
        setup = set_up(experiment, Run(folder), mesh)
        checkpoints = Checkpoints(Run(folder).checkpoints, experiment.checkpoint, read_only=True)
        state = checkpoints.restore(setup.abstract)[0]
        checkpoints.close()
        return jax.device_get(state)


def test_running_statistics_and_a_teacher(walks, tmp_path, monkeypatch):
    """On 1 device and on 8, in micro-batches, broken off and resumed: one teacher and one running mean."""
    states, losses, build = {}, {}, Mesh.build
    ways = {
        "eight": {"mesh": Mesh(data=2, fsdp=4)},
        "parts": {"mesh": Mesh(data=1), "optimizer": {"accumulate": 2}},
        "one": {"mesh": Mesh(data=1)},
    }
    for name, changes in ways.items():
        count = 8 if name == "eight" else 1
        monkeypatch.setattr(Mesh, "build", lambda self, devices=None, n=count: build(self, devices or jax.devices()[:n]))
        experiment = walks.teacher_experiment(**changes)
        train(experiment, tmp_path / name)
        states[name] = last_state(tmp_path / name, experiment, experiment.mesh.build())
        losses[name] = [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl") if "loss" in line]
    one = states["one"]
    assert set(one.variables) == {"model", "tasks"}
    for name in ("eight", "parts"):
        np.testing.assert_allclose(losses[name], losses["one"], rtol=2e-5)
        for path, value in leaves_by_path(one.variables).items():
            if path.endswith("attention/k/bias"):
                continue  # its gradient is zero but for rounding, which Adam makes whole updates of
            np.testing.assert_allclose(leaves_by_path(states[name].variables)[path], value, rtol=2e-3, atol=2e-5, err_msg=path)
    mean = one.variables["model"]["statistics"]["encoders_sensor"]["mean"]
    assert 0.2 < mean[0] < 0.5 and abs(mean[2] / mean[0] - 3) < 0.5  # six steps of the way to (0.5, 1.0, 1.5)

    shutil.copytree(tmp_path / "one", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
    (tmp_path / "resumed" / "finished.json").unlink()
    whole = walks.teacher_experiment(mesh=Mesh(data=1))
    half = last_state(tmp_path / "resumed", whole, whole.mesh.build())
    assert half.step == 3
    train(whole, tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, last_state(tmp_path / "resumed", whole, whole.mesh.build()), one)
    # The teacher is not the student, and neither is the one that it began with.
    kernel = lambda tree: tree["heads_classes"]["logits"]["kernel"]  # noqa: E731
    teacher = [kernel(state.variables["tasks"]["teacher"]["teacher"]) for state in (half, one)]
    assert not np.allclose(teacher[1], kernel(one.params)) and not np.allclose(*teacher)


def test_a_stream_goes_on_from_a_position(walks):
    def opened():
        return walks.simulated().build(WordPiece(50).train(["it falls", "it rises"]), 3, "train")

    dataset = opened()
    with dataset.batches() as batches:
        whole = [next(batches) for _ in range(30)]
    again, states = opened(), []
    again.onward.go_on(dataset.onward.positions())
    read = again.onward.read
    again.onward.read = lambda position: (states.append(position), read(position))[1]
    with again.batches(20) as batches:
        later = next(batches)
    assert states[0] not in (None, 1)
    for key, value in later.items():
        np.testing.assert_array_equal(value, whole[20][key])
    assert 40 < sum(batch["label"].sum() for batch in whole) < 200
