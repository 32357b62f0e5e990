"""`mmjax predict` on JPEGs against the run's own evaluator on the same files: the same answers, how fast, and how much memory.

    python benchmarks/predict.py [--rounds 3] [--images 2000]

A ViT of width 192 and 6 layers at 96 pixels, trained for a step; JPEGs of 400 x 300. Both commands are started anew each time,
in turns, on all the files and on a tenth of them: images a second are what the difference in files takes, so start and
compilation count for neither; `first_answer_s` has them. `grown_MiB` is what ten times the files add to the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIG = """
from mmjax.data import Data, Manifest, Normalise, Resize
from mmjax.evaluate import Report
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.train import Checkpoint, Experiment, Task


def data(file: str) -> Data:
    return Data(Manifest(file, "all"), (Resize((96, 96)), Normalise((0.5,) * 3, (0.5,) * 3)), batch_size=32)


def experiment() -> Experiment:
    vit = ViT(image_size=(96, 96), patch=(16, 16), width=192, heads=3, depth=6)
    return Experiment(
        model=Multimodal(encoders={"image": vit}, heads={"classes": Classifier(classes=10)}),
        data={"train": data("few.jsonl"), "few": data("few.jsonl"), "all": data("all.jsonl")},
        tasks={"classes": Task(Classification())},
        steps=1,
        evaluate={"report": Report(data="few")},
        evaluate_every=0,
        checkpoint=Checkpoint(every=1),
    )
"""


def pictures(folder: Path, count: int) -> None:
    """JPEGs, a tenth of them in `few` and the others in `rest`, with a manifest of the former and of all."""
    rng, lines = np.random.default_rng(0), []
    for n in range(count):
        part = "few" if n < count // 10 else "rest"
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        file = folder / "photos" / part / f"{n:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small.resize((400, 300), Image.Resampling.BICUBIC).save(file, quality=90)
        lines.append(json.dumps({"image": f"photos/{part}/{file.name}", "label": f"class {n % 10}"}) + "\n")
    (folder / "few.jsonl").write_text("".join(lines[: count // 10]))
    (folder / "all.jsonl").write_text("".join(lines))


def command(folder: Path, *words: str) -> dict[str, float]:
    """Run `mmjax` there: seconds in all and to the first line that it prints, and the peak of its memory in MiB."""
    start, first = time.perf_counter(), 0.0
    with subprocess.Popen([sys.executable, "-m", "mmjax.cli", *words], cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while process.stdout.readline():
            first = first or time.perf_counter() - start
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return {"seconds": time.perf_counter() - start, "first": first, "MiB": used.ru_maxrss / 1024}


def same(folder: Path) -> dict[str, Any]:
    """Whether each file is taken for the same class by both, and how far their likelihoods differ."""
    told = [json.loads(row) for row in (folder / "evaluated.jsonl").read_text().splitlines()]
    said = [json.loads(row)["classes"][0] for row in (folder / "predicted.jsonl").read_text().splitlines()]
    assert [one["index"] for one in told] == list(range(len(said)))
    equal = [one["predicted"] == own["label"] for one, own in zip(told, said, strict=True)]
    off = max(abs(one["score"] - own["score"]) for one, own in zip(told, said, strict=True))
    return {"images": len(equal), "equal": sum(equal), "classes": len({own["label"] for own in said}), "off_at_most": off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000)
    given = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures(folder, given.images)
        (folder / "config.py").write_text(CONFIG)
        command(folder, "train", "config.py", "--workdir", "run")
        for _ in range(given.rounds):
            for out in ("evaluated.jsonl", "predicted.jsonl"):
                (folder / out).unlink(missing_ok=True)
            found = {
                "predict": (
                    command(folder, "predict", "run", "photos/few"),
                    command(folder, "predict", "run", "photos/few", "photos/rest", "--out", "predicted.jsonl"),
                ),
                "evaluate": (
                    command(folder, "evaluate", "run", "--data", "few"),
                    command(folder, "evaluate", "run", "--data", "all", "--predictions", "evaluated.jsonl"),
                ),
            }
            more = given.images - given.images // 10
            speed = {name: more / (large["seconds"] - small["seconds"]) for name, (small, large) in found.items()}
            small, large = found["predict"]
            own = {"ratio": speed["predict"] / speed["evaluate"], "first_answer_s": small["first"], "MiB": large["MiB"]}
            rounds.append({**speed, **own, "grown_MiB": large["MiB"] - small["MiB"]})
            print(json.dumps({key: round(value, 3) for key, value in rounds[-1].items()}), flush=True)
        medians = {key: round(statistics.median(one[key] for one in rounds), 3) for key in rounds[0]}
        print(json.dumps({**medians, **same(folder)}))


if __name__ == "__main__":
    main()
