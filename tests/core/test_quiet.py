"""Lines of other libraries stay off the terminal while they work for mmjax, and are left alone where they work for the user."""

import gc
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mmjax.core import quiet

ROOT = Path(__file__).resolve().parents[2]
OURS, THEIRS = "/site-packages/orbax/checkpoint/reader.py", "/home/user/orbax_notes.py"
SCRIPT = """
import importlib.util, sys

find = importlib.util.find_spec  # as where PyTorch is not installed
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
import mmjax, tiny
from mmjax.convert.api import to_hf
from mmjax.train import Checkpoint, train
from mmjax.train.evaluate import evaluate_run

here = sys.argv[1]
own_disk = Checkpoint(local=f"{here}/near", local_every=1)
experiment = tiny.experiment(tasks=tiny.tasks("classify"), steps=2, checkpoint=own_disk)
train(experiment, f"{here}/run")
evaluate_run(f"{here}/run")
mmjax.load(f"{here}/run")
to_hf(f"{here}/run", f"{here}/hf")
model, params = mmjax.load(f"{here}/hf/image")
mmjax.save_hf(model, params, f"{here}/again")
"""


class Orbax:
    """Stands for what works with orbax; the loggers are real."""

    def __init__(self):
        self.end = quiet.orbax(self)


def heard(name, path, level=logging.WARNING, message="Metadata file does not exist"):
    """Whether a message gets through that a file logs."""
    logger, through = logging.getLogger(name), []
    handler = logging.Handler()
    handler.emit = through.append
    logger.addHandler(handler)
    logger.handle(logger.makeRecord(name, level, path, 1, message, (), None))
    logger.removeHandler(handler)
    return bool(through)


@pytest.mark.parametrize("logger", ["absl", "root"])
def test_what_orbax_logs_is_dropped_while_it_works_for_us(logger, monkeypatch):
    for name in ("absl", "root"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])  # other tests' checkpoints may still be open
    assert heard(logger, OURS)
    first, second = Orbax(), Orbax()
    assert not heard(logger, OURS) and not heard(logger, OURS, logging.ERROR)
    assert heard(logger, THEIRS)
    first.end()
    assert not heard(logger, OURS)
    del second
    gc.collect()
    assert heard(logger, OURS)
    first.end()  # again does nothing
    assert heard(logger, OURS)


def test_the_advice_to_install_pytorch_is_dropped_and_nothing_else():
    quiet.transformers()
    assert not heard("transformers", "", message="PyTorch was not found. Models won't be available")
    assert heard("transformers", "", message="the tokenizer has no chat template")
    assert heard("of the user", "", message="PyTorch was not found")


def test_what_is_written_past_python_is_seen_where_it_fails(monkeypatch, capfd):
    def start():
        os.write(2, b"no such chip\n")
        raise RuntimeError("nothing to compute on")

    monkeypatch.setattr(jax, "devices", start)
    monkeypatch.setattr(quiet, "_has_tpu", lambda: False)
    monkeypatch.setattr(quiet.importlib.util, "find_spec", lambda name: name)
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    try:
        with pytest.raises(RuntimeError, match="nothing to compute on"):
            quiet.devices()
        assert capfd.readouterr().err == "no such chip\n"
        monkeypatch.setattr(jax, "devices", lambda: [os.write(2, b"no such chip\n")])
        assert quiet.devices() == [13] and capfd.readouterr().err == ""
    finally:
        jax.config.update("jax_platforms", platforms)


def test_a_script_prints_nothing_but_what_is_ours(tmp_path):
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    path = f"{ROOT}:{ROOT / 'tests' / 'train'}"
    # JAX finds out by itself what there is to compute on; libtpu is installed here.
    environment = {"PATH": "", "PYTHONPATH": path, "HOME": str(tmp_path)}
    environment |= {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    first, *others = [line for line in done.stderr.splitlines() if not line.startswith(("data.", "heads.", "no task reads"))]
    assert "parameters, 2 steps on 1 cpu device" in first
    assert [line.split(":")[0] for line in others] == ["final, checkpoint 2 on test"]
