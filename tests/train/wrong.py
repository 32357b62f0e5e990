"""Wrong experiments, any number of them: a sound one, and one thing in it misspelt, resized, rerouted or permuted by a seed."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmjax.core.config import from_json, to_json
from mmjax.data import Caption, Data, Folder, Manifest, Normalise, Resize, WordPiece
from mmjax.evaluate import Perplexity, Report, Retrieval, ZeroShot
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.objectives import CausalLM, Classification, Contrastive, MaskedLM, Matching
from mmjax.train import SGD, Experiment, Log, Task

CLASSES = ("ant", "bee", "cow")
WORDS, LENGTH = 48, 8
SIZE = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 8}
Node = Any  # of a JSON tree


def photos(home: Path) -> None:
    """Class folders of 8 x 8 pictures, 8 a class and split; captions and labels of the same in `pairs.jsonl`."""
    lines = []
    for split in ("train", "validation", "test"):
        for label, name in enumerate(CLASSES):
            for i in range(8):
                file = home / "photos" / split / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), 60 * label + i, np.uint8)).save(file)
                lines.append({"image": str(file), "text": f"a {name}", "label": name, "split": split})
    (home / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def sound(home: Path) -> Experiment:
    """An experiment in which nothing is wrong: two sources, five tasks, five evaluators."""
    pixels, text = (Resize((8, 8)), Normalise()), {"vocab_size": WORDS, "max_length": LENGTH, **SIZE}
    captioned = Caption(("the {}",))
    data = {
        split: Data(Folder(str(home / "photos"), split), (*pixels, captioned), batch_size=8, max_length=LENGTH, threads=0)
        for split in ("train", "validation", "test")
    }
    data["pairs"] = Data(Manifest(str(home / "pairs.jsonl"), "train"), pixels, batch_size=8, max_length=LENGTH, threads=0)
    masked = MaskedLM(vocab_size=WORDS, mask_id=4, special_ids=(0, 1, 2, 3), fusion="cross", context=("image",))
    return Experiment(
        model=Multimodal(
            encoders={"image": ViT(image_size=(8, 8), patch=(4, 4), **SIZE), "text": TextTransformer(**text)},
            fusions={"dual": Dual(width=8), "cross": Cross(**SIZE)},
            decoders={"caption": TextDecoder(**text)},
            heads={
                "classes": Classifier(classes=3),
                "answer": Classifier(classes=3, input="cross"),
                "match": Classifier(classes=2, input="cross", pool="cls"),
                "masked_lm": TokenClassifier(classes=WORDS, input="cross", tied_to="text"),
            },
        ),
        data=data,
        tokenizer=WordPiece(WORDS),
        tasks={
            "contrastive": Task(Contrastive(), data="pairs"),
            "matching": Task(Matching(), data="pairs"),
            "masked_lm": Task(masked, data="pairs"),
            "classes": Task(Classification(modality="image")),
            "answer": Task(Classification("answer", modality="text", fusion="cross", context=("image",))),
            "caption": Task(CausalLM(context=("image",))),
        },
        optimizer=SGD(),
        steps=1,
        evaluate={
            "report": Report(modality="image"),
            "answers": Report("answer", fusion="cross"),
            "prompted": ZeroShot(("the {}",)),
            "retrieval": Retrieval(at=(1,)),
            "perplexity": Perplexity(CausalLM(context=("image",))),
        },
        log=Log(every=1, tensorboard=False, progress=False),
    )


def wrong(number: int, home: Path) -> tuple[str, Callable[[], Experiment]]:
    """What is wrong with the experiment of this number, and what makes it (a mistake may show in making it).

    Args:
      home: a folder with the `photos`, for this experiment alone: some faults are in the files.
    """
    rng = random.Random(number)
    kinds = (misspelt, permuted, resized, rerouted, other_classes, other_splits)
    tree = to_json(sound(home))
    what = kinds[number % len(kinds)](rng, tree, home)
    return what, lambda: from_json(tree)


def misspelt(rng: random.Random, tree: Node, home: Path) -> str:
    """A word of the config with a letter changed: a name, a choice or a key."""
    found = list(words_of(tree))
    node, key, path = found[rng.randrange(len(found))]
    word = node[key]
    i = rng.randrange(len(word))
    node[key] = word[:i] + ("q" if word[i] != "q" else "z") + word[i + 1 :]
    return f"{path}={node[key]!r} for {word!r}"


def permuted(rng: random.Random, tree: Node, home: Path) -> str:
    """A name of a part with another name: two entries of a table exchanged."""
    room, first, second = rng.choice(
        [
            ("encoders", "image", "text"),
            ("fusions", "dual", "cross"),
            ("heads", "match", "answer"),
            ("heads", "masked_lm", "classes"),
            ("heads", "answer", "masked_lm"),
        ]
    )
    parts = tree["model"][room]
    parts[first], parts[second] = parts[second], parts[first]
    return f"model.{room}: {first} and {second} exchanged"


def resized(rng: random.Random, tree: Node, home: Path) -> str:
    """A number that does not fit what it meets."""
    model, data = tree["model"], tree["data"]
    places: list[tuple[Node, str, Any]] = [
        (model["heads"]["classes"], "classes", rng.choice((1, 2, 4, 1000))),
        (model["heads"]["answer"], "classes", rng.choice((2, 7))),
        (model["heads"]["match"], "classes", 3),
        (model["heads"]["masked_lm"], "classes", WORDS - 20),
        (model["encoders"]["text"], "vocab_size", rng.choice((4, 16))),
        (model["encoders"]["text"], "max_length", LENGTH - 3),
        (model["encoders"]["text"], "width", 7),
        (model["encoders"]["image"], "patch", [3, 4]),
        (model["encoders"]["image"], "channels", 1),
        (model["decoders"]["caption"], "vocab_size", 9),
        (model["fusions"]["cross"], "heads", 3),
        (tree["tasks"]["masked_lm"]["objective"], "mask_id", 3),
        (tree["tasks"]["masked_lm"]["objective"], "vocab_size", 5),
        (data["train"], "batch_size", rng.choice((0, 7, 9))),
        (data["validation"]["transforms"][0], "size", [9, 8]),
        (data["train"], "max_length", 2),
        (tree["tasks"]["classes"]["objective"], "class_weights", [1.0, 2.0]),
    ]
    node, key, value = rng.choice(places)
    old, node[key] = node[key], value
    return f"{key}={value} for {old}"


def rerouted(rng: random.Random, tree: Node, home: Path) -> str:
    """A part, or a task, that is fed by something else than it says elsewhere."""
    heads, tasks, evaluate = tree["model"]["heads"], tree["tasks"], tree["evaluate"]
    places: list[tuple[Node, str, Any]] = [
        (heads["classes"], "input", rng.choice(("cross", "text"))),
        (heads["answer"], "input", rng.choice(("image", "text"))),
        (heads["match"], "input", rng.choice(("image", "dual"))),
        (heads["masked_lm"], "input", rng.choice(("text", "dual"))),
        (tasks["answer"]["objective"], "context", ["text"]),
        (tasks["classes"]["objective"], "modality", "text"),
        (tasks["matching"]["objective"], "fusion", "dual"),
        (tasks["caption"]["objective"], "context", ["text"]),
        (tasks["contrastive"]["objective"], "fusion", "cross"),
        (tasks["masked_lm"]["objective"], "modality", "image"),
        (evaluate["report"], "head", rng.choice(("masked_lm", "match"))),
        (evaluate["answers"], "fusion", "dual"),
        (evaluate["prompted"], "fusion", "cross"),
        (tree["model"]["decoders"]["caption"], "writes", "image"),
        (tree["model"]["decoders"]["caption"], "context", []),
    ]
    node, key, value = rng.choice(places)
    old, node[key] = node[key], value
    return f"{key}={value!r} for {old!r}"


def other_classes(rng: random.Random, tree: Node, home: Path) -> str:
    """Data whose classes are not those that the head is trained on, or labels that are not what they seem."""
    split = rng.choice(("validation", "test"))
    name = rng.choice(CLASSES)
    folder = home / "other" / split
    if rng.random() < 0.5:  # as a folder of its own, whose classes are not joined with the other splits'
        shutil.copytree(home / "photos" / split, folder)
        tree["data"][split]["source"] |= {"path": str(folder), "split": "all"}
        (folder / name).rename(folder / rng.choice((name.capitalize(), f"{name} ", "yak")))
        return f"data.{split}: class {name} has another name"
    lines = [json.loads(line) for line in (home / "pairs.jsonl").read_text().splitlines()]
    for line in lines:
        line["label"] = f"{line['label']}s"
    (home / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree["data"][split] = copy.deepcopy(tree["data"]["pairs"]) | {"batch_size": 8}
    tree["data"][split]["source"]["split"] = split
    return f"data.{split}: all classes are in the plural"


def other_splits(rng: random.Random, tree: Node, home: Path) -> str:
    """A split that is not there, or does not hold what is read of it."""
    split = rng.choice(("train", "validation", "test"))
    data = tree["data"][split]
    kind = rng.randrange(5)
    if kind == 0:
        data["source"]["split"] = "trian"
    elif kind == 1:
        data["source"]["path"] = str(home / "nowhere")
    elif kind == 2:
        data["transforms"] = data["transforms"][:2]  # without captions
    elif kind == 3:
        data["transforms"] = data["transforms"][:1] + data["transforms"][2:]  # without Normalise
    else:
        file = home / "photos" / split / rng.choice(CLASSES) / "3.png"
        file.write_bytes(file.read_bytes()[:40])
    return f"data.{split}: {('its split is misspelt', 'no folder', 'no captions', 'raw pixels', 'a broken file')[kind]}"


def words_of(tree: Node, path: str = "") -> Iterator[tuple[Node, Any, str]]:
    """(node, key, path) of each word of a JSON tree that means something: not texts, files, or what is free to choose."""
    free = ("templates", "path", "root", "huggingface", "test_data", "separator", "extensions")
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        if key in free or here.split(".")[0] in ("log", "mesh", "checkpoint", "optimizer", "tokenizer", "weighting"):
            continue
        if isinstance(value, str) and value:
            yield tree, key, here
        elif isinstance(value, dict | list):
            yield from words_of(value, here)
