"""Whisper written by mmjax against `transformers.generate` with the same weights, on the CPU in float32, in one process.

    python benchmarks/whisper_weights.py FOLDER_OF_CTRANSLATE2 whisper-tiny.en
    python benchmarks/whisper.py whisper-tiny.en FOLDER_OF_WAVS [--count 40] [--beams 5] [--texts texts.json]

Of `count` files, evenly spaced, each is transcribed greedily and by beams: how many have the same tokens on both sides; and
the seconds of sound a second of work (all of them once, the sides taking turns, medians over `rounds` of the greedy texts,
each sound by itself, padded to 30 s as the model hears it). `--texts`: {"file name": "what is said"}, for word error rates.
The recordings are those of Debian's `asterisk-core-sounds-en-wav`; `espeak-ng -w NAME.wav "TEXT"` speaks others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import string
import time
from pathlib import Path
from typing import Any

RATE, SECONDS = 16_000, 30


def plain(text: str) -> str:
    """Lower case, without punctuation, as error rates of speech are counted."""
    return " ".join(
        "".join(" " if letter in string.punctuation.replace("'", "") else letter for letter in text.lower()).split()
    )


def main() -> None:
    """Print one JSON line."""
    import torch
    import transformers

    from mmjax import Predictor
    from mmjax.data.sound import hear, recording

    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("sounds")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--texts", default="")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(asked.folder).eval()
    processor = transformers.WhisperProcessor.from_pretrained(asked.folder)
    ask = Predictor(asked.folder, batch_size=1)
    files = sorted(Path(asked.sounds).rglob("*.wav"))
    files = files[:: max(1, len(files) // asked.count)][: asked.count]
    waves = [hear(recording(str(file), str(file)), RATE, SECONDS)[0] for file in files]
    length = sum(map(len, waves)) / RATE
    special = set(processor.tokenizer.all_special_ids)

    def theirs(wave: Any, beams: int) -> list[int]:
        inputs = processor(wave, sampling_rate=RATE, return_tensors="pt").input_features
        with torch.no_grad():
            out = model.generate(inputs, num_beams=beams, max_new_tokens=asked.new, return_timestamps=False)[0].tolist()
        return [token for token in out if token not in special]

    def ours(wave: Any, beams: int) -> list[int]:
        sound = {"array": wave, "sampling_rate": RATE}
        out = ask.generate(sounds=[sound], num_beams=beams, max_new_tokens=asked.new, details=True)[0].ids
        return [token for token in out if token not in special]

    same, said = {}, {}
    for beams in (1, asked.beams):
        found = [(ours(wave, beams), theirs(wave, beams)) for wave in waves]
        same[beams] = sum(own == other for own, other in found)
        said[beams] = [processor.tokenizer.decode(own) for own, _ in found]
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(asked.rounds):
        for name, write in (("ours", ours), ("theirs", theirs))[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            for wave in waves:
                write(wave, 1)
            spent[name].append(time.perf_counter() - start)
    times = {name: statistics.median(own) for name, own in spent.items()}
    figures: dict[str, Any] = {
        "sounds": len(files),
        "seconds": round(length, 1),
        "same_tokens": {f"{beams} beams" if beams > 1 else "greedy": count for beams, count in same.items()},
        "sound_s_a_s": {name: round(length / own, 2) for name, own in times.items()},
        "least_s": {name: round(min(own), 2) for name, own in spent.items()},
        "times_peer": round(times["theirs"] / times["ours"], 3),
    }
    if asked.texts:
        import jiwer

        known = json.loads(Path(asked.texts).read_text())
        kept = [n for n, file in enumerate(files) if file.name in known]
        truth = [plain(known[files[n].name]) for n in kept]
        figures["word_error_rate"] = {
            f"{beams}": round(jiwer.wer(truth, [plain(own[n]) for n in kept]), 4) for beams, own in said.items()
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
