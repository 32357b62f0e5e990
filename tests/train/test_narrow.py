"""A frozen base kept narrow: what is trained over it, what it takes, and that it is never taken for a wide one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_adapted import made

import mmjax
from mmjax.adapt import BitFit, LoRA, is_adapter, merged, wide
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, size_bytes
from mmjax.models.forward import BoundForward
from mmjax.nn.narrow import SCALE, widened
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, Checkpoint, train
from mmjax.train.evaluate import evaluate_run
from mmjax.train.hooks import Norms
from mmjax.train.setup import set_up

UP = "encoders_image/stack/layers/mlp/up"
STILL = SGD(learning_rate=0.0, train=("heads_*", "fusions_*"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "run"
    train(made(adapt={}, optimizer=SGD(learning_rate=0.05), steps=4, evaluate={}, checkpoint=Checkpoint(every=4)), folder)
    return folder


@pytest.fixture(scope="module", params=["int8", pytest.param("bfloat16", marks=pytest.mark.slow)])
def adapted_run(request, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    train(made(init_from=str(base), frozen_dtype=request.param, steps=4, checkpoint=Checkpoint(every=2)), folder)
    return folder, request.param


def test_kernels_and_tables_are_kept_narrow_and_everything_else_as_it_is(adapted_run, base):
    own, before = (leaves_by_path(mmjax.load(path)[1]) for path in (adapted_run[0], base))
    assert own[f"{UP}/kernel"].dtype == adapted_run[1]
    for path, x in before.items():
        if path.startswith(("heads_", "fusions_")):
            continue  # trained
        if path.endswith("/kernel") and adapted_run[1] == "int8":
            scale = own[f"{path.removesuffix('kernel')}{SCALE}"]
            found = widened(jnp.asarray(own[path]), jnp.asarray(scale), "/layers/" in path)
            np.testing.assert_allclose(found, x, atol=float(jnp.abs(x).max()) / 254 * 1.001, err_msg=path)
        elif path.endswith(("/kernel", "/table")):
            assert (np.asarray(own[path]) == np.asarray(x).astype(jnp.bfloat16)).all(), path
        else:
            assert own[path].dtype == np.float32 and (np.asarray(own[path]) == np.asarray(x)).all(), path
    assert all(x.dtype == np.float32 for path, x in own.items() if is_adapter(path))


def test_it_learns_is_evaluated_and_goes_on_bit_for_bit(adapted_run, base, tmp_path):
    folder, dtype = adapted_run
    assert evaluate_run(str(folder), None, [])["prompted/accuracy"] >= 0.0
    broken = made(init_from=str(base), frozen_dtype=dtype, steps=4, checkpoint=Checkpoint(every=2))
    train(dataclasses.replace(broken, steps=2), tmp_path / "broken")
    train(broken, tmp_path / "broken")
    tiny.assert_identical(tiny.host(mmjax.load(tmp_path / "broken")[1]), tiny.host(mmjax.load(folder)[1]))
    with pytest.raises(UserError, match="frozen_dtype"):
        train(dataclasses.replace(broken, frozen_dtype="float32", steps=6), tmp_path / "broken")


def test_whoever_starts_from_it_starts_from_wide_kernels(adapted_run, tmp_path):
    """Whole numbers without their scales would be another model, silently."""
    folder, _ = adapted_run
    params = mmjax.load(folder)[1]
    train(made(init_from=str(folder), steps=1, evaluate={}, optimizer=STILL), tmp_path / "wide")
    tiny.assert_identical(tiny.host(mmjax.load(tmp_path / "wide")[1]), tiny.host(wide(params)))
    train(made(init_from=str(folder), adapt={}, steps=1, evaluate={}, optimizer=SGD(learning_rate=0.0)), tmp_path / "plain")
    expected, found = (
        leaves_by_path(x) for x in (merged(tiny.small_model(depth=3), params), mmjax.load(tmp_path / "plain")[1])
    )
    assert expected.keys() == found.keys()
    for path, leaf in expected.items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(found[path], leaf, atol=1e-6, err_msg=path)


def test_it_answers_as_its_widened_parameters_do(adapted_run):
    model, params = mmjax.load(adapted_run[0])
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    own, other, whole = (
        BoundForward(model, tree, {"image": image, "index": np.arange(2)}).head("classes")
        for tree in (params, wide(params), merged(model, params))
    )
    np.testing.assert_allclose(own, other, atol=2e-6)
    np.testing.assert_allclose(own, whole, atol=5e-6)


def test_losses_are_the_same_on_every_mesh():
    said = made(frozen_dtype="int8")
    one = tiny.states(said, 6)[2]
    np.testing.assert_allclose(tiny.states(said, 6, Mesh(data=2, fsdp=2, tensor=2))[2], one, rtol=1e-5)


def test_a_seventh_of_the_memory_and_no_whole_kernel_is_ever_wide():
    """The compiled step holds no float32 copy of a stack of kernels: its temporaries stay below one."""
    model = tiny.small_model(depth=6, width=256, mlp_width=1024)
    model = model.copy(encoders={"image": model.encoders["image"]}, fusions={})
    said = made(model=model, tasks=tiny.tasks("classify"), evaluate={}, adapt={"all-linear": LoRA(r=1)}, optimizer=SGD())
    found = {}
    for dtype in ("float32", "int8"):
        setup = set_up(dataclasses.replace(said, frozen_dtype=dtype), None, tiny.ONE.build(jax.devices()[:1]))
        memory = setup.lower_step(("train",)).compile().memory_analysis()
        found[dtype] = size_bytes(setup.trained().rest(setup.abstract.params)), memory.temp_size_in_bytes
    assert found["int8"][0] < 0.27 * found["float32"][0]
    assert found["int8"][1] < found["float32"][1] + 2 * 4 * 256 * 1024 * 2  # two layers' kernels, and not six


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frozen_dtype": "int4"}, "frozen_dtype='int4': use one of float32, bfloat16, int8"),
        ({"frozen_dtype": "int8", "adapt": {}, "optimizer": SGD()}, "frozen_dtype='int8': no kernel is frozen as a whole"),
        (
            {"frozen_dtype": "int8", "init_fresh": ("encoders_image/stack/layers/mlp/up/kernel",), "optimizer": STILL},
            "mlp/up/kernel is new",
        ),
    ],
)
def test_mistakes_are_one_line(changes, said, base, tmp_path):
    with pytest.raises(UserError, match=said):
        train(made(init_from=str(base), **changes), tmp_path / "run")


def test_new_and_frozen_without_an_adapter_is_refused_as_well(base, tmp_path):
    said = {"adapt": {"encoders_image/*": BitFit()}, "init_fresh": (f"{UP}/kernel",), "optimizer": SGD(train=("heads_*",))}
    with pytest.raises(UserError, match="mlp/up/kernel is new"):
        train(made(init_from=str(base), frozen_dtype="int8", **said), tmp_path / "run")


def test_norms_are_those_of_the_widened_kernels(base, tmp_path):
    said = {"init_from": str(base), "steps": 1, "evaluate": {}, "optimizer": STILL, "hooks": {"norm": Norms(every=1)}}
    for dtype in ("float32", "int8"):
        train(made(frozen_dtype=dtype, **said), tmp_path / dtype)
    lines = [(tmp_path / dtype / "metrics.jsonl").read_text().splitlines() for dtype in ("float32", "int8")]
    one, other = ([json.loads(line)["norm/encoders_image"] for line in own if "norm/" in line] for own in lines)
    np.testing.assert_allclose(other, one, rtol=0.01)


def test_scales_are_trained_by_no_pattern():
    setup = set_up(made(frozen_dtype="int8", adapt={}, optimizer=SGD(freeze=("encoders_image/*/kernel",))), None, jax_mesh())
    own = leaves_by_path(setup.trained_shapes())
    assert not [path for path in own if path.endswith(SCALE)] and f"{UP}/bias" in own and f"{UP}/kernel" not in own


def jax_mesh():
    return tiny.ONE.build(jax.devices()[:1])
