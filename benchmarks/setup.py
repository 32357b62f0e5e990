"""How long an experiment takes to be set up, and what of it is the pass that holds it against its data.

    python benchmarks/setup.py [--config siglip_b16] [--rounds 3]

The config's manifests are replaced by one of pictures and captions made here. Nothing is trained. Prints a line a round and one
JSON object: seconds of `set_up` (tokenizer, data, shapes of the state) and of `validated` after it, medians, and how many
programs the latter compiled (0).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from mmjax.data import Manifest
from mmjax.parallel.mesh import use_mesh
from mmjax.train import Experiment
from mmjax.train.config_file import load_config
from mmjax.train.setup import set_up
from mmjax.train.validate import validated

PICTURES, SIDE = 512, 320
COMPILED = "/jax/core/compile/backend_compile_duration"


def pairs(folder: Path) -> Path:
    """A manifest of pictures and captions, a quarter of them for validation."""
    rng, lines = np.random.default_rng(0), []
    for i in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{i}.jpg")
        split = "train" if i % 4 else "validation"
        lines.append(json.dumps({"image": f"{i}.jpg", "text": f"picture {i} of {PICTURES}, all of noise", "split": split}))
    file = folder / "captions.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def on(experiment: Experiment, file: Path) -> Experiment:
    """The experiment on these pairs."""
    data: dict[str, Any] = {}
    for name, spec in experiment.data.items():
        own = isinstance(spec.source, Manifest)
        data[name] = dataclasses.replace(spec, source=dataclasses.replace(spec.source, path=str(file))) if own else spec
    return dataclasses.replace(experiment, data=data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="siglip_b16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: event == COMPILED and compiled.append(event))
    seconds: dict[str, list[float]] = {"set_up": [], "validated": []}
    with tempfile.TemporaryDirectory() as folder:
        experiment = on(load_config(options.config), pairs(Path(folder)))
        mesh = experiment.mesh.build()
        for number in range(options.rounds):
            with use_mesh(mesh):
                began = time.perf_counter()
                setup = set_up(experiment, None, mesh)
                between = time.perf_counter()
                before = len(compiled)
                validated(setup)
                ended = time.perf_counter()
            seconds["set_up"].append(between - began)
            seconds["validated"].append(ended - between)
            print(f"round {number + 1}: set_up {between - began:.2f} s, validated {ended - between:.2f} s more", flush=True)
            jax.clear_caches()
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    print(json.dumps({"config": options.config, **medians, "compiled": len(compiled) - before}))


if __name__ == "__main__":
    main()
