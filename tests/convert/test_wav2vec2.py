"""Encoders of waveforms and of patches of sound at work beside `transformers`: what they hear, and what is handed over."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("soundfile", reason="what reads sounds is not installed")
from families import CASES
from parity import assert_close, bound, compiled, randomise
from speech import RATE, TEXTS, sound, write

import mmjax
from mmjax.cli import main
from mmjax.convert.letters import save_letters
from mmjax.convert.sounds import sound_column, with_extractor, write_extractor
from mmjax.core.errors import UserError
from mmjax.data import Audio, Class, Data, Manifest, Tokenizer
from mmjax.data.tokenizers import Characters, Words
from mmjax.models import Multimodal
from mmjax.models.encoders import ResNet, SpectrogramViT, WaveformTransformer
from mmjax.models.heads import TokenClassifier
from mmjax.nn.spectrogram import Fbank
from mmjax.objectives import Classification
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, Experiment, Log, Task, train

SIZES = CASES["wav2vec2"].sizes
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEHLONSTU"]  # as many as SIZES has


def save(folder, kind="Wav2Vec2ForCTC", **changes):
    """A random model with its extractor, and its tokenizer if it says letters."""
    made = getattr(transformers, kind)
    model = randomise(made(made.config_class(**{**SIZES, **changes})))
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=changes.get("feat_extract_norm") == "layer").save_pretrained(
        folder
    )
    if "CTC" in kind:
        (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(LETTERS)}))
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), do_lower_case=True).save_pretrained(folder)
    return folder


def raw(count=4):
    return [{"raw": sound(number), "sampling_rate": RATE} for number in range(count)]


@pytest.fixture
def one_device(monkeypatch):
    build = Mesh.build
    monkeypatch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_recogniser_is_handed_over(tmp_path, norm):
    """What it says of sounds of several lengths in one batch is what the pipeline says of each."""
    save(tmp_path / "hf", feat_extract_norm=norm)
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "run")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    pipe = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / "out"))
    theirs = [pipe(one)["text"] for one in raw()]
    ask = mmjax.Predictor(tmp_path / "run")
    batch = ask._batch({"audio": write(tmp_path / "sounds")})
    assert batch["audio"].shape == (4, RATE)  # of 30 s that it would hear, the second that there is

    def said(params, batch):
        forward = bound(ask.work.model, params, batch)
        return forward.head("ctc").argmax(axis=-1), forward.encode("audio").mask

    ids, mask = compiled(said)(ask.work.params, batch)
    words = ask.work.tokenizer
    ours = [
        words.decode([i for n, i in enumerate(row) if n == 0 or row[n - 1] != i]) for row in map(np.array, _real(ids, mask))
    ]
    assert ours == [text.replace("<s>", "").replace("</s>", "").replace("<unk>", "").strip() for text in theirs]
    assert len(set(ours)) > 1 and all(ours)


def _real(ids, mask):
    return [[int(i) for i in row[own]] for row, own in zip(np.array(ids), np.array(mask), strict=True)]


def test_a_base_learns_to_write_and_is_handed_over(tmp_path, capsys, one_device):
    """With letters of its own, which the folder says as `transformers` reads them; untrained, so that all of them are said."""
    from mmjax.objectives import ctc as objectives

    save(tmp_path / "hf", "Wav2Vec2Model", vocab_size=9)
    files = write(tmp_path / "sounds")
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "start")]) == 0
    source = Manifest(str(tmp_path / "sounds" / "sounds.jsonl"), "train")
    columns = {"audio": Audio(rate=RATE, seconds=1.0, start="first")}
    size = len(Characters().train(TEXTS).huggingface)
    head = TokenClassifier(classes=size, input="audio", transform=False)
    e = Experiment(
        model=mmjax.convert.load_model(tmp_path / "start").copy(heads={"ctc": head}),
        init_from=str(tmp_path / "start"),
        init_fresh=("heads_ctc/*",),
        tokenizer=Characters(),
        data={"train": Data(source, (), columns, batch_size=4, max_length=30, threads=0)},
        tasks={"task": Task(objectives.CTC(special_ids=(2, 3)))},
        evaluate={},
        steps=1,
        optimizer=SGD(learning_rate=0.001, schedule="constant"),
        log=Log(every=1, tensorboard=False, progress=False),
    )
    train(e, tmp_path / "run")
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    pipe = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / "out"))
    said = pipe.model.config
    assert (type(pipe.model).__name__, said.vocab_size, said.pad_token_id) == (
        "Wav2Vec2ForCTC",
        size,
        pipe.tokenizer.pad_token_id,
    )
    theirs = [re.sub(r"\[[A-Z]+\]", "", pipe(one)["text"]).strip() for one in raw()]  # without special tokens, which it writes
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), *files]) == 0
    assert [json.loads(line)["transcript"] for line in capsys.readouterr().out.splitlines()] == theirs and any(theirs)


@pytest.mark.slow
def test_a_classifier_is_handed_over(tmp_path, capsys, one_device):
    """A base, with a head that starts anew, trained a little."""
    save(tmp_path / "hf", "HubertModel")
    files = write(tmp_path / "sounds")
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "start")]) == 0
    columns = {"audio": Audio(rate=RATE, seconds=1.0, start="first"), "label": Class(("high", "low"))}
    source = Manifest(str(tmp_path / "sounds" / "sounds.jsonl"), "train")
    e = Experiment(
        model=mmjax.convert.load_classifier(tmp_path / "start", classes=2),
        init_from=str(tmp_path / "start"),
        init_fresh=("heads_classes/*",),
        data={"train": Data(source, (), columns, batch_size=4, max_length=16, threads=0)},
        tasks={"task": Task(Classification())},
        evaluate={},
        steps=2,
        optimizer=SGD(learning_rate=0.005, schedule="constant"),
        log=Log(every=1, tensorboard=False, progress=False),
    )
    train(e, tmp_path / "run")
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    pipe = transformers.pipeline("audio-classification", model=str(tmp_path / "out"))
    assert type(pipe.model).__name__ == "HubertForSequenceClassification" and not pipe.feature_extractor.return_attention_mask
    theirs = [{row["label"]: row["score"] for row in pipe(one, top_k=2)} for one in raw()]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), *files]) == 0
    check_classes([json.loads(line)["classes"] for line in capsys.readouterr().out.splitlines()], theirs)


def check_classes(ours, theirs):
    for own, other in zip(ours, theirs, strict=True):
        assert {row["label"] for row in own} == set(other) == {"high", "low"}
        assert_close(np.array([row["score"] for row in own]), np.array([other[row["label"]] for row in own]), rtol=1e-5)


def test_patches_of_sound_are_classified_as_in_the_pipeline(tmp_path):
    said = {**CASES["audio-spectrogram-transformer"].sizes, "max_length": 60, "num_mel_bins": 16}
    config = transformers.ASTConfig(**said, id2label={0: "high", 1: "low"})
    randomise(transformers.ASTForAudioClassification(config)).save_pretrained(tmp_path)
    own = {"num_mel_bins": 16, "max_length": 60, "mean": -5.0, "std": 3.0}
    transformers.ASTFeatureExtractor(**own).save_pretrained(tmp_path)
    pipe = transformers.pipeline("audio-classification", model=str(tmp_path))
    theirs = [{row["label"]: row["score"] for row in pipe(one, top_k=2)} for one in raw()]
    ask = mmjax.Predictor(tmp_path)
    assert ask.work.hears.samples == 59 * 160 + 400
    rows = ask.classify(sounds=[{"array": sound(number), "sampling_rate": RATE} for number in range(4)], top_k=2)
    check_classes(rows, theirs)


@pytest.mark.parametrize(
    ("encoder", "seconds", "length"),
    [
        (WaveformTransformer(normalise=False, extract_norm="layer"), 1.0, 16000),
        (WaveformTransformer(), 1.0, 16000),
        (SpectrogramViT(spectrogram=Fbank(mels=16, length=60, mean=-5.0, deviation=3.0), max_length=60), 0.65, 10400),
    ],
    ids=["as it is", "normalised", "patches"],
)
def test_what_is_written_of_an_extractor_makes_what_the_encoder_makes(encoder, seconds, length, tmp_path):
    model = Multimodal(encoders={"audio": encoder})
    write_extractor(tmp_path, Audio(rate=RATE, seconds=seconds), model)
    theirs = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    x = [sound(number)[:length] for number in (0, 3)]
    expect = [
        theirs(own, sampling_rate=RATE, return_tensors="np")["input_values"][0] for own in x
    ]  # alone: else padding counts
    rows = np.stack([np.pad(own, (0, length - len(own))) for own in x])
    mask = np.arange(length)[None] < np.array([[len(own)] for own in x])
    found = jax.jit(encoder.front)({"": jnp.asarray(rows), "mask": jnp.asarray(mask)})[""]
    for row, own in zip(np.asarray(found), expect, strict=True):
        assert_close(row[: len(own)], own)
    bare = Multimodal(encoders={"audio": _bare(encoder)})
    assert with_extractor(tmp_path, bare) == model  # and is read again
    assert sound_column(tmp_path, model) == Audio(rate=RATE, seconds=_seconds(encoder), start="first")


def _bare(encoder):
    """As config.json alone makes it."""
    if isinstance(encoder, WaveformTransformer):
        return encoder.copy(normalise=True)
    return encoder.copy(spectrogram=Fbank(mels=16, length=60))


def _seconds(encoder):
    return 30.0 if isinstance(encoder, WaveformTransformer) else (59 * 160 + 400) / RATE


WAVE, PATCHES = (Multimodal(encoders={"audio": one}) for one in (WaveformTransformer(), SpectrogramViT()))


@pytest.mark.parametrize(
    ("model", "said", "line"),
    [
        (WAVE, {"sampling_rate": "fast"}, 'sampling_rate="fast" is no value of it; by default it is 16000'),
        (WAVE, {"do_normalize": 1}, "do_normalize=1 is no value of it; by default it is true"),
        (WAVE, {"padding_value": 1.0}, "padding_value=1.0, and the model's encoder has 0.0"),
        (
            WAVE,
            {"feature_extractor_type": "ASTFeatureExtractor"},
            "is not supported for this model; use Wav2Vec2FeatureExtractor",
        ),
        (PATCHES, {"mean": None}, "mean=null is no value of it; by default it is -4.2677393"),
        (PATCHES, {"std": 0.0}, "deviation=0.0"),
        (PATCHES, {"max_length": 512}, "max_length=512, and the model's spectrogram has 1024"),
        (PATCHES, {"sampling_rate": 30}, "fmin=20 and fmax=15"),
        (
            Multimodal(encoders={"audio": ResNet()}),
            {"feature_extractor_type": "X"},
            "feature_extractor_type='X' is not supported",
        ),
    ],
)
def test_what_a_file_says_that_no_encoder_has(model, said, line, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=line):
        sound_column(tmp_path, with_extractor(tmp_path, model))


def test_features_that_are_not_normalised_are_read_so(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "sampling_rate": 8000}))
    front = with_extractor(tmp_path, PATCHES).encoders["audio"].spectrogram
    assert (front.rate, front.fmax, front.mean, front.deviation) == (8000, 4000.0, 0.0, 0.5)


@pytest.mark.parametrize(
    ("model", "column", "line"),
    [
        (WAVE, Audio(rate=8000), "columns.audio.rate=8000: the model's encoder has rate=16000"),
        (
            PATCHES,
            Audio(seconds=5.0),
            r"seconds=5: HuggingFace's class reads max_length=1024 frames, 10.255 s; train with as many",
        ),
        (
            Multimodal(encoders={"audio": SpectrogramViT(spectrogram=Fbank(hop=80))}),
            Audio(seconds=30.0),
            "spectrogram: hop=80; HuggingFace's extractor has 160",
        ),
        (
            Multimodal(encoders={"audio": SpectrogramViT(spectrogram=Fbank(fmax=4000.0))}),
            Audio(seconds=30.0),
            "spectrogram: fmax=4000; HuggingFace's extractor has 8000",
        ),
        (Multimodal(encoders={"audio": ResNet()}), Audio(), "no feature extractor of HuggingFace's makes what ResNet reads"),
    ],
)
def test_what_no_extractor_can_do_is_not_written(model, column, line, tmp_path):
    with pytest.raises(UserError, match=line):
        write_extractor(tmp_path, column, model)


def test_masked_frames_are_those_of_huggingface(tmp_path):
    case = CASES["wav2vec2"]
    theirs = case.make(case.models[0])
    theirs.save_pretrained(tmp_path)
    model, params = mmjax.load(tmp_path)
    batch = case.batch(theirs)
    hidden = np.random.default_rng(1).random(batch["frames"].shape) < 0.3
    with torch.no_grad():
        expect = theirs(torch.tensor(batch["audio"]), mask_time_indices=torch.tensor(hidden)).last_hidden_state
    given = {"audio": batch["audio"], "audio_segments": hidden.astype(np.int32)}
    found = compiled(lambda params, batch: bound(model, params, batch).encode("audio").embeddings)(params, given)
    assert_close(found, expect)


def test_letters_go_both_ways(tmp_path):
    """A text of ours is read by theirs, and frames of theirs become the text that ours makes of its letters."""
    own = Characters().train(["hello all of you"])
    save_letters(tmp_path, own)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = own.whole("hello you")[1:-1]
    assert theirs("hello you")["input_ids"] == ids and theirs.pad_token_id == own.pad_id
    frames = [i for one in ids for i in (one, one, own.pad_id)]
    assert theirs.decode(frames) == own.decode(ids) == "hello you"
    read = Tokenizer.load(tmp_path)
    assert read.whole("hello you") == ids and read.decode(ids) == "hello you"  # no letter twice is one letter
    assert (read.begins, read.ends, read.delimiter_id) == ((), (), theirs.word_delimiter_token_id)
    save_letters(tmp_path / "again", read)
    assert json.loads((tmp_path / "again" / "vocab.json").read_text()) == json.loads((tmp_path / "vocab.json").read_text())
    for other, line in (
        (Words().train(["all"]), "say letters, and the tokenizer has 'all': use Characters"),
        (Characters().train(["a | b"]), r"write a space as '\|', which is a letter here: train without it"),
    ):
        with pytest.raises(UserError, match=line):
            save_letters(tmp_path, other)


def test_sounds_at_another_rate_are_refused(tmp_path, one_device):
    from mmjax.train.validate import _check_rates

    data = Data(Manifest("there", "train"), (), {"audio": Audio(rate=8000)})
    e = Experiment(model=WAVE, data={"train": data}, tasks={}, steps=1)
    with pytest.raises(UserError, match=r"columns.audio.rate=8000: model.encoders.audio reads rate=16000; give both the same"):
        _check_rates(e)
