"""1, 2 and 4 real processes, joined over the CPU's collectives, take the same global batches of every format from any step on.

`many.py` is what they run: one launch for each number of processes.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import many
import pytest
from pictures import written

ROOT = Path(__file__).resolve().parents[2]


def taken(root: Path, processes: int) -> dict[str, list[int]]:
    """What `many.py` writes; each of the processes has put together the same."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "data"), str(ROOT / "tests" / "train")]),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={4 // processes}",
        "MMJAX_CACHE": str(root / "cache"),
    }
    running = []
    for number in range(processes):
        joining = ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--process", str(number)]
        out = str(root / f"{processes}.{number}.json")
        command = [sys.executable, many.__file__, str(root), out, *(joining if processes > 1 else [])]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment))
    said = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(said)
    found = [json.loads((root / f"{processes}.{number}.json").read_text()) for number in range(processes)]
    assert all(own == found[0] for own in found), "the processes put together different batches"
    return found[0]


@pytest.mark.slow
def test_real_processes_take_the_same_batches_of_every_format_and_go_on_with_those_of_another_number(tmp_path):
    written(tmp_path)
    one = taken(tmp_path, 1)
    assert len(one) == 30 and all(len(set(steps)) == len(steps) for steps in one.values()), sorted(one)
    for processes in (1, 2, 4):
        found = one if processes == 1 else taken(tmp_path, processes)
        assert found.keys() == one.keys()
        for name, steps in found.items():
            case, _, start = name.rpartition(", ")
            whole = one[f"{case}, 0"]
            assert steps == whole[int(start) :], f"{processes} processes, {name}"
