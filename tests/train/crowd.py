"""One of several processes that train: the command line with every batch's checksums written down, or several meshes in turn.

`python crowd.py RECORD train CONFIG ...` is `mmjax train CONFIG ...`, and so with `evaluate`.
`python crowd.py RECORD meshes FOLDER NAME,.. FLAGS ...` trains on each of `MESHES` named, a run folder each, so that one start
of the processes serves them all.
"""

import dataclasses
import json
import sys
import time
import zlib
from pathlib import Path

import tiny

from mmjax import cli
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.multihost import joined
from mmjax.train import SGD, train
from mmjax.train.setup import Setup

STEPS = 30
# name -> (mesh, whether neighbouring devices are of different processes)
MESHES = {
    "data": (Mesh(data=-1), False),
    "fsdp x tensor": (Mesh(data=1, fsdp=-1, tensor=2), False),
    "fsdp x tensor across": (Mesh(data=1, fsdp=-1, tensor=2), True),
    "sequence": (Mesh(data=-1, sequence=2), False),
    "sequence across": (Mesh(data=-1, sequence=2), True),
    "slices": (Mesh(slice=2), True),
}


class Recorded:
    """A stream of batches; the checksum of each row goes into a file of this process's."""

    def __init__(self, stream, step, path):
        self._stream, self._step, self._path = stream, step, path

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._stream)
        rows = {
            int(row): zlib.crc32(b"".join(batch[key][i].tobytes() for key in sorted(batch)))
            for i, row in enumerate(batch["index"])
        }
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": self._step, "rows": rows}) + "\n")
        self._step += 1
        time.sleep(0.02)  # slow enough for a signal to come between two steps
        return batch

    def close(self):
        self._stream.close()


def record(path: str) -> None:
    batches = Setup.batches
    Setup.batches = lambda self, name, start: Recorded(batches(self, name, start), start, path)


def experiment(every: bool = False, **changes):
    """Two objectives on the plainest layer there is; or all of digits'."""
    plain = tiny.small_model(norm="rmsnorm", activation="relu", bias=False, qkv_bias=False)
    chosen = {"model": tiny.model(), "tasks": tiny.tasks(*tiny.FOUR)} if every else {"model": plain}
    return tiny.experiment(
        **chosen, optimizer=SGD(learning_rate=0.03, schedule="constant"), steps=STEPS, evaluate={}, **changes
    )


def train_on(folder: Path, names: list[str]) -> None:
    build = Mesh.build
    for name in names:
        mesh, across = MESHES[name.removesuffix(" all")]
        Mesh.build = lambda self, devices=None, across=across: build(self, ordered(across))
        made = experiment(name.endswith(" all"), mesh=mesh)
        train(dataclasses.replace(made, checkpoint=dataclasses.replace(made.checkpoint, every=1000)), folder / name)


def ordered(across: bool):
    """The devices by process, or those of the processes in turn."""
    import jax

    devices = jax.devices()
    return sorted(devices, key=lambda d: (d.id % 2048, d.process_index)) if across else devices


def main() -> int:
    path, what, *words = sys.argv[1:]
    if path != "-":
        record(path)
    if what != "meshes":
        return cli.main([what, *words])
    folder, names, *flags = words
    with joined(cli._join(flags)):
        train_on(Path(folder), names.split(","))
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.exit(status)
