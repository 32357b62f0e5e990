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
from mmjax.adapt import LoRA
from mmjax.data import Data, Digits, NextSentence, Normalise
from mmjax.data.sources.digits import DigitsRecords
from mmjax.models import Multimodal
from mmjax.models.decoders import PixelDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.fusion import Dual
from mmjax.models.heads import Classifier
from mmjax.objectives import Alignment, MaskedImage, NextSentencePrediction, Triplet
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.multihost import joined
from mmjax.train import SGD, Task, train
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


def experiment(which: str = "", **changes):
    """Two objectives on the plainest layer there is; `all` of digits'; the `rest` that there are; or the first two on an
    `adapted` model."""
    if which == "all":
        chosen = {"model": tiny.model(), "tasks": tiny.tasks(*tiny.FOUR)}
    elif which == "rest":
        chosen = rest()
    elif which == "adapted":
        adapt = {
            "encoders_image/*/attention/*": LoRA(r=3, alpha=6, dropout=0.1),
            "encoders_image/*/mlp/*": LoRA(r=2, dora=True),
        }
        chosen = {"model": tiny.small_model(depth=2), "adapt": adapt}
    else:
        chosen = {"model": tiny.small_model(norm="rmsnorm", activation="relu", bias=False, qkv_bias=False)}
    # A triplet loss adds up many hinges: at the rate of the others it magnifies rounding tenfold within 30 steps.
    rate = 0.01 if which == "rest" else 0.03
    train = ("heads_*", "fusions_*") if which == "adapted" else ()
    optimizer = SGD(learning_rate=rate, schedule="constant", train=train)
    return tiny.experiment(**chosen, optimizer=optimizer, steps=STEPS, evaluate={}, **changes)


def rest():
    """Objectives that digits does not have, on its images and on pairs of sentences about them."""
    model = Multimodal(
        encoders={"image": tiny.vit(), "text": TextTransformer(**tiny.TEXT, **tiny.SIZE, segments=2)},
        fusions={"dual": Dual(width=16)},
        decoders={"pixels": PixelDecoder(image_size=(8, 8), patch=(4, 4), **tiny.SIZE)},
        heads={"next_sentence": Classifier(classes=2, input="text")},
    )
    objectives = {
        "triplet": Triplet(mining="all"),
        "alignment": Alignment(uniformity=0.1),  # so that the loss does not pass through zero
        "masked_image": MaskedImage(patch=(4, 4), mask_ratio=0.5),
        "next_sentence": NextSentencePrediction(),
    }
    data = Data(Told(), (Normalise((0.3,) * 3, (0.35,) * 3), NextSentence()), batch_size=16, max_length=tiny.LENGTH, threads=0)
    return {"model": model, "tasks": {name: Task(objective) for name, objective in objectives.items()}, "data": {"train": data}}


@dataclasses.dataclass(frozen=True)
class Told(Digits):
    """The digits, with two sentences on each."""

    def build(self):
        digits = super().build()
        return ToldRecords(digits.images, digits.labels)


class ToldRecords(DigitsRecords):
    def __getitem__(self, index, /):
        record = super().__getitem__(index)
        return {**record, "text": f"Here is a {record['name']}. It is {record['label']}."}

    def texts(self):
        return (self[i]["text"] for i in range(len(self)))


def train_on(folder: Path, names: list[str]) -> None:
    build = Mesh.build
    for name in names:
        where, _, which = name.partition(" / ")
        mesh, across = MESHES[where]
        Mesh.build = lambda self, devices=None, across=across: build(self, ordered(across))
        made = experiment(which, mesh=mesh)
        train(dataclasses.replace(made, checkpoint=dataclasses.replace(made.checkpoint, every=1000)), folder / where)


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
