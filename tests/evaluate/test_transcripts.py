"""Transcripts of a head that says what the data holds, scored against jiwer."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from fake_evaluation import make_evaluation

from mmjax.core.errors import UserError
from mmjax.core.types import Tokens
from mmjax.data import Strings
from mmjax.evaluate import Transcripts

LETTERS = ["-", "a", "b", " "]
REFERENCES = ["ab b", "", "a", ("c",), (), "ba", "aa", "b a"]  # "c" is no letter of the tokenizer's; () is no reference
SAID = ["-ab- b-", "-------", "aaa----", "a-a----", "b------", "bbbaaaa", "-a-a-aa", "bb-  a-"]
HEARD = ["ab b", "", "a", "aa", "b", "ba", "aaa", "b a"]


class Letters:
    """A tokenizer of single letters."""

    pad_id, vocab_size = 0, 4

    def decode(self, ids):
        return "".join(LETTERS[i] for i in ids)


class Said:
    """A forward whose head gives the logits of the batch."""

    train = False

    def __init__(self, params, batch):
        self.batch = batch

    def complete(self, ask=None):
        return None  # no row lacks anything

    def head(self, head):
        return self.batch["logits"] if head == "ctc" else self.batch["logits"][:, 0]

    def spec(self, path):
        return types.SimpleNamespace(input="audio")

    def tokens(self, name):
        mask = self.batch["real"]
        return Tokens(jnp.zeros((*mask.shape, 1)), mask)


def evaluation(**more):
    frames = np.array([[LETTERS.index(letter) for letter in said] for said in SAID])
    bytes_BRL = Strings(rows=2, length=8).build("references", "", None, {})(REFERENCES, [{}] * len(REFERENCES))[0]
    columns = {"logits": np.eye(4, dtype=np.float32)[frames] * 9, "real": np.ones(frames.shape, bool), **bytes_BRL}
    return make_evaluation({**columns, **more}, bind=Said, tokenizer=Letters())


def test_error_rates_are_those_of_jiwer_over_examples_with_a_reference():
    import jiwer

    asked = evaluation()
    asked.kept = []
    metrics = Transcripts()(asked, {})
    kept = [n for n, own in enumerate(REFERENCES) if own != ()]
    heard, references = [HEARD[n] for n in kept], ["ab b", "", "a", "c", "ba", "aa", "b a"]
    assert [(one["index"], one["text"]) for one in asked.kept] == list(zip(kept, heard, strict=True))
    assert metrics["word_error_rate"] == pytest.approx(jiwer.wer(references, heard))
    assert metrics["word_error_rate"] == pytest.approx(2 / 8) and metrics["character_error_rate"] == pytest.approx(3 / 13)
    assert metrics["letters"] == pytest.approx(np.mean(list(map(len, heard)))) and metrics["empty"] == pytest.approx(1 / 7)


def test_beams_hear_as_much_of_what_is_sure():
    assert Transcripts(beams=3)(evaluation(), {}) == pytest.approx(Transcripts()(evaluation(), {}))


@pytest.mark.parametrize(
    ("spec", "more", "words"),
    [
        ({"scores": ()}, {}, r"^scores=\(\): name some of bleu"),
        ({"scores": ("error_rate",)}, {}, r"^scores has 'error_rate' \(did you mean 'error_rates'\?\)"),
        ({"head": "pooled"}, {}, r"model\.heads\.pooled gives 4 an example, and letters are read from one class a frame"),
        ({}, {"logits": np.zeros((8, 7, 5), np.float32)}, r"model\.heads\.ctc\.classes=5: the tokenizer has 4 tokens, so"),
        ({"references": "said"}, {}, r"data='validation' has no 'said', which texts are held against"),
        ({"text": "words"}, {}, r"tokenizer=None: transcripts reads words"),
        ({}, {"references": np.full((8, 1, 4), 255, np.uint8)}, r"has no example with a text in 'references'"),
    ],
)
def test_what_does_not_fit_is_named(spec, more, words):
    with pytest.raises(UserError, match=words):
        Transcripts(**spec)(evaluation(**more), {})
