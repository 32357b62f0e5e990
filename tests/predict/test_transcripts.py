"""Letters that are tones: a run that hears them, at work on files, folders and manifests; and what sounds lack."""

import json
import logging

import jax
import numpy as np
import pytest

import mmjax
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Audio, Characters, Data, Manifest, Strings
from mmjax.data.sound import wav
from mmjax.evaluate import Transcripts
from mmjax.generate.ctc import transcribed
from mmjax.models import Multimodal
from mmjax.models.encoders import AudioTransformer
from mmjax.models.heads import TokenClassifier
from mmjax.nn.spectrogram import LogMel
from mmjax.objectives import CTC
from mmjax.parallel.mesh import Mesh
from mmjax.predict import transcripts
from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task, train

RATE, SECONDS, CLASSES = 8000, 0.8, 8
TONES = {"a": 400, "b": 1000, "c": 2200}


def speech(text, seconds=SECONDS, seed=0):
    """[n] float32: 80 ms of a tone a letter, 120 ms of quiet after it, and a little noise; an empty text is silence."""
    x = np.zeros(round(seconds * RATE), np.float32)
    times = np.arange(640) / RATE
    for place, letter in enumerate(text):
        start = 200 + 1600 * place
        x[start : start + 640] = 0.4 * np.sin(2 * np.pi * TONES[letter] * times)
    return x + 0.003 * np.random.default_rng(seed).normal(size=len(x)).astype(np.float32) * bool(text)


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return ["".join(rng.permutation([*TONES])[: rng.integers(1, 4)]) for _ in range(count)]


def written(folder, told, split):
    """WAVs, and their lines."""
    lines = []
    for number, (text, said) in enumerate(told):
        name = f"{split}_{number}.wav"
        (folder / name).write_bytes(wav(speech(text, seed=number), RATE))
        lines.append({"audio": name, "text": said, "split": split})
    return lines


def experiment(path, steps=160):
    def data(split):
        columns = {"audio": Audio(rate=RATE, seconds=SECONDS, start="first")}
        columns |= {} if split == "train" else {"references": Strings(of="text", rows=1, length=32)}
        return Data(Manifest(str(path), split), (), columns, batch_size=16, max_length=32, threads=0)

    mel = LogMel(rate=RATE, n_fft=128, hop=80, mels=16, fmax=4000.0)
    size = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64, "unroll": True}
    return Experiment(
        model=Multimodal(
            encoders={"audio": AudioTransformer(spectrogram=mel, max_length=40, **size)},
            heads={"ctc": TokenClassifier(classes=CLASSES, input="audio", transform=False)},
        ),
        data={split: data(split) for split in ("train", "validation")},
        tokenizer=Characters(),
        tasks={"ctc": Task(CTC(special_ids=(2, 3)))},
        optimizer=AdamW(learning_rate=1e-2, warmup_steps=20),
        steps=steps,
        evaluate={"transcripts": Transcripts(beams=4)},
        evaluate_every=steps,
        checkpoint=Checkpoint(every=steps, best="transcripts/word_error_rate", mode="min"),
        log=Log(every=20, tensorboard=False, progress=False),
    )


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """(folder of the sounds, the run, its metrics, what was said). Some lines have a text that their sound is too short for,
    letters that the vocabulary of the run lacks, or nothing in them."""
    folder = tmp_path_factory.mktemp("speech")
    told = [(text, text) for text in texts(122, 0)]
    told += [("", " ")] * 4 + [("a", "a" * 28)] * 2  # which want 55 frames of 40
    lines = written(folder, told, "train")
    lines += written(folder, [(text, text) for text in texts(23, 1)] + [("", " ")], "validation")
    manifest = folder / "lines.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said, log = [], logging.getLogger("mmjax")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    build = Mesh.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        metrics = train(experiment(manifest), folder / "run")
    log.removeHandler(handler)
    log.setLevel(level)
    return folder, folder / "run", metrics, said


def test_it_learns_to_hear(heard):
    _, run, metrics, said = heard
    assert metrics["transcripts/character_error_rate"] < 0.1 and metrics["transcripts/empty"] == pytest.approx(1 / 24)
    (short,) = (line for line in said if "cannot" in line or "fewer frames" in line)
    assert "tasks.ctc: " in short and "of its rows have fewer frames than their text needs, and do not count" in short
    found = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    wrong = sum(one["text"] != one["references"][0].strip() for one in found)
    assert metrics["transcripts/word_error_rate"] == pytest.approx(wrong / 23, abs=1e-9)
    assert found[-1]["text"] == "" and found[-1]["references"] == [" "], "silence"


def test_transcripts_are_those_of_the_evaluator_and_of_the_command(heard, tmp_path, capsys, monkeypatch):
    folder, run, _, _ = heard
    found = [json.loads(line)["text"] for line in (run / "predictions.jsonl").read_text().splitlines()]
    files = [str(folder / f"validation_{n}.wav") for n in range(24)]
    beams = []  # of each program that is made

    def spied(logits, frames, blank_id, many):
        beams.append(many)
        return transcribed(logits, frames, blank_id, many)

    monkeypatch.setattr(transcripts, "transcribed", spied)
    ask = mmjax.Predictor(run)
    array = {"array": speech("bca"), "sampling_rate": RATE}
    assert ask.transcribe([*files, array]) == [*found, "bca"] == ask.transcribe([*files, array], beams=4), "the run's own beams"
    greedy = ask.transcribe(files, beams=1)
    assert sum(ours == theirs for ours, theirs in zip(greedy, found, strict=True)) > 20 and beams == [4, 1]
    manifest = tmp_path / "some.jsonl"
    manifest.write_text("".join(json.dumps({"audio": file}) + "\n" for file in files[:2]))
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "long.wav").write_bytes(wav(speech("cab", 2.0), RATE))
    (sounds / "none.wav").write_bytes(wav(np.zeros(0, np.float32), RATE))
    (sounds / "quiet.wav").write_bytes(wav(np.zeros(4000, np.float32), RATE))
    assert main(["predict", str(run), files[2], str(manifest), str(sounds)]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["transcript"] for one in lines[:3]] == [found[2], *found[:2]]
    long, none, quiet = lines[3:]
    assert long["transcript"] == "cab" and (long["seconds"], long["heard"]) == (2.0, SECONDS)
    assert none["error"] == "it is empty: no samples" and quiet["transcript"] == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda ask, sound: ask.transcribe(sound, beams=-1), r"^beams=-1: use a whole number from 0 up$"),
        (lambda ask, sound: ask.transcribe(sound, head="classes"), r"head='classes': heads that say a letter a frame are ctc;"),
        (lambda ask, sound: ask.generate(sounds=sound), r"no decoder writes texts; the model has encoders audio, heads ctc$"),
    ],
)
def test_what_it_does_not_do_is_named(heard, call, words):
    folder, run, _, _ = heard
    with pytest.raises(UserError, match=words):
        call(mmjax.Predictor(run), str(folder / "train_0.wav"))


def test_languages_are_of_decoders(heard, capsys):
    folder, run, _, _ = heard
    assert main(["predict", str(run), str(folder / "train_0.wav"), "--language", "en"]) == 2
    assert "says a letter a frame, and --language are of decoders: leave them out" in capsys.readouterr().err
