"""Real processes that join, agree, wait for each other and end together; each case is two or three of them."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmjax.core.errors import UserError
from mmjax.parallel import multihost
from mmjax.parallel.multihost import Join, agree, barrier, check_clocks, check_versions, gather, is_main, told
from mmjax.parallel.native_errors import filter_lines

PEER = Path(__file__).parent / "peer.py"
ROOT = Path(__file__).resolve().parents[2]
CASES = {  # word -> (processes, those that are started), those that wait longest first
    "missing": (3, (0, 2)),
    "no coordinator": (2, (1,)),
    "kill 1": (2, (0, 1)),
    "late": (2, (0, 1)),
    "differ": (3, (0, 1, 2)),  # after they have talked
    "clock": (2, (0, 1)),
    "version": (2, (0, 1)),
    "mistake": (3, (0, 1, 2)),
    "defect": (2, (0, 1)),
    "kill 0": (2, (0, 1)),
}


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def ended():
    """word -> process -> (exit status, standard output, lines of standard error, seconds): all cases, a few at a time."""
    waiting, running, done = list(CASES), {}, {}
    while waiting or running:
        while waiting and len(running) < 5:  # most of the time they wait for each other
            word = waiting.pop(0)
            running[word] = start(word, time.monotonic())
        for word, (processes, began) in list(running.items()):
            if all(process.poll() is not None for process in processes.values()):
                said = {number: process.communicate() for number, process in processes.items()}
                seconds = time.monotonic() - began
                done[word] = {
                    number: (processes[number].returncode, out, err.splitlines(), seconds)
                    for number, (out, err) in said.items()
                }
                del running[word]
            assert time.monotonic() - began < 120, f"{word} hangs"
        time.sleep(0.05)
    return done


def start(word, began):
    port, (count, present) = str(free_port()), CASES[word]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    words = [sys.executable, str(PEER), word, port, str(count)]
    return {number: subprocess.Popen([*words, str(number)], **pipes) for number in present}, began


def test_processes_hear_each_other(ended):
    for number, (_, out, _, _) in ended["differ"].items():
        assert json.loads(out) == {"gathered": [{"mine": 0}, {"mine": 10}, {"mine": 20}], "told": 5, "main": number == 0}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("late", "mmjax: process 1 did not come to 'the bridge' within 1.5 s"),
        ("differ", "mmjax: process 1 and process 0 differ in the plan: model/depth is 3 there and 2 on process 0"),
        ("clock", "mmjax: process 1 and process 0 differ in their clocks by 100 s (more than 60): "),
        ("version", "mmjax: process 1 and process 0 differ in versions: optax is '9.9' there and '"),
        ("missing", "mmjax: 1 of 3 processes did not join localhost:"),
    ],
)
def test_what_goes_wrong_is_one_line_on_every_process(ended, word, said):
    for number, (status, out, err, _) in ended[word].items():
        assert (status, len(out.splitlines()), len(err)) == (2, word == "differ", 1), (number, err)
        assert err[0].startswith(said), (number, err)


def test_who_is_missing_is_named(ended):
    assert all(
        "within 12 s: missing 1; start the same command on all of them" in err[0] for _, _, err, _ in ended["missing"].values()
    )


def test_a_process_that_finds_no_coordinator_says_so(ended):
    status, _, err, seconds = ended["no coordinator"][1]
    assert status == 2 and len(err) == 1 and seconds < 60
    assert err[0].startswith("mmjax: process 1 of 2 found no process 0 at localhost:") and "within 12 s" in err[0]


def test_a_mistake_on_one_process_ends_all_with_its_line(ended):
    assert ended["mistake"][1][::2] == (2, ["mmjax: no such folder: /data"])
    for number in (0, 2):
        assert ended["mistake"][number][::2] == (2, ["mmjax: process 1: no such folder: /data"])


def test_a_defect_on_one_process_keeps_its_traceback_there(ended):
    status, _, err, _ = ended["defect"][1]
    assert status == 1 and err[0].startswith("Traceback") and err[-1] == "mmjax: process 1 failed: ValueError: a defect"
    assert ended["defect"][0][::2] == (1, ["mmjax: process 1 failed: ValueError: a defect"])


@pytest.mark.parametrize(
    ("word", "left", "said"),
    [
        ("kill 1", 0, "mmjax: process 1 has died or cannot be reached (no sign of life for 6 s)"),
        ("kill 0", 1, "mmjax: process 0, which coordinates, has died or cannot be reached"),
    ],
)
def test_a_dead_peer_is_named_without_a_native_stack(ended, word, left, said):
    status, _, err, seconds = ended[word][left]
    assert status not in (0, None) and len(err) == 1 and err[0].startswith(said), err
    assert seconds < 60


def test_a_single_process_passes_through():
    assert multihost.start(Join(processes=1)) is False and is_main()
    assert gather("x", 3) == [3] and told("x", {"a": (1,)}) == {"a": (1,)}
    barrier("x")
    agree("x", {"a": 1})
    check_versions()
    check_clocks()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"processes": 0}, "--processes 0: give 1 or more"),
        ({"coordinator": "a:1"}, "--processes, --process is missing"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "--coordinator a: give HOST:PORT"),
        (
            {"coordinator": "a:65536", "processes": 2, "process": 0},
            "--coordinator a:65536: give HOST:PORT of process 0, with a",
        ),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--process 2: the 2 processes are numbered from 0"),
        ({"join_timeout": 0.0}, "--join_timeout 0: give seconds"),
    ],
)
def test_mistaken_flags(flags, said):
    with pytest.raises(UserError) as caught:
        Join(**flags)
    assert str(caught.value).startswith(said)


def test_a_cluster_is_found_by_its_variables(monkeypatch):
    slurm = {
        "SLURM_JOB_ID": "12345",
        "SLURM_STEP_NODELIST": "gpu[07-09]",
        "SLURM_NTASKS": "6",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    address, count, number, devices = multihost._place(Join())
    assert (address.split(":")[0], count, number, devices) == ("gpu07", 6, 3, [1])
    assert multihost._place(Join(processes=1))[1] == 1
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert multihost._place(Join())[1] == 1


NATIVE = """Compiling.
E1122 08:11:45.418385 3457 coordination_service.cc:1549] [1077] Use error polling to propagate the following error to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
The tasks have crashed. Check the task logs for an earlier error, or scheduler events (e.g. preemption, eviction) to debug further.
F1122 08:11:45.418988 3468 client.h:80] Terminating process because the JAX distributed service detected fatal errors. absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1, 3
The tasks have crashed.
*** Check failure stack trace: ***
    @     0x7f9797e40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""  # noqa: E501


def test_native_reports_become_one_line():
    shown = list(filter_lines(NATIVE.splitlines(keepends=True), 0, 10.0))
    assert shown[0] == "Compiling.\n" and len(shown) == 2
    assert shown[1].startswith("mmjax: process 1, 3 has died or cannot be reached (no sign of life for 10 s); what was saved")


def test_other_native_lines_pass_and_nothing_follows_the_last_line():
    lines = ["W0000 00:00:00.1 12 cpu_compiler.cc:9] slow\n", "[Gloo] odd\n", "mmjax: the end\n", "F1122 0 0 client.h:80] x\n"]
    assert list(filter_lines(lines, 0, 10.0)) == lines[:3]
