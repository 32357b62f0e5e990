"""What the order of very many records costs a host: memory, open files, and seconds until its first batch.

    python benchmarks/index.py [--records 1e10] [--shards 1000000] [--hosts 256]

The records are made up when they are asked for (a whole number each), so that nothing but the order and the pipeline is
measured; they lie in equal shards. The host in the middle takes its rows of a global batch of 16 a host, far into the stream,
as a run does that goes on. Each way of drawing runs in a process of its own. MB are what the process holds more than before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROWS = 16  # a host
WAYS = ("records", "blocks", "mix")


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """A source of `count` numbers in `shards` blocks."""

    count: int
    shards: int

    def build(self) -> Numbers:
        return Numbers(self)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Its records."""

    source: MadeUp
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.source.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"number": index % 2**31}

    def blocks(self) -> np.ndarray:
        return np.full(self.source.shards, self.source.count // self.source.shards, np.int64)

    def texts(self) -> Iterator[str]:
        return iter(())

    def fingerprint(self) -> str:
        return repr(self.source)


def memory() -> float:
    """Megabytes that this process holds."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def one(way: str, records: int, shards: int, hosts: int) -> dict[str, float]:
    """Open it as the host in the middle, far into the stream, and take batches."""
    from mmjax.data import Data, Mix

    before, start = memory(), time.perf_counter()
    source = MadeUp(records - records % shards, shards)
    mixed = Mix({"a": source, "b": MadeUp(1_000_000, 100)}, {"a": 9.0, "b": 1.0}) if way == "mix" else source
    data = Data(mixed, batch_size=ROWS * hosts, order="blocks" if way == "blocks" else "records")
    host, step = hosts // 2, 3 * records // (ROWS * hosts) // 2
    with data.build(None, 0).batches(step, range(host * ROWS, (host + 1) * ROWS)) as batches:
        next(batches)
        first = time.perf_counter() - start
        begin = time.perf_counter()
        for _ in range(200):
            next(batches)
        rate = 200 / (time.perf_counter() - begin)
        files = len(os.listdir("/proc/self/fd"))
    return {"MB": round(memory() - before, 1), "first_batch_s": round(first, 3), "batches_s": round(rate), "open_files": files}


def main() -> None:
    """One JSON object: way of drawing -> figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=float, default=1e10)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--hosts", type=int, default=256)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.way:
        print(json.dumps(one(own.way, int(own.records), own.shards, own.hosts)))
        return
    words = [sys.executable, __file__, "--records", str(own.records), "--shards", str(own.shards), "--hosts", str(own.hosts)]
    found = {}
    for way in WAYS:
        done = subprocess.run([*words, "--way", way], check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
