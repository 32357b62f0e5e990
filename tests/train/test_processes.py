"""Several processes are one run: the same losses and batches on any mesh, stopped together, killed, and gone on with on fewer.

Real processes on the CPU's collectives, each with a few virtual devices. `crowd.py` is what they run.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import crowd
import numpy as np
import pytest
import tiny

from mmjax.train import train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.evaluate import evaluate_run
from mmjax.train.experiment import Checkpoint
from mmjax.train.metrics import read_lines

ROOT = Path(__file__).resolve().parents[2]
STEPS = 80
FLAGS = ["--steps", str(STEPS), "--evaluate_every", "40", "--checkpoint.every", "40", "--optimizer.learning_rate", "0.03"]
# Layers of both kinds: what is frozen is written apart, on every disk, and read by other processes.
FLAGS += ["--model.encoders.image.depth", "2", "--optimizer.freeze", "encoders_image/*[:1]", "encoders_text/words/*"]


class Crowd:
    """Processes that run `crowd.py` with the same words."""

    def __init__(self, compiled: Path, record: Path | None, words: list[str], processes: int = 2, devices: int = 2):
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        together = ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--peer_timeout", "8"]
        self.processes = []
        for number in range(processes):
            path = "-" if record is None else str(record / f"{number}.jsonl")
            joining = [*together, "--process", str(number)] if processes > 1 else []
            command = [sys.executable, crowd.__file__, path, *words, *joining]
            self.processes.append(subprocess.Popen(command, **pipes))

    def signal_at(self, run: Path, line: int, number: int, sent: signal.Signals) -> None:
        """Send a signal to one process once the run has written that step."""
        began = time.monotonic()
        while last_step(run) < line:
            assert time.monotonic() - began < 240, f"step {line} never came"
            assert all(process.poll() is None for process in self.processes), "\n".join(map(str, self.end()))
            time.sleep(0.01)
        self.processes[number].send_signal(sent)

    def end(self) -> list[tuple[int, str, str]]:
        """(exit status, standard output, standard error) of each."""
        said = [process.communicate(timeout=1500) for process in self.processes]
        return [(process.returncode, *text) for process, text in zip(self.processes, said, strict=True)]


def last_step(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return max((line["step"] for line in read_lines(metrics)), default=0) if metrics.exists() else 0


def curve(run: Path) -> dict[str, np.ndarray]:
    """Each loss over the steps; every step once."""
    lines = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {name: np.array([line[name] for line in lines]) for name in lines[0] if name.startswith("loss")}


def measured(run: Path) -> list[dict]:
    return [line for line in read_lines(run / "metrics.jsonl") if "prompted/accuracy" in line]


def assert_same_losses(one: Path, other: Path) -> None:
    expected, found = curve(one), curve(other)
    assert expected.keys() == found.keys() and len(expected) >= 3
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=0, err_msg=f"{name} in {other}")


def rows_of(record: Path) -> dict[int, dict[int, int]]:
    """step -> row -> checksum, from every process that wrote to a folder; who made a row twice made the same."""
    found: dict[int, dict[int, int]] = {}
    for path in sorted(record.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            for row, checksum in said["rows"].items():
                assert found.setdefault(said["step"], {}).setdefault(int(row), checksum) == checksum, (path, said["step"], row)
    return found


def check_meshes(compiled, tmp_path, names, processes=2, devices=2, which=""):
    words = ["meshes", str(tmp_path), ",".join(f"{name} / {which}" for name in names)]
    crowded = Crowd(compiled, None, words, processes, devices)
    train(crowd.experiment(which), tmp_path / "one")  # meanwhile, on one device here
    for number, (status, _, err) in enumerate(crowded.end()):
        assert status == 0, (number, err)
        assert number == 0 or err == "", err  # only process 0 prints
    assert len(curve(tmp_path / "one")["loss"]) == crowd.STEPS
    for name in names:
        assert_same_losses(tmp_path / "one", tmp_path / name)


@pytest.mark.usefixtures("single")
def test_two_processes_give_the_losses_of_one(compiled, tmp_path):
    """Rows that do not lie together, and rows that two processes share."""
    check_meshes(compiled, tmp_path, ["slices", "fsdp x tensor across"])


@pytest.mark.usefixtures("single")
def test_two_processes_adapt_as_one(compiled, tmp_path):
    check_meshes(compiled, tmp_path, ["fsdp x tensor across"], which="adapted")


@pytest.mark.slow
@pytest.mark.usefixtures("single")
@pytest.mark.parametrize(("processes", "devices"), [(2, 4), (4, 2)])
def test_more_devices_and_processes_give_the_losses_of_one(compiled, tmp_path, processes, devices):
    check_meshes(compiled, tmp_path, list(crowd.MESHES), processes, devices)


@pytest.mark.slow
@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("which", ["all", "rest"])
def test_every_objective_gives_the_losses_of_one(compiled, tmp_path, which, processes):
    check_meshes(compiled, tmp_path, ["data", "fsdp x tensor across", "sequence across"], processes, 2, which)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_alike(compiled, tmp_path):
    flags = ["--optimizer.learning_rate", "1e30", "--steps", "20", "--evaluate_every", "0", "--workdir", str(tmp_path / "run")]
    ended = Crowd(compiled, None, ["train", tiny.__file__, *flags]).end()
    lines = [err.splitlines()[-1] for _, _, err in ended]
    assert [status for status, _, _ in ended] == [2, 2], ended
    assert lines[0].startswith("mmjax: step ") and "is not finite" in lines[0]
    assert lines[1].removeprefix("mmjax: process 0: ").removeprefix("mmjax: ") == lines[0].removeprefix("mmjax: ")


@pytest.mark.slow
def test_a_time_budget_stops_all_at_one_step(compiled, tmp_path):
    """Process 0 looks at its clock, and JAX's preemption service tells the others."""
    run = tmp_path / "run"
    budget = ["--hooks.budget", "time_budget", "--hooks.budget.seconds", "20"]
    flags = ["--steps", "100000", "--evaluate_every", "0", "--checkpoint.every", "100000", "--workdir", str(run), *budget]
    (status, _, err), (other, _, silent) = Crowd(compiled, None, ["train", tiny.__file__, *flags]).end()
    assert (status, other, silent) == (0, 0, ""), err
    step = int(re.search(r"stopped after hooks\.budget\.seconds=20; saved step (\d+)", err)[1])
    assert Checkpoints(run / "checkpoints", Checkpoint(), read_only=True).steps() == [step] and step < 100000


def words_of(folder):
    """Words of a run in a folder, by one process, and by several that save to disks of their own."""
    words = ["train", tiny.__file__, *FLAGS, "--workdir", str(folder / "run")]
    own = ["--mesh.data", "1", "--mesh.fsdp", "4", "--checkpoint.local", str(folder / "disk"), "--checkpoint.local_every", "4"]
    return words, [*words, *own]


def killed(compiled, record, both, run, number):
    """What all said once one was killed a few steps on, and how long that took."""
    crowded = Crowd(compiled, record, both)
    crowded.signal_at(run, last_step(run) + 12, number, signal.SIGKILL)
    began = time.monotonic()
    said = crowded.end()
    assert said[number][0] == -signal.SIGKILL and said[1 - number][0] != 0
    assert time.monotonic() - began < 60
    return said[1 - number][2]


@pytest.fixture(scope="module")
def story(compiled, tmp_path_factory):
    """One run: process 1 killed; gone on with, and stopped by a signal to process 1; finished by a single process. What each
    part said and saved, beside a run that one process did in one go."""
    folder = tmp_path_factory.mktemp("story")
    run, whole, record = folder / "run", folder / "whole", [folder / f"record_{i}" for i in range(4)]
    for path in record:
        path.mkdir()
    words, both = words_of(folder)
    told = {"folder": folder, "run": run, "whole": whole}

    alone = Crowd(compiled, record[0], [*words[:-1], str(whole)], 1, 1)  # meanwhile
    told["peer killed"] = killed(compiled, record[1], both, run, 1)
    told["whole said"] = alone.end()

    crowded = Crowd(compiled, record[2], both)
    crowded.signal_at(run, last_step(run) + 6, 1, signal.SIGTERM)
    told["stopped"] = crowded.end()
    told["saved"] = Checkpoints(run / "checkpoints", Checkpoint(), read_only=True).steps()

    told["finished"] = Crowd(compiled, record[3], [*words, "--mesh.data", "1"], 1, 1).end()
    return told


def test_a_signal_to_any_process_stops_all_at_one_step(story):
    (status, out, err), (other, _, silent) = story["stopped"]
    assert (status, other, silent) == (0, 0, "") and "{" not in out, err
    step = int(re.search(r"stopped by a signal; saved step (\d+)", err)[1])
    assert story["saved"][-1] == step and 6 <= step < STEPS
    assert f"going on from step {step} in {story['run']}" in story["finished"][0][2]


def test_a_killed_process_ends_the_others_with_one_line(story):
    err = story["peer killed"]
    assert err.splitlines()[-1].startswith("mmjax: process 1 has died or cannot be reached (no sign of life for 8 s)")
    assert "Check failure" not in err


@pytest.mark.slow
def test_a_killed_coordinator_ends_the_others_with_one_line(compiled, tmp_path):
    err = killed(compiled, None, words_of(tmp_path)[1], tmp_path / "run", 0)
    assert len(err.splitlines()) == 1 and err.startswith("mmjax: process 0, which coordinates, has died"), err


def test_the_same_processes_go_on_from_their_own_disks(story):
    err = story["stopped"][0][2]
    found = re.search(rf"going on from step (\d+) in {re.escape(str(story['folder'] / 'disk'))}", err)
    assert found and int(found[1]) % 4 == 0, err


def test_one_process_goes_on_where_two_were(story):
    status, out, err = story["finished"][0]
    assert status == 0 and "going on from step" in err, err
    assert_same_losses(story["whole"], story["run"])
    assert measured(story["run"]) == measured(story["whole"]) and len(measured(story["run"])) == 2
    assert json.loads(out.splitlines()[-1]) == json.loads(story["whole said"][0][1].splitlines()[-1])


def test_batches_are_identical_whoever_makes_them(story):
    expected = rows_of(story["folder"] / "record_0")
    assert sorted(expected) == list(range(STEPS)) and all(len(rows) == 16 for rows in expected.values())
    for part in range(1, 4):
        found = rows_of(story["folder"] / f"record_{part}")
        assert all(rows.items() <= expected[step].items() for step, rows in found.items()), part
        # A process that is killed reads no more; its peer may be a few steps ahead before it notices.
        steps = sorted(found)
        whole = [step for step in steps if len(found[step]) == 16]
        assert whole and whole == steps[: len(whole)], part
    made = json.loads((story["folder"] / "record_1" / "1.jsonl").read_text().splitlines()[0])["rows"]
    assert len(made) == 8  # each process reads its own half


def test_several_processes_evaluate_as_one(story, compiled):
    """The run was finished on a mesh of one device: one of all devices is written in."""
    config = json.loads((story["run"] / "config.json").read_text())
    config["mesh"]["data"] = -1
    (story["run"] / "config.json").write_text(json.dumps(config))
    (status, out, err), (other, silent, nothing) = Crowd(compiled, None, ["evaluate", str(story["run"])]).end()
    assert (status, other, nothing) == (0, 0, ""), err
    assert "{" not in silent
    final = json.loads((story["run"] / "final.json").read_text())
    del final["data"]
    assert json.loads(out.splitlines()[-1]) == final


@pytest.mark.usefixtures("single")
def test_several_processes_write_the_texts_of_one(compiled, tmp_path):
    """The likeliest, the best of beams and drawn ones, the parameters split over both processes."""
    run = tmp_path / "run"
    train(tiny.captioner(steps=30, evaluate={}, evaluate_every=0, checkpoint=Checkpoint(every=30)), run)
    flags = ["--mesh.data", "1", "--mesh.fsdp", "4"]
    for name, setting in {"greedy": "min_length 1", "beams": "num_beams 3", "drawn": "do_sample true"}.items():
        asked = f"--evaluate.{name}.settings"
        flags += [f"--evaluate.{name}", "captions", f"{asked}.max_new_tokens", "6", *f"{asked}.{setting}".split()]
    both = Crowd(compiled, None, ["evaluate", str(run), *flags, "--predictions", str(tmp_path / "both")]).end()
    assert [status for status, _, _ in both] == [0, 0], both
    evaluate_run(run, flags=["--mesh.data", "1", "--mesh.fsdp", "1", *flags[4:]], predictions=tmp_path / "one")
    told, there = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("one", "both"))
    assert [row.pop("text") for row in told] == [row.pop("text") for row in there] and len(told) == 3 * 360
    likely, own = (np.array([row.pop("log_likelihood") for row in rows]) for rows in (told, there))
    np.testing.assert_allclose(own, likely, rtol=1e-5)
    assert told == there
