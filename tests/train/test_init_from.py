"""A run that begins with another's parameters begins with what its modules keep, and a teacher begins as the student does."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.convert.api import save_params
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Loss, Tokens
from mmjax.models import Multimodal, init_params
from mmjax.models.heads import Classifier
from mmjax.nn.linear import Linear
from mmjax.nn.position import resize_grid
from mmjax.parallel.mesh import use_mesh
from mmjax.train import SGD, Task, train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.init_from import first_state, load_matching
from mmjax.train.run import Run
from mmjax.train.setup import set_up


class Remembers(nn.Module):
    """Images -> one token; keeps their mean and, so many times, how often it was called."""

    size: int = 3

    @nn.compact
    def __call__(self, image):
        mean = self.variable("seen", "mean", jnp.zeros, ())
        calls = self.variable("seen", "calls", lambda: jnp.zeros(self.size, jnp.int32))
        if self.has_rng("dropout"):
            mean.value, calls.value = image.mean(), calls.value + 1
        x_BD = Linear(4, name="project")(image.reshape(image.shape[0], -1))
        return Tokens(x_BD[:, None], jnp.ones((image.shape[0], 1), bool))

    def example(self):
        return jnp.zeros((1, 8, 8, 3))


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Agree with a teacher that follows slowly."""

    head: str = "classes"

    def init_variables(self, params, batch):
        return {"teacher": params}

    def __call__(self, forward, batch, rng, variables):
        theirs = forward.with_(params=variables["teacher"]).head(self.head)
        return Loss(jnp.sum(jnp.square(theirs - forward.head(self.head))), jnp.float32(len(theirs)))

    def after_step(self, variables, params):
        return {"teacher": jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, variables["teacher"], params)}


def made(size=3, **changes):
    model = Multimodal(encoders={"image": Remembers(size)}, heads={"classes": Classifier(classes=10)})
    tasks = {**tiny.tasks("classify"), "teacher": Task(Teacher())}
    optimizer = SGD(learning_rate=0.5, schedule="constant", ema=0.5)
    settings = {"model": model, "tasks": tasks, "evaluate": {}, "steps": 3, "optimizer": optimizer}
    return tiny.experiment(**{**settings, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a finished run, and its last state on the host."""
    folder = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.train.kept_code.collect", lambda experiment: ({}, []))  # this file is no config's
        tiny.single_device(patch)
        train(made(), folder)
        with use_mesh(tiny.ONE.build()):
            setup = set_up(made(), Run(folder), tiny.ONE.build())
            kept = Checkpoints(Run(folder).checkpoints, made().checkpoint, read_only=True)
            state = tiny.host(kept.restore(setup.abstract)[0])
            kept.close()
    return folder, state


def begun(folder, **changes):
    """The first state of a run that starts from the folder, and what it made of the seed alone."""
    mesh = tiny.ONE.build(jax.devices()[:1])
    with use_mesh(mesh):
        setup = set_up(made(init_from=str(folder), seed=5, **changes), None, mesh)
        return tiny.host(first_state(setup, None, lambda line: None)), tiny.host(setup.init())


def test_modules_begin_with_what_they_kept_and_the_teacher_with_the_parameters_that_were_loaded(source):
    folder, there = source
    state, new = begun(folder)
    assert state.step == 0
    tiny.assert_identical(state.params, there.ema)  # what was evaluated is what is taken
    tiny.assert_identical(state.ema, state.params)
    own = state.variables["model"]["seen"]["encoders_image"]
    tiny.assert_identical(state.variables["model"], there.variables["model"])
    assert (own["calls"] == 3).all() and own["mean"] != 0
    tiny.assert_identical(state.variables["tasks"]["teacher"]["teacher"], state.params)
    path = "heads_classes/logits/kernel"
    for other in (there.variables["tasks"]["teacher"]["teacher"], new.variables["tasks"]["teacher"]["teacher"]):
        assert not np.allclose(leaves_by_path(other)[path], leaves_by_path(state.params)[path])


def test_a_fresh_head_is_fresh_in_the_teacher_too(source):
    folder, _ = source
    state, new = begun(folder, init_fresh=("heads_classes/*",))
    tiny.assert_identical(state.params["heads_classes"], new.params["heads_classes"])
    tiny.assert_identical(state.variables["tasks"]["teacher"]["teacher"], state.params)


def test_what_is_kept_in_another_shape_begins_anew(source):
    folder, there = source
    state, _ = begun(folder, size=5)
    own = state.variables["model"]["seen"]["encoders_image"]
    assert own["calls"].tolist() == [0] * 5
    assert own["mean"] == there.variables["model"]["seen"]["encoders_image"]["mean"]


TARGET = {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "head": {"kernel": np.zeros((3, 4))}}
SOURCE = {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "old": {"kernel": np.ones((3, 5))}}


def test_matching_sorts_arrays_into_loaded_new_and_left_over():
    loaded, new, left = load_matching(TARGET, SOURCE, ())
    assert loaded.keys() == {"a/kernel", "a/bias"} and loaded["a/kernel"] is SOURCE["a"]["kernel"]
    assert (new, left) == (["head/kernel"], ["old/kernel"])


def test_fresh_parameters_are_not_loaded():
    loaded, new, left = load_matching(TARGET, SOURCE, ("*/bias",))
    assert loaded.keys() == {"a/kernel"}
    assert (new, left) == (["a/bias", "head/kernel"], ["a/bias", "old/kernel"])


def test_another_shape_is_refused_unless_it_is_fresh():
    source = SOURCE | {"head": {"kernel": np.ones((3, 5))}}
    said = r"init_from: head/kernel has shape \(3, 5\) there and \(3, 4\) here; .* --init_fresh 'head/kernel'"
    with pytest.raises(UserError, match=said):
        load_matching(TARGET, source, ())
    assert load_matching(TARGET, source, ("head/*",))[1] == ["head/kernel"]
    with pytest.raises(UserError, match=r"init_fresh='heads/\*' matches no parameter \(did you mean 'head/kernel'\?\)"):
        load_matching(TARGET, source, ("heads/*",))
    with pytest.raises(UserError, match="no parameter in common"):
        load_matching(TARGET, {"x": np.ones(3)}, ())


def test_positions_are_resized_to_the_models_own_size(tmp_path):
    """Learned ones, the class token's as it was; and the start says so. A pattern of `init_fresh` leaves them new."""

    def sized(side, **changes):
        encoder = tiny.vit(cls_token=True).copy(image_size=(side, side))
        model = Multimodal(encoders={"image": encoder}, heads={"classes": Classifier(classes=10)})
        return tiny.experiment(**{"model": model, "tasks": tiny.tasks("classify"), "evaluate": {}, **changes})

    small, run, path = sized(8), Run(tmp_path / "small"), "encoders_image/position/table"
    run.path.mkdir()
    run.write_config(small)
    params = init_params(small.model, jax.random.key(1))
    save_params(run, params)
    mesh, said = tiny.ONE.build(jax.devices()[:1]), []
    with use_mesh(mesh):
        large = set_up(sized(16, init_from=str(run.path)), None, mesh)
        state = tiny.host(first_state(large, None, said.append))
        fresh = set_up(sized(16, init_from=str(run.path), init_fresh=(path,)), None, mesh)
        new = tiny.host(first_state(fresh, None, lambda line: None))
        seed = tiny.host(fresh.init())
    found, there = leaves_by_path(state.params), leaves_by_path(tiny.host(params))
    assert found[path].shape == (17, 16) and there[path].shape == (5, 16)
    np.testing.assert_array_equal(found[path][0], there[path][0])
    np.testing.assert_allclose(found[path][1:], resize_grid(there[path][1:], (2, 2), (4, 4)), atol=1e-6)
    for name in found.keys() - {path}:
        np.testing.assert_array_equal(found[name], there[name])
    assert any(path in line and "8 x 8 to 16 x 16" in line for line in said)
    np.testing.assert_array_equal(leaves_by_path(new.params)[path], leaves_by_path(seed.params)[path])
