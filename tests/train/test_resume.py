"""Stopped by a signal, then killed: the run that goes on is the run that was never stopped, bit for bit."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import tiny

from mmjax.train import Checkpoint
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.metrics import read_lines

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
SPEED = re.compile(r".*_per_second$|model_flops_used$")  # figures of the clock


class Command:
    """`mmjax train` on the tiny experiment in a process of its own."""

    def __init__(self, compiled: Path, workdir: Path):
        self.workdir = workdir
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        flags = ["--steps", str(STEPS), "--checkpoint.every", "5", "--optimizer.momentum", "0.9", "--workdir", str(workdir)]
        words = [sys.executable, "-m", "mmjax.cli", "train", tiny.__file__, *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(words, env=environment, **pipes)

    def lines(self) -> int:
        metrics = self.workdir / "metrics.jsonl"
        return len(read_lines(metrics)) if metrics.exists() else 0

    def at_line(self, line: int, sent: signal.Signals) -> None:
        """Send a signal as soon as that many steps are written."""
        while self.lines() < line and self.process.poll() is None:
            time.sleep(0.001)
        self.process.send_signal(sent)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


def figures(workdir: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if not SPEED.match(k)} for line in read_lines(workdir / "metrics.jsonl")]


def last_params(workdir: Path):
    checkpoints = Checkpoints(workdir / "checkpoints", Checkpoint(), read_only=True)
    return checkpoints.params(STEPS)[0]


def test_a_run_that_was_stopped_and_killed_equals_one_that_was_not(compiled, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, out, err = Command(compiled, whole).end()
    assert status == 0, err

    stopped = Command(compiled, broken)
    stopped.at_line(random.randrange(3, 12), signal.SIGTERM)
    status, _, err = stopped.end()
    assert status == 0, err
    step = int(re.search(r"stopped by a signal; saved step (\d+)", err)[1])
    assert (broken / "checkpoints" / str(step)).is_dir() and step < STEPS
    assert [line["step"] for line in figures(broken)] == list(range(1, step + 1))

    killed = Command(compiled, broken)
    at = random.randrange(step + 2, 45)
    killed.at_line(at, signal.SIGKILL)
    status, _, err = killed.end()
    assert status == -signal.SIGKILL, err
    assert f"going on from step {step} in" in err

    status, out_again, err = Command(compiled, broken).end()
    assert status == 0, err
    assert "going on from step" in err
    assert figures(broken) == figures(whole), f"killed at line {at}"
    assert len(figures(whole)) == STEPS
    tiny.assert_identical(last_params(broken), last_params(whole))
    assert json.loads(out_again) == json.loads(out)
    assert (broken / "final.json").read_text() == (whole / "final.json").read_text()
