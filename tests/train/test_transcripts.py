"""What would teach letters wrongly without a complaint, found at set-up."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import Audio, Characters, Data, Manifest, Pretrained, Tokenizer
from mmjax.data.sound import wav
from mmjax.models import Multimodal
from mmjax.models.encoders import AudioTransformer
from mmjax.models.heads import TokenClassifier
from mmjax.nn.spectrogram import LogMel
from mmjax.objectives import CTC
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, Experiment, Task
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.validate import validated


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    lines = []
    for number, text in enumerate(("ab", "ba", "abba", "a")):
        (folder / f"{number}.wav").write_bytes(wav(np.sin(np.arange(1600) * (number + 1) / 9), 8000))
        lines.append({"audio": f"{number}.wav", "text": text, "split": "train"})
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def experiment(sounds, objective, classes=7, start="first", tokenizer=None):
    columns = {"audio": Audio(rate=8000, seconds=0.2, start=start)}
    size = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 8}
    mel = LogMel(rate=8000, n_fft=64, hop=80, mels=8, fmax=4000.0)
    return Experiment(
        model=Multimodal(
            encoders={"audio": AudioTransformer(spectrogram=mel, max_length=10, **size)},
            heads={"ctc": TokenClassifier(classes=classes, input="audio", transform=False)},
        ),
        data={"train": Data(Manifest(str(sounds / "lines.jsonl")), (), columns, batch_size=2, max_length=8, threads=0)},
        tokenizer=tokenizer or Characters(),
        tasks={"letters": Task(objective)},
        optimizer=SGD(),
        steps=2,
    )


def checked(made):
    return validated(set_up(made, Run("nowhere"), Mesh(data=1).build(jax.devices()[:1])))


def test_nothing_is_said_of_what_is_right(sounds):
    setup = checked(experiment(sounds, CTC(special_ids=(2, 3))))
    assert setup.tokenizers[""].vocab_size == 7 and not any("letters" in note and ":" in note[8:] for note in setup.notes[1:])


@pytest.mark.parametrize(
    ("objective", "more", "words"),
    [
        (
            CTC(),
            {},
            r"special_ids=\(\): the tokenizer writes '\[CLS\]' and '\[SEP\]' around each text, .*use special_ids=\(2, 3\)$",
        ),
        (CTC(special_ids=(3,)), {}, r"the tokenizer writes '\[CLS\]' around each text, .*; use special_ids=\(2, 3\)$"),
        (CTC(special_ids=(2, 3, 5)), {}, r"special_ids=\(2, 3, 5\): 5 is 'a', a letter, which would be left out of each text$"),
        (CTC(special_ids=(2, 3, 9)), {}, r"special_ids=\(2, 3, 9\): 9 is no token of the tokenizer"),
        (CTC(blank_id=5), {}, r"blank_id=5: the blank is the tokenizer's padding token, '\[PAD\]', which is 0, and 5 is 'a'$"),
        (CTC(special_ids=(2, 3)), {"classes": 8}, r"^model\.heads\.ctc\.classes=8: tasks\.letters .* has 7; use classes=7$"),
        (CTC(special_ids=(2, 3)), {"start": "random"}, r"^data\.train\.columns\.audio\.start='random': .*use start='first'"),
    ],
)
def test_what_would_train_wrongly_is_refused(sounds, objective, more, words):
    with pytest.raises(UserError, match=words) as error:
        checked(experiment(sounds, objective, **more))
    assert "\n" not in str(error.value) and str(error.value).startswith(("tasks.letters.objective: ", "model.", "data."))


def test_a_tokenizer_without_padding_has_no_blank(sounds, tmp_path):
    """And a tokenizer of wav2vec2's kind writes nothing around a text."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6}
    from transformers import Wav2Vec2CTCTokenizer

    (tmp_path / "vocab.json").write_text(json.dumps(words))
    own = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    Tokenizer(own).save(tmp_path / "letters")
    spec = Pretrained(str(tmp_path / "letters"))
    checked(experiment(sounds, CTC(special_ids=(1, 2)), tokenizer=spec))
    checked(experiment(sounds, CTC(), tokenizer=spec))
    made = set_up(
        experiment(sounds, CTC(special_ids=(1, 2)), tokenizer=spec), Run("nowhere"), Mesh(data=1).build(jax.devices()[:1])
    )
    made.datasets["train"].texts()["text"][0].huggingface.pad_token = None
    with pytest.raises(UserError, match=r"blank_id=0: the tokenizer has no padding token, which is the blank; set a pad_token"):
        validated(dataclasses.replace(made))


def test_letters_that_the_tokenizer_does_not_know_are_counted(sounds):
    setup = checked(experiment(sounds, CTC(special_ids=(2, 3)), classes=6, tokenizer=Characters(vocab_size=6)))
    dataset = setup.datasets["train"]
    dataset.lost = type(dataset.lost)()  # what set-up has read to try it
    batch = next(iter(setup.batches("train", 0)))
    unknown = int((batch["text"] == 1).sum())
    assert dataset.lost.unknown == unknown > 0 and dataset.lost.tokens == int(batch["text_mask"].sum())
