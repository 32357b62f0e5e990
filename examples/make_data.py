"""Data for the examples here, drawn around scikit-learn's handwritten digits: each runs before you have data of your own.

    python examples/make_data.py inspection my/inspection        (or: report, ranking)

writes `lines.jsonl` and a folder of images. No digit of a test line is on a training line. No line tells its answer by one of
its parts alone: what each part is good for is said at each function. The same seed draws the same files.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

COLOURS = {"red": (190, 70, 60), "green": (70, 150, 80), "blue": (70, 95, 190), "grey": (140, 140, 140)}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHARES = (("train", 0.7), ("validation", 0.1), ("test", 0.2))
Line = dict[str, object]


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """8 x 8 grey in [0, 1] and what each shows, other ones for each split."""
    held = load_digits()
    part = np.searchsorted(np.cumsum([share for _, share in SHARES]), (np.arange(len(held.target)) * 0.61803) % 1)
    own = np.minimum(part, 2) == [name for name, _ in SHARES].index(split)
    return held.images[own] / 16, held.target[own]


def tile(rng: np.random.Generator, digit: np.ndarray, colour: str, side: int) -> np.ndarray:
    """uint8 [side, side, 3]: a coloured plate, unevenly lit, with a digit on it, somewhere about the middle."""
    big = np.asarray(Image.fromarray((digit * 255).astype(np.uint8)).resize((side - 6,) * 2, Image.Resampling.BILINEAR)) / 255
    top, left = rng.integers(0, 7, 2)
    ink = np.pad(big, ((top, 6 - top), (left, 6 - left)))
    slope = np.linspace(-0.1, 0.1, side)[:, None] * rng.choice((-1, 1))
    light = rng.uniform(0.85, 1.15) + slope + rng.normal(0, 0.04, (side, side))
    return np.clip(np.array(COLOURS[colour]) * (light * (1 - 0.6 * ink))[..., None], 0, 255).astype(np.uint8)


def inspection(folder: Path, rng: np.random.Generator, split: str, count: int) -> list[Line]:
    """A photo of a part and the operator's note. Only the photo shows a mark, and only the note whether it is deep (a crack) or
    not (a scratch); only the note tells of what is loose; a wrong part has another colour than the note says was ordered."""
    kinds = rng.choice(("good", "scratch", "wrong part", "loose", "crack"), count, p=(0.6, 0.16, 0.12, 0.08, 0.04))
    images, _ = digits(split)
    lines: list[Line] = []
    for number, kind in enumerate(kinds.tolist()):
        ordered, other = rng.choice([*COLOURS], 2, replace=False).tolist()
        pixels = tile(rng, images[rng.integers(len(images))], other if kind == "wrong part" else ordered, 32)
        if kind in ("scratch", "crack"):
            (y, x), angle = rng.uniform(8, 24, 2), rng.uniform(0, np.pi)
            for step in np.linspace(-10, 10, 60):
                row, column = np.clip((y + step * np.sin(angle), x + step * np.cos(angle)), 0, 31).astype(int)
                pixels[row, column] = np.minimum(pixels[row, column].astype(int) + 90, 255)
        catches = {"crack": True, "scratch": False}.get(kind, rng.random() < 0.3)
        remarks = [
            f"{ordered} ordered" if rng.random() < 0.5 else f"order says {ordered}",
            str(rng.choice(("nail catches", "the nail feels it") if catches else ("feels smooth", "nothing to be felt"))),
            str(rng.choice(("rattles when shaken", "has play") if kind == "loose" else ("sits firmly", "no play"))),
        ]
        text = ", ".join(rng.permutation(remarks).tolist())
        name = f"images/{split}_{number:05}.png"
        Image.fromarray(pixels).save(folder / name)
        lines.append({"image": name, "text": text, "label": kind, "split": split})
    return lines


FINDINGS = ("nodule", "effusion", "pneumonia", "oedema", "device")
SAYS = {True: ("fever and cough", "temperature of 39 and chills"), False: ("no fever, swollen legs", "afebrile, tired")}


def report(folder: Path, rng: np.random.Generator, split: str, count: int) -> list[Line]:
    """A drawn chest film of 16 bits and why it was asked for; 1 = found, 0 = not, -1 = nobody has looked (of each finding a
    fifth). No text names a finding. Shadows over a lung are pneumonia with a fever and oedema without."""
    lines: list[Line] = []
    grid = np.mgrid[:48, :48]
    for number in range(count):
        there, shadow, fever = rng.random(5) < (0.3, 0.3, 0, 0, 0.25), rng.random() < 0.45, bool(rng.random() < 0.5)
        there[2], there[3] = shadow and fever, shadow and not fever
        side = rng.choice((14, 34), 5) + rng.normal(0, 1.5, 5)
        film = 1500 + rng.normal(0, 60, (48, 48)) + 200 * np.cos(grid[1] / 7.6)  # dark lungs beside a bright middle
        if there[0]:
            film += 450 * (np.hypot(grid[0] - rng.uniform(10, 30), grid[1] - side[0]) < 2.6)
        if there[1]:
            film += 500 * ((grid[0] > rng.uniform(36, 41)) & (np.abs(grid[1] - side[1]) < 9))
        if shadow:
            cloud = np.exp(-(np.hypot(grid[0] - rng.uniform(14, 30), grid[1] - side[2]) ** 2) / 60)
            film += 500 * cloud * (rng.random((48, 48)) < 0.6)
        if there[4]:
            film[int(rng.uniform(4, 16)) : int(rng.uniform(28, 44)), int(side[4])] = 40_000  # metal: far beyond what tissue has
        asked = [f"{rng.choice(('Female', 'Male'))}, {rng.integers(20, 90)}", str(rng.choice(SAYS[fever]))]
        asked += [str(rng.choice(("follow-up", "before surgery", "short of breath", "pain after a fall")))]
        name = f"images/{split}_{number:05}.png"
        Image.fromarray(np.clip(film, 0, 65535).astype(np.uint16)).save(folder / name)
        known = np.where(rng.random(5) < 0.2, -1, there.astype(int))
        lines.append({"image": name, "text": ". ".join(asked) + ".", "labels": known.tolist(), "split": split})
    return lines


MATERIALS = {
    "wood": ("Wooden tile", "Tile of oak"),
    "tin": ("Tin plate", "Tinned one"),
    "card": ("Paper card", "Printed card"),
}


def ranking(folder: Path, rng: np.random.Generator, split: str, count: int) -> list[Line]:
    """Queries ("red seven on wood"), each with eight products of a catalogue. The photo alone shows colour and digit, the title
    alone the material. Relevance is 2 where all three fit, 1 where two do, else 0; every query has one of 2 and some of 1."""
    images, shown = digits(split)
    catalogue = []
    for number in range(max(100, 3 * count)):
        which, colour, material = rng.integers(len(images)), str(rng.choice([*COLOURS])), str(rng.choice([*MATERIALS]))
        name = f"images/{split}_{number:05}.png"
        Image.fromarray(tile(rng, images[which], colour, 24)).save(folder / name)
        title = f"{rng.choice(MATERIALS[material])}, {rng.choice(('new', 'used', 'by hand', 'large', 'small'))}"
        catalogue.append((name, title, (int(shown[which]), colour, material)))
    lines: list[Line] = []
    for number in range(count):
        digit, colour, material = wanted = catalogue[number][2]
        fits = np.array([sum(a == b for a, b in zip(own, wanted, strict=True)) for _, _, own in catalogue])
        chosen = [number, *rng.choice(np.flatnonzero(fits == 2), 3, replace=False), *rng.choice(np.flatnonzero(fits < 2), 4)]
        for place in rng.permutation(chosen).tolist():
            name, title, _ = catalogue[place]
            query = {"query": f"{split}-{number}", "text": f"{colour} {NUMBERS[digit]} on {material}"}
            lines.append({**query, "image": name, "title": title, "relevance": max(0, int(fits[place]) - 1), "split": split})
    return lines


MAKERS = {"inspection": (inspection, 5000), "report": (report, 5000), "ranking": (ranking, 2000)}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", choices=MAKERS)
    words.add_argument("folder", type=Path)
    words.add_argument("--count", type=int, default=0, help="lines (of a ranking: queries) in all; 0 for those of the docs")
    words.add_argument("--seed", type=int, default=0)
    asked = words.parse_args()
    (asked.folder / "images").mkdir(parents=True, exist_ok=True)
    make, usual = MAKERS[asked.what]
    lines: list[Line] = []
    for place, (split, share) in enumerate(SHARES):
        lines += make(asked.folder, np.random.default_rng([asked.seed, place]), split, round(share * (asked.count or usual)))
    (asked.folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(lines)} lines in {asked.folder / 'lines.jsonl'}; the first: {json.dumps(lines[0])}")


if __name__ == "__main__":
    main()
