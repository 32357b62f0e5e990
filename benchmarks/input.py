"""Photos to batches of a training step: mmjax against PyTorch's `DataLoader`, images a second on this machine's cores.

    python benchmarks/input.py [--photos 512] [--rounds 5] [--batches 12]
    python benchmarks/input.py --augment

JPEGs of 500 x 375 pixels, made here; decoded, cut at random and resized to 224 x 224 (bilinear), mirrored at random,
normalised, 64 a batch. The peer decodes and resizes with Pillow, by torchvision's transforms on PIL images, written out, since
torchvision is no part of PyTorch; it collates to float32 [N, 3, 224, 224], ours to float32 [N, 224, 224, 3]. Ours decodes with
Pillow too, and with simplejpeg where that is installed, from the files and from two tars of them; where OpenCV is, with its
`linear` filter too. Each side runs in a process of its own, with each of a few settings of its workers; the sides take turns,
and the best settings count. `wait` is the share of a loop that waits for input while a step that only sleeps takes
50 ms; `mean_difference` that of the pixels of the same crops from Pillow's, in 255ths. Needs torch.

`--augment`: microseconds of RandAugment and others on one such photo at 224 x 224, in one thread, and of the very same calls of
Pillow without anything around them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH, SIDE, STEP = 64, 224, 0.05
DECODERS = ("Pillow", "simplejpeg")
LINEAR = "linear, simplejpeg"
OURS = {f"{decoder}, {n} threads": (decoder, n, "files") for decoder in DECODERS for n in (2, 3)}
OURS |= {f"tars, {decoder}, {n} threads": (decoder, n, "tars") for decoder in DECODERS for n in (2, 3)}
OURS |= {f"{LINEAR}, {n} threads": (LINEAR, n, "files") for n in (2, 3)}
THEIRS = {f"peer, {n} workers": n for n in (1, 2, 3)}


def photos(folder: Path, count: int) -> None:
    """JPEGs of noise at all scales, which is about as hard to decode as a photo: 33 kB each; and the same in two tars."""
    rng = np.random.default_rng(0)
    for number in range(count):
        x = rng.normal(size=(375, 500, 3)) * 0.05
        for level in range(1, 8):
            few = rng.normal(size=(max(2, 375 * 2**level // 500), 2**level, 3)).astype(np.float32)
            planes = [np.asarray(Image.fromarray(few[..., c]).resize((500, 375), Image.Resampling.BICUBIC)) for c in range(3)]
            x += np.stack(planes, -1) / 2 ** (0.9 * level)
        x = (x - x.min()) / (x.max() - x.min()) * 255
        place = folder / f"class{number % 4}"
        place.mkdir(exist_ok=True)
        Image.fromarray(x.astype(np.uint8)).save(place / f"{number}.jpg", quality=90)
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard, count, 2):
                tar.add(folder / f"class{number % 4}" / f"{number}.jpg", f"{number}.jpg")


def ours(folder: str, decoder: str, threads: int, kind: str) -> Any:
    """Endless batches of ours, from the files or from the tars."""
    from mmjax.data import Data, Flip, Folder, Normalise, RandomCrop, WebDataset, jpeg

    if decoder == "Pillow":
        jpeg._library = lambda: None
    filter_ = "linear" if decoder == LINEAR else "bilinear"
    transforms = (RandomCrop((SIDE, SIDE), scale=(0.08, 1.0), resample=filter_), Flip(), Normalise())
    source = Folder(folder, "all") if kind == "files" else WebDataset(f"{folder}/*.tar")
    data = Data(source, transforms, batch_size=BATCH, threads=threads, cache_mb=0)
    return data.build(None, 0).batches()


def difference(folder: str, decoder: str, batches: int = 4) -> float:
    """Mean absolute difference of the same batches' pixels from those by Pillow alone, in 255ths."""
    from mmjax.data import jpeg

    library, found = jpeg._library, []
    for one in ("Pillow", decoder):
        with ours(folder, one, 2, "files") as made:
            found.append([next(made)["image"] for _ in range(batches)])
        jpeg._library = library
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(*found, strict=True)])) * 127.5


def theirs(folder: str, workers: int) -> Iterator[Any]:
    """Endless batches of the peer's."""
    import torch

    class Photos(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.files = sorted(map(str, Path(folder).rglob("*.jpg")))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            with open(self.files[index], "rb") as file:
                image = Image.open(file).convert("RGB")
            image = image.crop(window(*image.size)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            if torch.rand(1) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous().float().div(255)
            return pixels.sub_(mean).div_(mean), index % 4

    def window(width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(0.08, 1.0).item()
            ratio = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = torch.randint(0, width - w + 1, (1,)).item(), torch.randint(0, height - h + 1, (1,)).item()
                return int(left), int(top), int(left) + w, int(top) + h
        return 0, 0, width, height

    mean = torch.full((3, 1, 1), 0.5)
    own: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    loader = torch.utils.data.DataLoader(Photos(), BATCH, shuffle=True, drop_last=True, num_workers=workers, **own)
    while True:
        yield from loader


def augmenting(rounds: int) -> dict[str, float]:
    """Microseconds an image: of transforms of ours, and of the operations of RandAugment by Pillow alone, image to image."""
    from mmjax.data import Flip, GaussianBlur, RandAugment, RandomErasing, TrivialAugment
    from mmjax.data.transforms.automatic import OPERATIONS, _values, moving, strength

    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder), 1)
        image = Image.open(next(Path(folder).rglob("*.jpg"))).convert("RGB").resize((SIDE, SIDE))
    record = {"image": np.asarray(image), "text": "a photo of a cat on a mat"}

    def pillow(rng: np.random.Generator) -> None:
        found = image
        for _ in range(2):
            operation = OPERATIONS[rng.integers(len(OPERATIONS))]
            amount = strength(operation, 9, False, (SIDE, SIDE)) * (-1) ** int(rng.integers(2))
            if (matrix := moving(operation, amount, SIDE, SIDE)) is not None:
                found = found.transform(
                    found.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(0,) * 3
                )
            elif operation != "identity":
                found = _values(found, operation, amount)

    ours = (RandAugment(), TrivialAugment(), RandomErasing(1.0), GaussianBlur(1.0), Flip(1.0))
    sides: dict[str, Any] = {type(one).__name__: lambda rng, one=one: one(record, rng, ()) for one in ours}
    sides["RandAugment, Pillow alone"] = pillow
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            rng, begin = np.random.default_rng(0), time.perf_counter()
            for _ in range(400):
                call(rng)
            times[name].append((time.perf_counter() - begin) / 400 * 1e6)
    return {name: round(statistics.median(own), 1) for name, own in times.items()}


def worker(side: str, folder: str, batches: int) -> None:
    """For each line that comes in, say how many images a second there are, or what share of the time is waited."""
    found = ours(folder, *OURS[side]) if side in OURS else theirs(folder, THEIRS[side])
    for _ in range(4):
        next(found)
    print("ready", flush=True)
    for line in sys.stdin:
        begin, waited = time.perf_counter(), 0.0
        for _ in range(batches):
            start = time.perf_counter()
            next(found)
            waited += time.perf_counter() - start
            if line.strip() == "wait":
                time.sleep(STEP)
        whole = time.perf_counter() - begin
        print(json.dumps({"images": BATCH * batches / whole, "wait": waited / whole}), flush=True)


def asked(process: subprocess.Popen[str], what: str) -> dict[str, float]:
    """What a side answers."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> None:
    """One JSON object: images a second of each setting, and the best of ours against the best of the peer's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.worker:
        worker(*own.worker, own.batches)
        return
    if own.augment:
        print(json.dumps(augmenting(own.rounds)))
        return
    with tempfile.TemporaryDirectory() as root:
        folder = str(Path(root) / "photos")
        Path(folder).mkdir()
        photos(Path(folder), own.photos)
        there = DECODERS if importlib.util.find_spec("simplejpeg") else DECODERS[:1]
        fast = (LINEAR,) if len(there) > 1 and importlib.util.find_spec("cv2") else ()
        mine = [side for side, (decoder, _, _) in OURS.items() if decoder in (*there, *fast)]
        found: dict[str, list[float]] = {side: [] for side in (*mine, *THEIRS)}
        for _ in range(own.rounds):
            for side in found:  # one at a time: a side's read-ahead would run beside the other
                found[side].append(alone(side, folder, own.batches, "speed")["images"])
        names = (*there, *(f"tars, {decoder}" for decoder in there), *fast, "peer")
        best = {
            name: max((side for side in found if side.startswith(name)), key=lambda side: statistics.median(found[side]))
            for name in names
        }
        apart = {decoder: difference(folder, decoder) for decoder in (*there[1:], *fast)}
        waits = {side: alone(side, folder, 4 * own.batches, "wait")["wait"] for side in best.values()}
    peer = found[best["peer"]]
    times = {name: statistics.median(a / b for a, b in zip(found[best[name]], peer, strict=True)) for name in names[:-1]}
    print(json.dumps({
        "images_s": {side: round(statistics.median(rates)) for side, rates in found.items()},
        "most_images_s": {side: round(max(rates)) for side, rates in found.items()},
        "times_peer": {name: round(ratio, 3) for name, ratio in times.items()},
        "wait": {side: round(share, 4) for side, share in waits.items()},
        "mean_difference": {decoder: round(own, 3) for decoder, own in apart.items()},
    }))  # fmt: skip


def alone(side: str, folder: str, batches: int, what: str) -> dict[str, float]:
    """What one side answers, in a process that begins and ends with it."""
    words = [sys.executable, __file__, "--batches", str(batches), "--worker", side, folder]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "MMJAX_CACHE": str(Path(folder).parent / "cache")}
    process = subprocess.Popen(words, text=True, env=env, **pipes)
    assert process.stdout is not None
    process.stdout.readline()
    answer = asked(process, what)
    process.kill()
    process.wait()
    return answer


if __name__ == "__main__":
    main()
