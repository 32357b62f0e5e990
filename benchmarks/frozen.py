"""What freezing saves: FLOPs, memory and bytes on disk of a tower of width 384 and 12 layers with a head of 1000 classes.

    python benchmarks/frozen.py [--batch 32]

FLOPs are XLA's own, of the compiled step with its layers laid out (in a loop XLA counts a layer once); memory is what it says
that the step takes at its peak, looped as a run has it. The last lines are bytes on disk: of the first checkpoint, and of one
more. Needs no data and no accelerator; about three minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from mmjax.core import quiet
from mmjax.core.trees import size_bytes
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import AdamW, Checkpoint, Experiment, Task
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.setup import Setup, abstract_state

BELOW = ("encoders_image/project_patches/*", "encoders_image/position/*", "encoders_image/cls")
CASES = {
    "all trained": (),
    "lower half frozen": ("encoders_image/stack/layers/*[:6]", *BELOW),
    "all but the head frozen": ("encoders_image/*",),
}


@dataclasses.dataclass(frozen=True)
class Images:
    """Shapes of a batch of images and labels, in place of a set of data."""

    size: int
    batch_size: int

    lengths: ClassVar[tuple[int, ...]] = ()

    def train_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], Any]]:
        rows = ((self.batch_size,), np.dtype(np.int32))
        return {"image": ((self.batch_size, self.size, self.size, 3), np.dtype(np.float32)), "label": rows, "index": rows}


def experiment(freeze: tuple[str, ...], unroll: bool) -> Experiment:
    tower = ViT(image_size=(224, 224), patch=(16, 16), width=384, depth=12, heads=6, cls_token=True, unroll=unroll)
    head = Classifier(classes=1000, input="image", pool="cls")
    return Experiment(
        model=Multimodal(encoders={"image": tower}, heads={"classes": head}),
        data={},
        tasks={"classes": Task(Classification())},
        optimizer=AdamW(ema=0.999, freeze=freeze),
        steps=100,
    )


def prepared(made: Experiment, batch: int) -> Setup:
    mesh = Mesh(data=1).build(jax.devices()[:1])
    return Setup(made, mesh, {}, {"train": Images(224, batch)}, abstract_state(made, mesh))  # type: ignore[dict-item]


def measured(freeze: tuple[str, ...], batch: int) -> tuple[float, float]:
    """FLOPs of a step, and bytes at its peak."""
    flops, peak = 0.0, 0.0
    for unroll in (True, False):
        setup = prepared(experiment(freeze, unroll), batch)
        with use_mesh(setup.mesh):
            compiled = setup.lower_step(("train",)).compile()
        if unroll:
            flops = compiled.cost_analysis()["flops"]
        else:
            found = compiled.memory_analysis()
            peak = (
                found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
            )
    return flops, peak


def on_disk(freeze: tuple[str, ...]) -> tuple[int, int, int]:
    """Bytes of the first checkpoint, of one more, and of the trained parameters with their optimizer and EMA state."""
    setup = prepared(experiment(freeze, False), 1)
    own = size_bytes((setup.trained_shapes(), setup.abstract.optimizer, setup.abstract.ema))
    with use_mesh(setup.mesh), tempfile.TemporaryDirectory() as folder:
        state, sizes = setup.init(), [0]
        # Numbers that no compression makes smaller, as those of a run are.
        noise = np.random.default_rng(0)
        state = jax.tree.map(lambda x: jax.device_put(noise.normal(size=x.shape).astype(x.dtype), x.sharding), state)
        for step in (1, 2):
            kept = Checkpoints(Path(folder), Checkpoint(keep=9), trained=setup.trained())
            kept.save(step, state, {}, {}, wait=True)
            kept.close()
            sizes.append(sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()))
    return sizes[1], sizes[2] - sizes[1], own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    batch = parser.parse_args().batch
    quiet.devices()
    whole: tuple[float, float] | None = None
    print(f"{'':26} {'GFLOP a step':>14} {'of all trained':>15} {'peak MiB':>10} {'of all trained':>15}")
    for name, freeze in CASES.items():
        flops, peak = measured(freeze, batch)
        whole = whole or (flops, peak)
        print(f"{name:26} {flops / 1e9:14.1f} {flops / whole[0]:14.3f}x {peak / 2**20:10.0f} {peak / whole[1]:14.3f}x")
    print(f"\n{'':26} {'first save KiB':>14} {'one more KiB':>15} {'1.1 x trained + 64 KiB':>25}")
    for name, freeze in CASES.items():
        first, more, own = on_disk(freeze)
        print(f"{name:26} {first / 1024:14.0f} {more / 1024:15.0f} {1.1 * own / 1024 + 64:25.0f}")


if __name__ == "__main__":
    main()
