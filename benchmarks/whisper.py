"""Whisper written by mmjax against `transformers.generate` with the same weights, on the CPU in float32, in one process.

    python benchmarks/whisper_weights.py FOLDER_OF_CTRANSLATE2 whisper-tiny.en
    python benchmarks/whisper.py whisper-tiny.en FOLDER_OF_WAVS [--count 40] [--beams 5] [--texts core-sounds-en.txt]
    python benchmarks/whisper.py whisper-tiny.en --spoken

Of `count` files, evenly spaced, each is transcribed greedily and by beams: how many have the same tokens on both sides; and
the seconds of sound a second of work (all of them once, the sides taking turns, medians over `rounds` of the greedy texts,
each sound by itself, padded to 30 s as the model hears it), with the CPU seconds of both beside them. Then all of them joined
are one long recording, with times, and `condition_on_prev_tokens` on and off: whether the tokens are the same.

Word error rates are of both sides' texts, after Whisper's own English normaliser as `transformers` has it (without its list of
British spellings, which is a file of the published tokenizer), against what is said: of the recordings of Debian's
`asterisk-core-sounds-en-wav` that is `core-sounds-en.txt` of `asterisk-core-sounds-en` ("name: what is said" a line; what is in
brackets is no speech and left out); with `--spoken`, sentences that `espeak-ng` speaks here, in several voices.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE, SECONDS = 16_000, 30
VOICES = ("en-gb", "en-us", "en-gb-scotland", "en-us+f3")
SENTENCES = (
    "The children walked along the river and counted the boats.",
    "Please send me the report before four in the afternoon.",
    "It was raining all week, so the football match was moved to Sunday.",
    "My brother bought an old piano and repaired it himself.",
    "There are twenty seven chairs in the room and only nine people.",
    "The train to London leaves from platform three in ten minutes.",
    "She opened the window because the kitchen was full of smoke.",
    "Nobody knows why the lights went out during the concert.",
    "You can pay with a card or with money at the counter.",
    "The doctor asked him to drink more water and to sleep longer.",
)


def said(file: Path) -> dict[str, str]:
    """Name of a file, without its ending -> what is said in it, without what is no speech."""
    lines = [line.partition(":") for line in file.read_text(errors="replace").splitlines() if not line.startswith(";")]
    return {name.strip(): text.strip() for name, _, text in lines if text.strip() and "[" not in text and "<" not in text}


def spoken(folder: Path) -> dict[str, str]:
    """The same of sentences that `espeak-ng` speaks into a folder."""
    found = {}
    for number, text in enumerate(SENTENCES):
        for voice in VOICES:
            name = f"{number}-{voice}"
            subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", str(folder / f"{name}.wav"), text], check=True)
            found[name] = text
    return found


class Sides:
    """Both libraries with one folder's weights."""

    def __init__(self, folder: str, new: int) -> None:
        import torch
        import transformers

        from mmjax import Predictor

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(2)
        self.torch, self.new = torch, new
        self.model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = transformers.WhisperProcessor.from_pretrained(folder)
        self.ask = Predictor(folder, batch_size=1)
        self.special = set(self.processor.tokenizer.all_special_ids)

    def theirs(self, wave: np.ndarray, beams: int) -> list[int]:
        inputs = self.processor(wave, sampling_rate=RATE, return_tensors="pt").input_features
        with self.torch.no_grad():
            out = self.model.generate(inputs, num_beams=beams, max_new_tokens=self.new, return_timestamps=False)[0].tolist()
        return [token for token in out if token not in self.special]

    def ours(self, wave: np.ndarray, beams: int) -> list[int]:
        sound = {"array": wave, "sampling_rate": RATE}
        out = self.ask.generate(sounds=[sound], num_beams=beams, max_new_tokens=self.new, details=True)[0].ids
        return [token for token in out if token not in self.special]

    def long(self, wave: np.ndarray, **how: Any) -> tuple[list[int], list[int]]:
        """The tokens of a recording of any length, ours and theirs, times among them."""
        longer = {"truncation": False, "padding": "longest"} if len(wave) > SECONDS * RATE else {}
        inputs = self.processor(wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **longer)
        with self.torch.no_grad():
            out = self.model.generate(
                inputs.input_features, attention_mask=inputs.attention_mask, return_timestamps=True, **how
            )[0].tolist()
        own = self.ask.generate(sounds=[{"array": wave, "sampling_rate": RATE}], timestamps=True, details=True, **how)[0].ids
        return own, out


def speeds(waves: list[np.ndarray], sides: dict[str, Callable[[np.ndarray, int], list[int]]], rounds: int) -> dict[str, Any]:
    """Seconds of sound a second of work, and of CPU."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    worked: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            start, cpu = time.perf_counter(), time.process_time()
            for wave in waves:
                sides[name](wave, 1)
            spent[name].append(time.perf_counter() - start)
            worked[name].append(time.process_time() - cpu)
    length = sum(map(len, waves)) / RATE
    times, cpus = ({name: statistics.median(own) for name, own in all_of.items()} for all_of in (spent, worked))
    return {
        "sound_s_a_s": {name: round(length / own, 2) for name, own in times.items()},
        "sound_s_a_cpu_s": {name: round(length / own, 2) for name, own in cpus.items()},
        "least_s": {name: round(min(own), 2) for name, own in spent.items()},
        "times_peer": round(times["theirs"] / times["ours"], 3),
        "times_peer_cpu": round(cpus["theirs"] / cpus["ours"], 3),
    }


def error_rates(texts: dict[str, list[str]], truth: list[str]) -> dict[str, float]:
    """Side -> word error rate."""
    import jiwer
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    plain = EnglishTextNormalizer({})
    return {name: round(jiwer.wer([*map(plain, truth)], [*map(plain, own)]), 4) for name, own in texts.items()}


def main() -> None:
    """Print one JSON line."""
    from mmjax.data.sound import hear, recording

    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("sounds", nargs="?", default="")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--texts", default="")
    parser.add_argument("--spoken", action="store_true")
    asked = parser.parse_args()
    both = Sides(asked.folder, asked.new)
    with tempfile.TemporaryDirectory() as place:
        known = spoken(Path(place)) if asked.spoken else said(Path(asked.texts)) if asked.texts else {}
        root = Path(place if asked.spoken else asked.sounds)
        files = sorted(root.rglob("*.wav"))
        named = {file: next((known[key] for key in _keys(file) if key in known), "") for file in files}
        files = [file for file in files if named[file]] if known else files
        files = files[:: max(1, len(files) // asked.count)][: asked.count]
        waves = [hear(recording(str(file), str(file)), RATE, SECONDS)[0] for file in files]
    figures: dict[str, Any] = {"sounds": len(files), "seconds": round(sum(map(len, waves)) / RATE, 1)}
    sides = {"ours": both.ours, "theirs": both.theirs}
    same, rates = {}, {}
    for beams in (1, asked.beams):
        name = f"{beams} beams" if beams > 1 else "greedy"
        found = {side: [write(wave, beams) for wave in waves] for side, write in sides.items()}
        same[name] = sum(own == other for own, other in zip(*found.values(), strict=True))
        texts = {side: [both.processor.tokenizer.decode(row) for row in rows] for side, rows in found.items()}
        rates[name] = error_rates(texts, [named[file] for file in files]) if known else {}
    figures["same_tokens"] = same
    figures |= {"word_error_rate": rates} if known else {}
    whole = np.concatenate([part for wave in waves for part in (wave, np.zeros(RATE // 4, np.float32))])
    alike = functools.partial(both.long, whole)
    figures["long_same"] = {
        name: _alike(*alike(**how)) for name, how in {"apart": {}, "told": {"condition_on_prev_tokens": True}}.items()
    }
    print(json.dumps(figures | speeds(waves, sides, asked.rounds)))


def _alike(own: list[int], other: list[int]) -> str:
    """How many tokens are the same from the first on, of how many there are."""
    same = next((n for n, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
    return f"{same} of {max(len(own), len(other))}"


def _keys(file: Path) -> tuple[str, str]:
    """By which names a file may be called: with the folder that it is in, and without."""
    return f"{file.parent.name}/{file.stem}", file.stem


if __name__ == "__main__":
    main()
