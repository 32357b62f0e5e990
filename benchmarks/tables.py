"""What a table of very many lines costs: seconds until it is open, the first time and the second, and memory with workers.

    python benchmarks/tables.py [--lines 1e7] [--workers 4] [--format jsonl]

The lines (an image's path, a caption, one of 100 classes; about 110 bytes) are made up in a temporary folder, which is deleted
at the end, the cache with it. All paths, no two of which are written alike, lead to one small image. Every opening is in a
process of its own, after its imports. `open_s` and `cpu_s` are seconds for the records of the split train, `first_batch_s`
until the workers, started then, have given a batch of 256. MB are Private_Dirty of /proc/PID/smaps_rollup, of the process and
all its workers: what no other process has and no file holds (`clean_MB`: Private_Clean, pages of files, which can be read
again). `held_MB` is that at the end, `peak_MB` the largest sum seen; `bare` is a table of 1,000 lines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FEW = 1000


def write(path: Path, lines: int) -> None:
    """The table and the image."""
    import numpy as np
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path.parent / "a.png")
    own = [f".{'/' * (1 + digit)}" for digit in range(4)]
    halves = ["".join(own[number >> 2 * place & 3] for place in range(6)) for number in range(4**6)]
    names = [f"class {number}" for number in range(100)]
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("image,text,label\n")
        for number in range(lines):
            image, text, label = (
                f"{halves[number >> 12]}{halves[number & 4095]}a.png",
                f"a dog, {number} of them",
                names[number % 97],
            )
            if path.suffix == ".csv":
                file.write(f'{image},"{text}",{label}\n')
            else:
                file.write(f'{{"image": "{image}", "text": "{text}", "label": "{label}"}}\n')


def private(process: int) -> tuple[float, float]:
    """Megabytes, dirty and clean, that a process and those it has started have alone."""
    dirty = clean = 0.0
    waiting = [process]
    while waiting:
        one = waiting.pop()
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            tasks = list(Path(f"/proc/{one}/task").iterdir())
            waiting += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except (OSError, ValueError):
            continue
        found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Private")}
        dirty, clean = dirty + found["Private_Dirty:"], clean + found["Private_Clean:"]
    return dirty, clean


def one(path: str, workers: int) -> dict[str, float]:
    """Open it and take batches."""
    from mmjax.data import Data, Manifest, Normalise, Strings

    start, begin = time.perf_counter(), time.process_time()
    source = Manifest(path)
    records = source.build()
    opened, cpu = time.perf_counter() - start, time.process_time() - begin
    size = len(records)
    del records
    data = Data(source, (Normalise(),), batch_size=256, workers=workers, columns={"text": Strings(rows=1, length=64)})
    start = time.perf_counter()
    with data.build(None, 0).batches() as batches:
        next(batches)
        first = time.perf_counter() - start
        for _ in range(50):
            next(batches)
        start = time.perf_counter()
        for _ in range(200):
            next(batches)
        rate = 200 * 256 / (time.perf_counter() - start)
        dirty, clean = private(os.getpid())
    told = {"records": size, "open_s": opened, "cpu_s": cpu, "first_batch_s": first, "records_s": rate}
    return {name: round(value, 2) for name, value in {**told, "held_MB": dirty, "clean_MB": clean}.items()}


def watched(words: list[str], environment: dict[str, str]) -> dict[str, float]:
    """What `one` says in a process of its own, and the most memory that was seen."""
    peak = 0.0
    with subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, private(process.pid)[0])
            time.sleep(0.1)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(process.returncode)
    return {**json.loads(lines[-1]), "peak_MB": round(peak)}


def main() -> None:
    """One JSON object: opening -> figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=float, default=1e7)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    parser.add_argument("--path", help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.path:
        print(json.dumps(one(own.path, own.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, dict[str, float]] = {}
        environment = {**os.environ, "MMJAX_CACHE": str(Path(folder) / "cache")}
        for name, lines in (("bare", FEW), ("first", int(own.lines)), ("second", int(own.lines))):
            path = Path(folder) / f"{lines}.{own.format}"
            if not path.exists():
                write(path, lines)
            words = [sys.executable, __file__, "--path", str(path), "--workers", str(own.workers)]
            found[name] = {**watched(words, environment), "file_MB": round(path.stat().st_size / 1e6)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
