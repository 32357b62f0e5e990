"""Whisper at work: what it hears, writes and hands over is what `transformers` does with the same folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

pytest.importorskip("soundfile", reason="what reads sounds is not installed")
import speech
from parity import assert_close
from speech import LANGUAGES, RATE, save, sound, write

import mmjax
from mmjax.cli import main
from mmjax.convert import load_model
from mmjax.convert.sounds import sound_column, write_extractor
from mmjax.convert.towers import nearest_class
from mmjax.core.errors import UserError
from mmjax.data import Audio, Class, Data, Manifest, Tokenizer
from mmjax.models import Multimodal
from mmjax.models.encoders import AudioTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.nn.spectrogram import LogMel
from mmjax.objectives import CausalLM, Classification
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import SGD, Experiment, Log, Task, train
from mmjax.train.setup import set_up
from mmjax.train.validate import validated

GREEDY = {"max_new_tokens": 12, "num_beams": 1}  # the pipeline has 5 where nobody says it
COLUMN = Audio(rate=RATE, seconds=1.0, start="first")


def features(extractor, sounds):
    return extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features


def written(model, words, ids):
    """What `generate` gave, without what comes before a text and after its end."""
    special = set(words.all_special_ids)
    return [[token for token in row if token not in special] for row in ids.tolist()]


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    folder = tmp_path_factory.mktemp("english")
    return folder, *save(folder)


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(english, tmp_path, beams):
    folder, model, words, extractor = english
    files, sounds = write(tmp_path / "sounds"), [sound(number) for number in range(4)]
    theirs = model.generate(features(extractor, sounds), num_beams=beams, return_timestamps=False)
    ask = mmjax.Predictor(folder)
    found = ask.generate(sounds=files, num_beams=beams, details=True)
    ours = [[token for token in one.ids if token not in set(words.all_special_ids)] for one in found]
    assert ours == written(model, words, theirs) and len({tuple(row) for row in ours}) > 1
    assert not ask.work.unwritten
    given = [{"array": sounds[0], "sampling_rate": RATE}, files[1]]
    assert [one.ids for one in ask.generate(sounds=given, num_beams=beams, details=True)] == [one.ids for one in found[:2]]


def test_the_language_is_heard_or_said(tmp_path):
    model, words, extractor = save(tmp_path / "hf", LANGUAGES, seed=3)
    files, sounds = write(tmp_path / "sounds"), [sound(number) for number in range(4)]
    ask, inputs = mmjax.Predictor(tmp_path / "hf"), features(extractor, sounds)
    heard = model.detect_language(inputs, generation_config=model.generation_config).tolist()
    names = [ask.work.speech.opening(0, "en", "")[0], *ask.work.speech.languages]
    own = ask.work.speech.heard("caption", model.config.decoder_start_token_id, ask._batch({"audio": files}), ask._rows)
    assert [ask.work.speech.languages[one] for one in own] == heard and len(names) == 4
    for language, task in (("", ""), ("zh", "translate")):
        more = {"language": language, "task": task} if language else {"task": "transcribe"}
        theirs = model.generate(inputs, **more)
        found = ask.generate(sounds=files, language=language, task=task, details=True)
        ours = [[token for token in one.ids if token not in set(words.all_special_ids)] for one in found]
        assert ours == written(model, words, theirs)
    for wrong, line in (
        ({"language": "zz"}, "language='zz' is none of its .*; it has de, en, zh"),
        ({"task": "sing"}, "task='sing': use one of transcribe, translate"),
    ):
        with pytest.raises(UserError, match=line):
            ask.generate(sounds=files, **wrong)


@pytest.fixture
def one_device(monkeypatch):
    build = Mesh.build
    monkeypatch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))


def run_of(folder, home, head=False, words=None):
    """A run that began there, trained a little on the sounds; `words`: the folder of its tokenizer, if it is another."""
    write(home / "sounds")
    assert main(["convert", "from-hf", str(folder), str(home / "start")]) == 0
    columns = {"audio": COLUMN, **({"label": Class(("high", "low"))} if head else {})}
    source = Manifest(str(home / "sounds" / "sounds.jsonl"), "train")
    e = Experiment(
        model=load_model(home / "start"),
        init_from=str(home / "start"),
        tokenizer=mmjax.data.Pretrained(str(words or folder)),
        data={"train": Data(source, (), columns, batch_size=4, max_length=16, threads=0)},
        tasks={"task": Task(Classification() if head else CausalLM())},
        evaluate={},
        steps=3,
        optimizer=SGD(learning_rate=0.005, schedule="constant"),
        log=Log(every=1, tensorboard=False, progress=False),
    )
    train(e, home / "run")
    assert main(["convert", "to-hf", str(home / "run"), str(home / "out")]) == 0
    return [str(home / "sounds" / f"{number}.wav") for number in range(4)]


def raw():
    return [{"raw": sound(number), "sampling_rate": RATE} for number in range(4)]


def test_a_transcriber_is_handed_over(english, tmp_path, capsys, one_device):
    files = run_of(english[0], tmp_path)
    pipe = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / "out"))
    theirs = [pipe(one, generate_kwargs=GREEDY)["text"].strip() for one in raw()]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), *files, "--max_new_tokens", "12"]) == 0
    ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["transcript"] for one in ours] == theirs and [one["audio"] for one in ours] == files
    said = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (said["chunk_length"], said["feature_size"]) == (1, 16)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())  # what came with the weights goes on
    assert (written["suppress_tokens"], written["max_length"], written["is_multilingual"]) == ([7, 9], 12, False)
    ask = mmjax.Predictor(tmp_path / "run")
    assert ask.work.new_tokens(2) == 12 and ask.work.settings("caption")["suppress_tokens"] == [7, 9]
    with pytest.raises(UserError, match="begins with tokens of its own; leave the prompt out"):
        ask.generate("hello", sounds=files[0])
    with pytest.raises(UserError, match=r"is \[n, channels\], and this is \[2, 9000\]: turn it"):
        ask.generate(sounds={"array": np.zeros((2, 9000), np.float32), "sampling_rate": RATE})


def test_a_classifier_of_sounds_is_handed_over(tmp_path, capsys, one_device):
    # It could hear two seconds: what is handed over hears one, as long as what it was trained on.
    sizes = {"classifier_proj_size": 12, "num_labels": 2, "max_source_positions": 100}
    save(tmp_path / "hf", kind="WhisperForAudioClassification", **sizes)
    files = run_of(tmp_path / "hf", tmp_path, head=True)
    pipe = transformers.pipeline("audio-classification", model=str(tmp_path / "out"))
    theirs = [{row["label"]: row["score"] for row in pipe(one, top_k=2)} for one in raw()]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), *files]) == 0
    ours = [json.loads(line)["classes"] for line in capsys.readouterr().out.splitlines()]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_source_positions"] == 50
    assert main(["predict", str(tmp_path / "run"), files[0], "--timestamps"]) == 2
    assert "says classes of sounds, and writes no texts: leave --timestamps out" in capsys.readouterr().err
    for own, other in zip(ours, theirs, strict=True):
        assert {row["label"] for row in own} == set(other) == {"high", "low"}
        assert_close(np.array([row["score"] for row in own]), np.array([other[row["label"]] for row in own]), rtol=1e-5)


def test_what_is_no_sound_or_too_long_is_said(english, tmp_path, capsys, caplog):
    files = write(tmp_path / "sounds", 1)
    (tmp_path / "sounds" / "bad.wav").write_bytes(b"RIFF")
    speech.soundfile.write(tmp_path / "sounds" / "long.wav", np.tile(sound(0), 5), RATE)
    (tmp_path / "sounds" / "sounds.jsonl").unlink()
    assert main(["predict", str(english[0]), str(tmp_path / "sounds")]) == 1
    ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "transcript" in ours[0] and "no sound that can be read" in ours[1]["error"]
    assert (ours[2]["heard"], ours[2]["seconds"]) == (1.0, 2.5) and "of 1 of 2 sounds no more than the first 1 s" in caplog.text
    for words, line in (
        (["--question", "why?"], "reads sounds: --question, --classes and --pair are of images and texts"),
        (["--language", "en"], "its texts all begin alike; leave these out"),
    ):
        assert main(["predict", str(english[0]), files[0], *words]) == 2
        assert line in capsys.readouterr().err


def test_what_stands_in_the_way_of_a_classifier_is_named(tmp_path):
    encoder = AudioTransformer(width=16, depth=1, heads=2, spectrogram=LogMel(mels=8), max_length=60)
    own = Multimodal(encoders={"audio": encoder}, heads={"classes": Classifier(classes=2, input="audio", pool="mean")})
    line = nearest_class(own)
    assert line.startswith("; nearest is WhisperForAudioClassification: model.encoders.audio.") and "has no place in" in line
    assert nearest_class(own.copy(heads={})) == ""


def test_texts_with_times_do_not_say_that_there_are_none(tmp_path):
    """As transformers encodes them with `predict_timestamps`."""
    for languages in ((), LANGUAGES):
        own = speech.tokenizer(languages, times=True)
        text, plain = "<|0.00|> one low tone<|0.52|><|0.60|> two<|0.98|>", "one low tone"
        found = Tokenizer(own).encode([text, plain], 40)
        none = own.convert_tokens_to_ids("<|notimestamps|>")
        wanted = [token for token in own(text)["input_ids"] if token != none]
        assert found["ids"][0][found["mask"][0]].tolist() == wanted and max(wanted) > none
        assert found["ids"][1][found["mask"][1]].tolist() == own(plain)["input_ids"]
        assert Tokenizer(own).encode([text], 8)["ids"][0].tolist()[-1] == own.eos_token_id  # cut, and ended
    with pytest.raises(UserError, match=r"a text has the time <\|0.00\|>, and it has no such token: add those of times"):
        Tokenizer(speech.tokenizer()).encode([text], 40)


def test_features_are_float32_whatever_is_computed_in(english):
    model, params = mmjax.load(english[0])
    waveform = jnp.asarray(np.pad(sound(0), (0, RATE - len(sound(0)))))[None]
    whole = model.encoders["audio"].spectrogram(waveform)[0]
    narrow = model.copy(dtype="bfloat16")
    ours, given = (BoundForward(narrow, params, {"audio": x}).encode("audio").embeddings for x in (waveform, whole))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, given)


def test_an_encoder_of_its_own_hides_padding_and_says_what_it_cannot_read():
    encoder = AudioTransformer(width=16, depth=1, heads=2, spectrogram=LogMel(mels=8), max_length=60)
    x = np.random.default_rng(0).normal(size=(2, 40, 8)).astype(np.float32)
    mask = np.arange(40)[None] < np.array([[40], [20]])
    variables = encoder.init({"params": jnp.zeros(2, jnp.uint32)}, jnp.asarray(x))
    found = encoder.apply(variables, jnp.asarray(x), jnp.asarray(mask))
    assert found.embeddings.shape == (2, 20, 16) and found.mask.sum(axis=1).tolist() == [20, 10]
    other = x.copy()
    other[1, 24:] = 9.0  # beyond what a real frame's two convolutions see
    again = encoder.apply(variables, jnp.asarray(other), jnp.asarray(mask))
    np.testing.assert_allclose(again.embeddings[1, :10], found.embeddings[1, :10], atol=1e-6)
    for shape, line in (((2, 40, 9), "features \\[B, T, 8\\], found an input of shape"), ((2, 200, 8), "100 tokens is longer")):
        with pytest.raises(UserError, match=line):
            encoder.apply(variables, jnp.zeros(shape))
    with pytest.raises(UserError, match="positions='rotary': use fixed, learned or none"):
        encoder.copy(positions="rotary").init({"params": jnp.zeros(2, jnp.uint32)}, jnp.asarray(x))


def test_settings_of_an_extractor_are_the_encoders_or_named(english, tmp_path):
    model = load_model(english[0])
    assert sound_column(english[0], model) == COLUMN
    for field, value, line in (
        ("hop_length", 80, "hop_length=80, and the model's spectrogram has 160"),
        ("dither", 0.1, "dither=0.1"),
        ("chunk_length", "x", "chunk_length='x' is no number of seconds"),
        ("feature_extractor_type", "ASTFeatureExtractor", "feature_extractor_type='ASTFeatureExtractor' is not supported"),
    ):
        said = json.loads((english[0] / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**said, field: value}))
        with pytest.raises(UserError, match=line):
            sound_column(tmp_path, model)
    for column, line in (
        (Audio(rate=8000, seconds=1.0), "columns.audio.rate=8000: the model's spectrogram has rate=16000"),
        (Audio(rate=RATE, seconds=1.5), "seconds=1.5: HuggingFace's extractor has whole seconds"),
        (Audio(rate=RATE, seconds=2.0), "are 100 tokens, and HuggingFace's class reads exactly .*max_length=50"),
    ):
        with pytest.raises(UserError, match=line):
            write_extractor(tmp_path, column, model)


def test_sounds_at_another_rate_than_the_encoders_are_refused(english, tmp_path, one_device):
    write(tmp_path / "sounds")
    source = Manifest(str(tmp_path / "sounds" / "sounds.jsonl"), "train")
    data = Data(source, (), {"audio": Audio(rate=8000, seconds=1.0)}, batch_size=4, max_length=16, threads=0)
    e = Experiment(
        model=load_model(english[0]),
        data={"train": data},
        tasks={"lm": Task(CausalLM())},
        steps=1,
        tokenizer=mmjax.data.Pretrained(str(english[0])),
        evaluate={},
    )
    mesh = e.mesh.build()
    with (
        use_mesh(mesh),
        pytest.raises(UserError, match=r"columns.audio.rate=8000: model.encoders.audio.spectrogram reads rate="),
    ):
        validated(set_up(e, None, mesh))


@pytest.mark.parametrize("languages", [(), LANGUAGES])
def test_texts_begin_as_they_were_trained(tmp_path, one_device, languages):
    """Also where nothing came with the weights but the model: a run with a tokenizer of its own."""
    save(tmp_path / "hf", languages)
    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / "hf" / name).rename(tmp_path / name)
    run_of(tmp_path / "hf", tmp_path, words=tmp_path)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "out")
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "out")
    own = speech.tokenizer(languages)
    found = theirs.generate(features(extractor, [sound(0), sound(1)]), max_new_tokens=12)
    ours = mmjax.Predictor(tmp_path / "run").generate(
        sounds=[str(tmp_path / "sounds" / f"{n}.wav") for n in (0, 1)], max_new_tokens=12, details=True
    )
    kept = [[token for token in one.ids if token not in set(own.all_special_ids)] for one in ours]
    assert kept == written(theirs, own, found)
