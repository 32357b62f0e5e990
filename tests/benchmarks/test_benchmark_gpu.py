"""`benchmarks/gpu.py` without a card: tiny shapes on the CPU, and what it says when something is wrong."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.convert.huggingface import build_model
from mmjax.models import param_shapes
from mmjax.train.config_file import load_config

HERE = Path(__file__).parents[2] / "benchmarks"
MODULES = ("train_step", "gpu_processes", "gpu_steps", "gpu_digits", "gpu_attention", "gpu")
ABOUT = {
    "platform": "gpu",
    "device": "NVIDIA H100 80GB HBM3",
    "memory_gb": 80.0,
    "torch_cuda": True,
    "versions": {"jax": "0.11.2", "torch": "2.13.0"},
}


@pytest.fixture(scope="module")
def scripts():
    """The scripts as modules, by name."""
    sys.path.insert(0, str(HERE))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(HERE))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def gpu(scripts, monkeypatch):
    """gpu.py on a machine that has a card, as it is told."""
    monkeypatch.setattr(scripts["gpu"], "probe", lambda environment: ABOUT)
    monkeypatch.setattr(scripts["gpu"], "driver", lambda: {"driver": "580.65"})
    return scripts["gpu"]


def command(*words, **environment):
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    asked = [sys.executable, str(HERE / "gpu.py"), *words]
    return subprocess.run(asked, capture_output=True, text=True, env={**os.environ, **quick, **environment}, check=False)


def run(gpu, monkeypatch, capsys, *words):
    """Exit status, the JSON object, what stands on standard error."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    status = gpu.main()
    said = capsys.readouterr()
    return status, said.out and json.loads(said.out.splitlines()[-1]), said.err, said.out


class Fake:
    """A child that has its answers ready."""

    def __init__(self, result=None, losses=(), seconds=0.1):
        self.first, self._result, self._losses, self._seconds = {}, result, list(losses), seconds

    def result(self):
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def answer(self):
        if isinstance(self._result, Exception):
            raise self._result
        return dict(self._result)

    def ask(self, line):
        if line == "memory":
            return {"peak_bytes": 10**10}
        return {"seconds": [9.0] + [self._seconds] * 4, "losses": [self._losses.pop(0)] * 5}

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass


def test_tiny_shapes_on_the_cpu():
    done = command("--cpu", "--rounds", "1", "--parts", "attention", "captioner")
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"device", "driver", "versions", "total_s"} <= found.keys() and found["versions"]["jax"] == jax.__version__
    assert found["tiny"] and not found["outside"] and found["seconds"].keys() == {"attention", "captioner"}
    kinds = {row["kind"] for row in found["attention"]["rows"]}
    assert {"plain bfloat16", "fused bfloat16", "splash bfloat16"} <= kinds
    sides = found["captioner"]
    if importlib.util.find_spec("torch") is None:
        assert "torch" not in sides and sides["mmjax"]["last_loss"] < sides["mmjax"]["loss"]
        return
    assert sides["torch"]["loss"] == pytest.approx(sides["mmjax"]["loss"], rel=2e-3)
    assert sides["torch"]["gradient_norm"] == pytest.approx(sides["mmjax"]["gradient_norm"], rel=1e-2)
    for side in ("torch", "mmjax"):
        assert len(sides[side]["steps_s"]) == 4 and sides[side]["last_loss"] < sides[side]["loss"]


@pytest.mark.slow
def test_all_of_it_on_the_cpu():
    done = command("--cpu")
    assert done.returncode == 0, done.stderr + done.stdout
    assert {"digits", "attention", "siglip", "captioner"} <= json.loads(done.stdout.splitlines()[-1]).keys()


def test_no_card_is_the_users_mistake_in_one_line():
    done = command("--parts", "digits")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"JAX {jax.__version__} sees no GPU here, only cpu: install mmjax[gpu]")


def test_its_help_says_the_command():
    done = command("--help")
    assert done.returncode == 0 and "python benchmarks/gpu.py" in done.stdout and "--cpu" in done.stdout


def test_digits_is_run_in_the_dtype_it_is_asked_for(scripts):
    digits = scripts["gpu_digits"]
    assert digits.variant("auto:default", 3, tiny=False).model.dtype == "auto"
    made = digits.variant("bfloat16:default", 3, tiny=True)
    assert made.model.dtype == "bfloat16" and made.seed == 3
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        losses = digits.losses(made, 3)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert len(losses) == 3 and np.isfinite(losses).all()


def digits_of(gpu, monkeypatch, device):
    children = iter([Fake({"float32:highest": [2.0, 1.0]}), Fake(device)])
    monkeypatch.setattr(gpu, "start", lambda *rest, **more: next(children))


def test_losses_within_their_bands(gpu, monkeypatch, capsys):
    near = {"float32:highest": [2.0001, 1.0], "float32:default": [2.0, 1.004], "auto:default": [2.0, 1.004]}
    digits_of(gpu, monkeypatch, near)
    status, found, err, _ = run(gpu, monkeypatch, capsys, "--parts", "digits")
    assert status == 0 and err == "" and found["digits"]["auto:default"]["off"] == pytest.approx(0.004)


@pytest.mark.parametrize("loss", [1.01, float("nan")])
def test_a_loss_outside_its_band_is_one_line(gpu, monkeypatch, capsys, loss):
    near = [2.0, 1.0]
    digits_of(gpu, monkeypatch, {"float32:highest": near, "float32:default": near, "auto:default": [2.0, loss]})
    status, found, err, _ = run(gpu, monkeypatch, capsys, "--parts", "digits")
    assert status == 1 and err.startswith("digits auto:default is off by") and len(err.splitlines()) == 1
    assert found["outside"] == [err.strip()]


def test_a_kernel_outside_its_bound_is_named(gpu, monkeypatch, capsys):
    row = {"case": "text", "auto": "cudnn", "kind": "cudnn bfloat16", "error": 0.5, "bound": 0.01, "within": False}
    monkeypatch.setattr(gpu, "start", lambda *rest, **more: Fake([row]))
    status, _, err, out = run(gpu, monkeypatch, capsys, "--parts", "attention")
    assert status == 1 and err == "attention, text, cudnn bfloat16: 5.0e-01, bound 1e-02\n" and "5.0e-01/1e-02!" in out


def steps_of(gpu, monkeypatch, **sides):
    started = []

    def start(script, words, environment, lines=False):
        started.append(words)
        return sides[words[-1]]

    monkeypatch.setattr(gpu, "start", start)
    return started


FIRST = {"loss": 8.0, "gradient_norm": 2.0, "set_up_s": 1.0, "batch": 64}


def test_sides_take_turns_and_the_first_step_of_a_turn_is_not_counted(gpu, monkeypatch, capsys):
    sides = {"torch": Fake(FIRST, [7.0, 6.0], 0.4), "mmjax": Fake({**FIRST, "loss": 8.05}, [7.0, 6.1], 0.2)}
    started = steps_of(gpu, monkeypatch, **sides)
    status, found, _, out = run(gpu, monkeypatch, capsys, "--parts", "siglip", "--rounds", "2")
    assert status == 0 and [words[-1] for words in started] == ["torch", "mmjax"]
    assert all("--eager" not in words and "128" in words for words in started)  # what fits 80 GB
    ours = found["siglip"]["mmjax"]
    assert ours["examples_per_second"] == pytest.approx(64 / 0.2) and ours["peak_bytes"] == 10**10
    assert ours["steps_s"] == [0.2] * 8 and found["siglip"]["ratio_of_medians"] == pytest.approx(2.0) and "2.000x" in out


@pytest.mark.parametrize(
    ("changed", "last", "said"),
    [
        ({"loss": 8.2}, 6.0, "siglip: first losses 8.2 and PyTorch's 8 are more than 1% apart"),
        ({"gradient_norm": 2.2}, 6.0, "siglip: norms of the first gradient 2.2 and PyTorch's 2 are more than 3% apart"),
        ({}, 7.0, "siglip: losses after all steps 7 and PyTorch's 6 are more than 5% apart"),
        ({"loss": float("nan")}, 6.0, "siglip: first losses nan and PyTorch's 8 are more than 1% apart"),
    ],
)
def test_sides_that_do_not_agree_are_told(gpu, monkeypatch, capsys, changed, last, said):
    steps_of(gpu, monkeypatch, torch=Fake(FIRST, [6.0]), mmjax=Fake({**FIRST, **changed}, [last]))
    status, _, err, _ = run(gpu, monkeypatch, capsys, "--parts", "siglip", "--rounds", "1")
    assert (status, err) == (1, said + "\n")


def test_a_pytorch_without_cuda_is_said_and_ours_measured_alone(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "probe", lambda environment: {**ABOUT, "torch_cuda": False})
    started = steps_of(gpu, monkeypatch, mmjax=Fake(FIRST, [7.0]))
    status, found, _, out = run(gpu, monkeypatch, capsys, "--parts", "captioner", "--rounds", "1")
    assert status == 0 and len(started) == 1 and "torch" not in found["captioner"]
    assert "PyTorch 2.13.0 here has no CUDA device: ours is measured alone" in out


def test_a_part_that_fails_does_not_lose_the_others(gpu, scripts, monkeypatch, capsys):
    failed = scripts["gpu_processes"].ChildError("RuntimeError: no kernel image")
    monkeypatch.setattr(gpu, "start", lambda script, *rest, **more: Fake(failed if "attention" in script else FIRST, [7.0]))
    monkeypatch.setattr(gpu, "peerless", lambda *rest: "no peer")
    status, found, err, _ = run(gpu, monkeypatch, capsys, "--parts", "attention", "siglip", "--rounds", "1")
    assert (status, err) == (1, "attention failed: RuntimeError: no kernel image\n")
    assert found["attention"] == {"error": "RuntimeError: no kernel image"} and "mmjax" in found["siglip"]


def test_a_process_that_fails_says_its_exception_in_one_line(scripts):
    processes = scripts["gpu_processes"]
    code = "import sys; print('noise', file=sys.stderr); raise MemoryError('RESOURCE_EXHAUSTED: 9 GB\\n  of memory')"
    for how in ("result", "answer"):
        child = processes.Child([sys.executable, "-c", code], {}, lines=True)
        with child, pytest.raises(processes.ChildError) as error:
            getattr(child, how)()
        assert str(error.value) == "MemoryError: RESOURCE_EXHAUSTED: 9 GB (a smaller --batch takes less memory)"


def test_a_process_that_hangs_is_ended(scripts, monkeypatch):
    processes = scripts["gpu_processes"]
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    for how in ("result", "answer"):
        child = processes.Child([sys.executable, "-c", "import time; time.sleep(60)"], {}, lines=False)
        with child, pytest.raises(processes.ChildError, match=r"no answer within 0\.2 s"):
            getattr(child, how)()


def test_float64_is_what_torch_gives(scripts):
    """The exact attention, of values and gradients, against PyTorch's own."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    attention = scripts["gpu_attention"]
    case = attention.Case("", 5, 8, heads=4, kv_heads=2, width=8, mask="right", causal=True)
    x = case.inputs()
    q, k, v, upstream = (
        torch.from_numpy(x[n].astype(np.float64)).transpose(1, 2).requires_grad_() for n in ("q", "k", "v", "upstream")
    )
    seen = torch.from_numpy(x["mask"])[:, None, None, :] & torch.ones(5, 8).tril(3).bool()
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    out.backward(upstream.detach())
    for ours, theirs in zip(attention.exact(case, x), (out, q.grad, k.grad, v.grad), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().transpose(1, 2).numpy(), atol=1e-12)


def test_every_kind_of_call_is_among_the_cases(scripts):
    cases = scripts["gpu_attention"].CASES
    assert {case.mask for case in cases} == {"none", "ones", "right", "any", "blind"}
    assert {True, False} == {case.causal for case in cases} == {case.segments for case in cases}
    assert {n % 2 for case in cases for n in (case.tokens, case.attended)} == {0, 1}
    assert any(case.tokens < case.attended and case.causal for case in cases)


def test_siglips_converted_model_is_the_shipped_configs(scripts):
    steps, shipped = scripts["gpu_steps"], load_config("siglip_b16").model
    _, model, _ = build_model(steps.config("siglip", steps.SIGLIP))
    shapes = [jax.tree.map(lambda leaf: leaf.shape, param_shapes(each)) for each in (model, shipped)]
    assert shapes[0] == shapes[1]
    assert {tower.remat for tower in shipped.encoders.values()} == {"cheap"}  # the default of --remat


def test_the_batch_fits_the_card(scripts):
    sizes = {gb: scripts["gpu"].batch_that_fits({"memory_gb": gb}) for gb in (16, 24, 40, 48, 80, 141)}
    assert sizes == {16: 16, 24: 32, 40: 64, 48: 64, 80: 128, 141: 128}
