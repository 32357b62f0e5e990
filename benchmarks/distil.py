"""What a teacher is worth: a student a quarter as wide, with a tenth of the labels, with it and without, in pairs of seeds.

    python benchmarks/distil.py [--seeds 5] [--steps 400]

The teacher is a ViT of width 64 on all labels of the digits' training split; the student one of width 16, for which a tenth
of them (115) are left. Without its teacher the student trains on the labelled digits alone, a whole batch of them a step, which
is more labels a step than beside the teacher. Each side's learning rate is the best of three on the validation split with a
seed of its own; the pairs are then measured on the test split at the last step. A pair has one seed: the same first
parameters. Printed: each pair, the mean difference, and its 95% interval by Student's t of the pairs. About 15 minutes on 2
cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mmjax.data import Data, Digits, HideLabels, Normalise, Resize
from mmjax.data.types import Record
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.heads import Classifier
from mmjax.nn.augment import ImageAugment
from mmjax.objectives import Classification, DistilLogits
from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task, Teacher, train

WIDTH, RATES, TUNED_ON = 64, (2e-3, 5e-3, 1e-2), 1000
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by how many pairs


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The records of a `HideLabels` that have kept their label, and no others."""

    source: HideLabels

    def build(self) -> LabelledRecords:
        records = self.source.build()
        return LabelledRecords(records, [int(i) for i in records.labelled.nonzero()[0]])


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledRecords:
    """See `Labelled`."""

    records: Any
    rows: list[int]

    @property
    def classes(self) -> tuple[str, ...]:
        classes: tuple[str, ...] = self.records.classes
        return classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Record:
        record: Record = self.records[self.rows[index]]
        return record

    def texts(self) -> Any:
        return iter(())

    def fingerprint(self) -> str:
        return f"labelled {self.records.fingerprint()}"


def data(source: Any, size: int = 120) -> Data:
    return Data(source, (Resize((16, 16), "bilinear"), Normalise((0.3,) * 3, (0.35,) * 3)), batch_size=size)


def experiment(width: int, train_on: dict[str, Data], tasks: dict[str, Task], rate: float, steps: int, seed: int) -> Experiment:
    return Experiment(
        model=Multimodal(
            encoders={"image": ViT(image_size=(16, 16), patch=(4, 4), width=width, depth=3, heads=4, unroll=True)},
            heads={"classes": Classifier(classes=10, input="image")},
            augment={"image": ImageAugment(rotate=10.0, shift=0.08, scale=(0.9, 1.1))},
        ),
        data=train_on | {split: data(Digits(split)) for split in ("validation", "test")},
        tasks=tasks,
        optimizer=AdamW(learning_rate=rate, warmup_steps=50, weight_decay=0.05, ema=0.98),
        steps=steps,
        seed=seed,
        evaluate={"report": Report()},
        checkpoint=Checkpoint(every=steps),
        log=Log(every=steps, tensorboard=False, progress=False),
    )


def student(teacher: Path | None, rate: float, steps: int, seed: int) -> Experiment:
    """With a teacher on all digits and the labels of a tenth; without on that tenth."""
    hidden = HideLabels(Digits("train"), keep=0.1)
    streams, tasks = {"train": data(Labelled(hidden), 64)}, {"classes": Task(Classification())}
    if teacher is not None:
        streams["all"] = data(hidden, 128)
        tasks["distil"] = Task(DistilLogits(temperature=2.0), data="all")
    made = experiment(WIDTH // 4, streams, tasks, rate, steps, seed)
    return dataclasses.replace(made, teachers={"teacher": Teacher(str(teacher), "float32")} if teacher is not None else {})


def accuracy(e: Experiment, folder: Path, split: str = "test") -> float:
    return train(dataclasses.replace(e, test_data=split), folder)["report/accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(T_95))
    parser.add_argument("--steps", type=int, default=400)
    own = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        root, steps = Path(place), own.steps
        whole = {"train": data(Digits("train"), 128)}
        taught = experiment(WIDTH, whole, {"classes": Task(Classification())}, 2e-3, steps, 0)
        print(f"teacher, width {WIDTH}, all labels: {accuracy(taught, root / 'teacher'):.4f}", flush=True)
        sides, rates = {"without": None, "with": root / "teacher"}, {}
        for side, teacher in sides.items():
            found = {
                rate: accuracy(student(teacher, rate, steps, TUNED_ON), root / f"{side}_{rate}", "validation") for rate in RATES
            }
            rates[side] = max(found, key=lambda rate: found[rate])
            shown = ", ".join(f"{rate:g}: {value:.4f}" for rate, value in found.items())
            print(f"{side} its teacher, validation by learning rate: {shown}; {rates[side]:g} is taken", flush=True)
        pairs = []
        for seed in range(own.seeds):
            pair = [
                accuracy(student(teacher, rates[side], steps, seed), root / f"{side}_seed{seed}")
                for side, teacher in sides.items()
            ]
            pairs.append(pair)
            print(f"seed {seed}: without {pair[0]:.4f}, with {pair[1]:.4f}, difference {pair[1] - pair[0]:+.4f}", flush=True)
    differences = [b - a for a, b in pairs]
    mean, half = statistics.mean(differences), T_95[len(pairs)] * statistics.stdev(differences) / math.sqrt(len(pairs))
    print(
        f"mean difference {mean:+.4f}, 95% interval {mean - half:+.4f} to {mean + half:+.4f}; {time.monotonic() - began:.0f} s"
    )
    print(json.dumps({"pairs": pairs, "mean": mean, "interval": [mean - half, mean + half], "rates": rates}))


if __name__ == "__main__":
    main()
