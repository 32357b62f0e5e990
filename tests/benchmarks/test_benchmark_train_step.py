import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
TINY = {
    "batch": 3,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "mlp_width": 32,
    "image": 8,
    "patch": 4,
    "vocabulary": 20,
    "tokens": 4,
}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("train_step_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_sides_take_turns_and_the_warm_up_is_not_counted(benchmark):
    calls = []
    sides = {"torch": lambda: calls.append("A"), "mmjax": lambda: calls.append("B")}
    seconds = benchmark.alternate(sides, steps=3, warmup=2)
    assert "".join(calls) == "AB" * 5
    assert {name: len(values) for name, values in seconds.items()} == {"torch": 3, "mmjax": 3}


def test_ratios_are_peer_over_ours(benchmark):
    summary = benchmark.summarise({"torch": [4.0, 3.0, 8.0], "mmjax": [2.0, 3.0, 2.0]})
    assert summary["torch"] == {"median_s": 4.0, "min_s": 3.0, "steps_s": [4.0, 3.0, 8.0]}
    assert (summary["ratio_of_medians"], summary["ratio_of_minima"], summary["ratio_of_pairs"]) == (2.0, 1.5, 2.0)
    assert "2.000x" in benchmark.table(summary, batch=8)
    assert "ratio" not in benchmark.table(benchmark.summarise({"torch": [1.0]}), batch=8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peer_trains(benchmark, capsys, dtype):
    pytest.importorskip("torch", reason="the peer is PyTorch's")
    setting = benchmark.Setting(**TINY, learning_rate=1e-2, dtype=dtype)
    step = benchmark.torch_step(setting)
    losses = [step() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert "taking f" in capsys.readouterr().out
    image, text = setting.data()
    assert image.shape == (3, 8, 8, 3) and text.shape == (3, 4)
    np.testing.assert_array_equal(image, setting.data()[0])


def test_both_sides_compute_in_the_dtype_that_is_asked_for(benchmark, monkeypatch):
    """The first losses are of random models, and of one size; in bfloat16 each differs a little from its own in float32."""
    torch = pytest.importorskip("torch", reason="the peer is PyTorch's")
    seen = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: seen.append(linear(*args)) or seen[-1])
    losses = {}
    for dtype in ("float32", "bfloat16"):
        setting = benchmark.Setting(**TINY, dtype=dtype)
        losses["torch", dtype] = benchmark.torch_step(setting)()
        assert seen[0].dtype == getattr(torch, dtype)
        seen.clear()
        losses["mmjax", dtype] = benchmark.jax_step(setting)()
    for side in ("torch", "mmjax"):
        exact, rounded = losses[side, "float32"], losses[side, "bfloat16"]
        assert exact != rounded and rounded == pytest.approx(exact, rel=0.05)


def test_the_processor_is_named(benchmark):
    assert benchmark.processor()
