"""What small models reach on four tasks of texts, made of what `Scenes` says of its scenes, beside the most frequent answer.

    python benchmarks/text_tasks.py [spans texts labels relations] [--seeds 1] [--write FOLDER]

Each run is trained as `mmjax train NAME` does it, from nothing (`spans` in windows of 28 tokens). Captions are as "a red three
top left and a blue zero bottom right"; 8,000 scenes are learned from, and 1,000 that training never saw are asked about:

- `spans`: what colour is the three? where is it? which digit is top left? A fifth of the questions is about a digit that the
  caption has not. A caption of four digits takes two windows. Metric: F1.
- `texts`: does "there is a three" follow, is it contradicted, or is nothing said ("the three is small")? Metric: accuracy.
- `labels`: which colours are in the lower half? Metric: micro F1.
- `relations`: is one digit left of, right of, above or below another, or across? Metric: accuracy.

`chance` is the same metric of the answer that is most frequent in training. `--write` leaves the files for `mmjax train NAME`.
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

from mmjax.data.sources import language
from mmjax.data.sources.language import COLOURS, PLACES, Seen
from mmjax.evaluate.texts import f1
from mmjax.train import Log, train
from mmjax.train.config_file import apply_flags, load_config

NAMES = language.NAMES
COUNTS = {"train": 8000, "validation": 1000}
METRICS = {"spans": "answers/f1", "texts": "classes/accuracy", "labels": "labels/micro_f1", "relations": "relations/accuracy"}
SHORT = "--model.encoders.text.max_length 28" + "".join(  # so that a caption of four digits takes two windows
    f" --data.{split}.max_length 28 --data.{split}.columns.answers.stride 8 --data.{split}.columns.answers.max_question 12"
    for split in COUNTS
)
Row = dict[str, Any]


def scenes(split: str) -> list[tuple[tuple[Seen, ...], str]]:
    """What is in each scene, and its caption; no caption of one split is in the other."""
    rng = np.random.default_rng(0)
    known: dict[str, list[tuple[tuple[Seen, ...], str]]] = {"train": [], "validation": []}
    while len(known["train"]) < COUNTS["train"] or len(known["validation"]) < COUNTS["validation"]:
        count = int(rng.integers(2, len(PLACES) + 1))
        places = sorted(rng.permutation(len(PLACES))[:count].tolist())
        digits, colours = rng.permutation(10)[:count].tolist(), rng.integers(len(COLOURS), size=count).tolist()
        seen = tuple(Seen(*one) for one in zip(places, digits, colours, strict=True))
        caption = language.caption(seen)
        known["validation" if sum(caption.encode()) % 9 == 0 else "train"].append((seen, caption))
    return known[split][: COUNTS[split]]


def place_of(caption: str, one: Seen, word: str) -> int:
    """Where a word of one digit's phrase begins."""
    phrase = language.phrase(one)
    return caption.index(phrase) + phrase.index(word)


def spans(split: str) -> list[Row]:
    """SQuAD's questions."""
    rng, rows = np.random.default_rng(1), []
    for seen, caption in scenes(split):
        one = seen[int(rng.integers(len(seen)))]
        kinds = (
            (f"what colour is the {NAMES[one.digit]}?", COLOURS[one.colour]),
            (f"where is the {NAMES[one.digit]}?", PLACES[one.place]),
            (f"which digit is {PLACES[one.place]}?", NAMES[one.digit]),
        )
        question, answer = kinds[int(rng.integers(3))]
        if rng.random() < 0.2:
            absent = sorted(set(range(10)) - {other.digit for other in seen})
            question, answer = f"what colour is the {NAMES[absent[int(rng.integers(len(absent)))]]}?", ""
        answers = [{"text": answer, "answer_start": place_of(caption, one, answer)}] if answer else []
        rows.append({"context": caption, "qas": [{"question": question, "answers": answers, "is_impossible": not answers}]})
    return rows


def texts(split: str) -> list[Row]:
    """Pairs, and whether the second follows."""
    rng, rows = np.random.default_rng(2), []
    for number, (seen, caption) in enumerate(scenes(split)):
        one = seen[int(rng.integers(len(seen)))]
        digit, kind = one.digit, ("follows", "contradicted", "not said")[number % 3]
        if kind == "contradicted":
            absent = sorted(set(range(10)) - {other.digit for other in seen})
            digit = absent[int(rng.integers(len(absent)))]
        pair = f"the {NAMES[digit]} is small" if kind == "not said" else f"there is a {NAMES[digit]}"
        rows.append({"text": caption, "text_pair": pair, "label": kind, "split": split})
    return rows


def labels(split: str) -> list[Row]:
    """The colours of the lower half."""
    found = [(caption, {COLOURS[one.colour] for one in seen if one.place >= 2}) for seen, caption in scenes(split)]
    return [{"text": caption, "labels": sorted(colours), "split": split} for caption, colours in found]


def relations(split: str) -> list[Row]:
    """Where the first of two digits is from the second."""
    rng, rows = np.random.default_rng(3), []
    for seen, caption in scenes(split):
        head, tail = (seen[int(n)] for n in rng.permutation(len(seen))[:2])
        same_row, same_column = head.place // 2 == tail.place // 2, head.place % 2 == tail.place % 2
        label = "across"
        if same_row:
            label = "left of" if head.place < tail.place else "right of"
        elif same_column:
            label = "above" if head.place < tail.place else "below"
        row: Row = {"text": caption, "label": label, "split": split}
        for key, one in (("head", head), ("tail", tail)):
            start = place_of(caption, one, NAMES[one.digit])
            row[key] = [start, start + len(NAMES[one.digit])]
        rows.append(row)
    return rows


def write(name: str, folder: Path) -> dict[str, str]:
    """The files of a task; split -> path."""
    made = {"spans": spans, "texts": texts, "labels": labels, "relations": relations}[name]
    rows = {split: made(split) for split in COUNTS}
    if name != "spans":
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for own in rows.values() for row in own), encoding="utf-8")
        return dict.fromkeys(COUNTS, str(file))
    (folder / name).mkdir(parents=True, exist_ok=True)
    for split, own in rows.items():
        (folder / name / f"{split}.json").write_text(json.dumps({"data": [{"paragraphs": own}]}), encoding="utf-8")
    return {split: str(folder / name / f"{split}.json") for split in COUNTS}


def chance(name: str) -> float:
    """The metric of what is most frequent in training, the same for all."""
    if name == "spans":
        texts_of = {
            split: [[one["text"] for one in row["qas"][0]["answers"]] or [""] for row in spans(split)] for split in COUNTS
        }
        common = collections.Counter(own[0] for own in texts_of["train"]).most_common(1)[0][0]
        return float(np.mean(f1([common] * COUNTS["validation"], texts_of["validation"])))
    made = {"texts": texts, "labels": labels, "relations": relations}[name]
    train_rows, held = made("train"), made("validation")
    if name != "labels":
        common = collections.Counter(row["label"] for row in train_rows).most_common(1)[0][0]
        return float(np.mean([row["label"] == common for row in held]))
    best = 0.0  # of the sets of labels said of all: the likeliest few
    likely = [one for one, _ in collections.Counter(one for row in train_rows for one in row["labels"]).most_common()]
    for count in range(1, len(likely) + 1):
        right = sum(len(set(likely[:count]) & set(row["labels"])) for row in held)
        best = max(best, 2 * right / (count * len(held) + sum(len(row["labels"]) for row in held)))
    return best


def trained(name: str, seed: int, folder: Path) -> tuple[float, float]:
    """The metric of one run, and its seconds."""
    paths = write(name, folder)
    words = [word for split, path in paths.items() for word in (f"--data.{split}.source.path", path)]
    words += SHORT.split() if name == "spans" else []
    log = Log(every=200, tensorboard=False, progress=False)
    made = dataclasses.replace(apply_flags(load_config(name), words), seed=seed, log=log)
    start = time.perf_counter()
    metrics = train(made, folder / f"{name}{seed}")
    return metrics[METRICS[name]], time.perf_counter() - start


def main() -> None:
    """One JSON object a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=[*METRICS], metavar="TASK", help=", ".join(METRICS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--write", default="")
    own = parser.parse_args()
    if wrong := [name for name in own.tasks if name not in METRICS]:
        parser.error(f"{wrong[0]} is none of {', '.join(METRICS)}")
    for name in own.tasks:
        if own.write:
            Path(own.write).mkdir(parents=True, exist_ok=True)
            write(name, Path(own.write))
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = [trained(name, seed, Path(folder)) for seed in range(own.seeds)]
        scores = [round(score, 4) for score, _ in found]
        told = {"task": name, "metric": METRICS[name], "reached": scores, "mean": round(statistics.mean(scores), 4)}
        told |= {"chance": round(chance(name), 4), "seconds": [round(seconds) for _, seconds in found]}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
