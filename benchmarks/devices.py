"""One device, eight devices and two processes of four on this machine: seconds a step and memory of the same run.

    python benchmarks/devices.py [CONFIG] [--rounds 3] [--steps 120]

Each is `mmjax train CONFIG` in processes of its own, in turns; the devices are virtual and share this machine's cores, so what
is seen is what it costs to split a step and to put it together again, not how it speeds up. Seconds are of the middle half of
a run, memory is the most that a process held, all processes added. All three train on the same global batches.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mmjax.train.metrics import read_lines

WAYS = {"1 device": (1, 1), "8 devices": (1, 8), "2 processes of 4": (2, 4)}  # processes, devices of each
WINDOWS = 4


def main() -> None:
    """Run all three in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="digits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for name, (processes, devices) in WAYS.items():
                run = Path(folder) / f"{number} {name}"
                bytes_held = trained(args.config, run, args.steps, processes, devices)
                windows = [line for line in read_lines(run / "metrics.jsonl") if "steps_per_second" in line]
                seconds = [1 / line["steps_per_second"] for line in windows[1:-1]]
                found[name].append({"seconds": statistics.median(seconds), "loss": windows[-1]["loss"], "bytes": bytes_held})
    heads = ("ms a step", "minimum", "memory GB", "loss")
    print(f"{args.config}, {args.steps} steps".ljust(24) + "".join(head.rjust(14) for head in heads))
    rows = {}
    for name, runs in found.items():
        seconds = [one["seconds"] for one in runs]
        held = statistics.median(one["bytes"] for one in runs)
        rows[name] = {"ms": 1e3 * statistics.median(seconds), "min_ms": 1e3 * min(seconds), "gb": held / 1e9}
        rows[name]["loss"] = runs[-1]["loss"]
        assert len({one["loss"] for one in runs}) == 1, f"{name}: {runs}"  # the same bits each time
        print(name.ljust(24) + "".join(f"{value:14.{9 if key == 'loss' else 2}f}" for key, value in rows[name].items()))
    print(json.dumps({"config": args.config, "rounds": args.rounds, "steps": args.steps, **rows}))


def trained(config: str, run: Path, steps: int, processes: int, devices: int) -> float:
    """Train in so many processes; bytes that they held at most."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    words = ["train", config, "--workdir", str(run), "--steps", str(steps), "--log.every", str(steps // WINDOWS)]
    words += ["--evaluate_every", str(steps), "--checkpoint.every", str(steps)]
    started = []
    for number in range(processes):
        joining = ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--process", str(number)]
        command = [sys.executable, "-m", "mmjax.cli", *words, *(joining if processes > 1 else [])]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    held = 0
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, f"mmjax train {config} ended with {os.waitstatus_to_exitcode(status)}"
        held += 1024 * usage.ru_maxrss  # kilobytes on Linux
    return float(held)


if __name__ == "__main__":
    main()
