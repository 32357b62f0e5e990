"""What `captioner` and `scenes_vqa` reach on scenes of digits that training never saw, over seeds, and without the picture.

    python benchmarks/scenes.py [captioner scenes_vqa] [--seeds 3]

Each run is trained as `mmjax train NAME --seed N` does it. Beside its figures on the 2000 test scenes: `seconds`, from start
to last figure, compilation and evaluations included; `kinds`, of each kind of question the share that was chosen rightly;
`blank`, the same run asked about pictures of nothing but background. And of the scenes alone: `by_the_question`, the best that
anyone can do who hears the question and sees no picture (each question's most frequent answer in 20,000 training scenes), and
`chance`, the most frequent answer of all.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import mmjax
from mmjax.data import Scenes
from mmjax.evaluate.texts import exact_match
from mmjax.train import Log, train
from mmjax.train.config_file import load_config

SEEN = 20_000  # training scenes from which the most frequent answers are counted
ASKED = 500  # scenes of which blank pictures are shown


def trained(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The figures of one run."""
    start = time.perf_counter()
    log = Log(every=100, tensorboard=False, progress=False)
    metrics = train(dataclasses.replace(load_config(name), seed=seed, log=log), folder)
    seconds = time.perf_counter() - start
    wanted = ("captions/exact_match", "captions/cider_d", "chosen/accuracy", "written/vqa_accuracy")
    found: dict[str, Any] = {key: round(metrics[key], 4) for key in wanted if key in metrics}
    ask = mmjax.Predictor(folder, batch_size=100)
    records = Scenes("test", ASKED).build()
    scenes = [records[n] for n in range(ASKED)]
    blank = [np.full_like(scene["image"], 30) for scene in scenes]
    if name == "captioner":
        written = ask.generate(images=blank, max_new_tokens=28)
        right: Any = exact_match(written, [[scene["caption"]] for scene in scenes])
    else:
        chosen = ask.classify(blank, [scene["question"] for scene in scenes], top_k=1)
        right = [row[0]["label"] == scene["answer"] for row, scene in zip(chosen, scenes, strict=True)]
        found["kinds"] = kinds(folder)
    return {"config": name, "seed": seed, "seconds": round(seconds), **found, "blank": round(float(np.mean(right)), 4)}


def kinds(folder: Path) -> dict[str, float]:
    """Of each kind of question the share that was answered rightly by choosing."""
    records, right = Scenes("test", 2000).build(), collections.defaultdict(list)
    for row in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines()):
        if row["evaluator"] == "chosen":
            right[records[row["index"]]["kind"]].append(row["predicted"] == row["label"])
    return {kind: round(float(np.mean(one)), 3) for kind, one in sorted(right.items())}


def unseen() -> dict[str, dict[str, float]]:
    """What the test scenes alone allow: without a picture, and without the question as well."""
    train_scenes, test = Scenes("train", SEEN).build(), Scenes("test", 2000).build()
    found = {}
    for name, asked, said in (("scenes_vqa", "question", "answer"), ("captioner", "", "caption")):
        answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for n in range(SEEN):
            scene = train_scenes[n]
            answers[scene[asked] if asked else ""][scene[said]] += 1
        whole = sum(answers.values(), collections.Counter[str]()).most_common(1)[0][0]
        scenes = [test[n] for n in range(2000)]
        best = [answers[scene[asked] if asked else ""].most_common(1)[0][0] == scene[said] for scene in scenes]
        chance = float(np.mean([scene[said] == whole for scene in scenes]))
        found[name] = {"by_the_question": float(np.mean(best)), "chance": chance} if asked else {"chance": chance}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["captioner", "scenes_vqa"])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps({"without_a_picture": unseen()}), flush=True)
    for name in args.configs:
        runs = []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(trained(name, seed, Path(folder) / "run"))
            print(json.dumps(runs[-1]), flush=True)
        numbers = [key for key, value in runs[0].items() if isinstance(value, int | float) and key != "seed"]
        means = {key: round(statistics.mean(run[key] for run in runs), 4) for key in numbers}
        print(json.dumps({"config": name, "mean_of": args.seeds, **means}), flush=True)


if __name__ == "__main__":
    main()
