"""Trained and pretrained tokenizers: what they encode, that training is deterministic, and the HuggingFace folder."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmjax.core.errors import UserError
from mmjax.data import BPE, TOKENIZERS, Pretrained, Tokenizer, WordPiece

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEXTS = [t.format(n) for t in ("a photo of the number {}.", "Handwritten {}!", "the digit {}, in pencil") for n in NAMES]


@pytest.fixture(scope="module")
def wordpiece():
    return WordPiece(200).train(TEXTS)


@pytest.fixture(scope="module")
def bpe():
    return BPE(400).train(TEXTS)


def test_roles(wordpiece, bpe):
    assert (wordpiece.pad_id, wordpiece.bos_id, wordpiece.eos_id, wordpiece.mask_id) == (0, 2, 3, 4)
    assert wordpiece.special_ids == (0, 1, 2, 3, 4)
    assert (bpe.pad_id, bpe.bos_id, bpe.eos_id, bpe.mask_id) == (0, 1, 2, 3)
    assert bpe.special_ids == (0, 1, 2, 3)
    assert wordpiece.vocab_size <= 200 and bpe.vocab_size <= 400


@pytest.mark.parametrize("name", ["wordpiece", "bpe"])
def test_encode_pads_on_the_right(name, request):
    tokenizer = request.getfixturevalue(name)
    found = tokenizer.encode(["the digit one, in pencil", "zero"], 12)
    assert found["ids"].dtype == found["segments"].dtype == np.int32 and found["mask"].dtype == bool
    for ids, mask in zip(found["ids"], found["mask"], strict=True):
        length = mask.sum()
        assert mask[:length].all() and ids[0] == tokenizer.bos_id and ids[length - 1] == tokenizer.eos_id
        assert (ids[length:] == tokenizer.pad_id).all()
    assert not found["truncated"].any() and not found["segments"].any()
    assert tokenizer.decode(found["ids"][0]) == "the digit one, in pencil"


def test_truncation_keeps_the_end(wordpiece):
    whole = wordpiece.encode([TEXTS[0]], 32)["ids"][0]
    length = int((whole != 0).sum())
    for room in range(3, length):
        found = wordpiece.encode([TEXTS[0], "zero"], room)
        assert found["truncated"].tolist() == [True, room < 3]
        assert found["ids"][0].tolist() == [*whole[: room - 1], wordpiece.eos_id]
    assert not wordpiece.encode([TEXTS[0]], length)["truncated"].any()


def test_pairs(wordpiece):
    found = wordpiece.encode(["zero one", "two"], 10, pairs=["three", "four five six"])
    zero, one, three = (wordpiece.huggingface.convert_tokens_to_ids(word) for word in ("zero", "one", "three"))
    assert found["ids"][0].tolist() == [2, zero, one, 3, three, 3, 0, 0, 0, 0]
    assert found["segments"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]]
    cut = wordpiece.encode(["two"], 6, pairs=["four five six seven"])
    assert cut["truncated"].tolist() == [True] and cut["ids"][0, -1] == 3 and cut["segments"][0].tolist() == [0, 0, 0, 1, 1, 1]


def test_unknown_letters_and_case(wordpiece):
    assert wordpiece.encode(["ZERO"], 4)["ids"].tolist() == wordpiece.encode(["zéro"], 4)["ids"].tolist()
    assert wordpiece.encode(["日"], 4)["ids"].tolist() == [[2, 1, 3, 0]]
    cased = WordPiece(200, lowercase=False).train(TEXTS)
    assert cased.encode(["Z"], 4)["ids"].tolist() == [[2, 1, 3, 0]]


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=20))
def test_bpe_loses_nothing(bpe, text):
    assert bpe.decode(bpe.encode([text], 100)["ids"][0]) == text


@pytest.mark.parametrize("spec", [WordPiece(90), BPE(300)])
def test_the_same_texts_give_the_same_tokenizer(spec):
    vocabularies = [spec.train(iter(TEXTS)).huggingface.get_vocab() for _ in range(5)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_saved_folder_opens_here_and_with_huggingface(wordpiece, bpe, tmp_path):
    for tokenizer in (wordpiece, bpe):
        tokenizer.save(tmp_path)
        again = Tokenizer.load(tmp_path)
        for attribute in ("vocab_size", "pad_id", "bos_id", "eos_id", "mask_id", "special_ids"):
            assert getattr(again, attribute) == getattr(tokenizer, attribute)
        expected = tokenizer.encode(TEXTS, 16)["ids"]
        np.testing.assert_array_equal(again.encode(TEXTS, 16)["ids"], expected)
        theirs = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding="max_length", max_length=16, truncation=True)
        assert theirs["input_ids"] == expected.tolist()
        pickled = pickle.loads(pickle.dumps(tokenizer))
        np.testing.assert_array_equal(pickled.encode(TEXTS, 16)["ids"], expected)


def test_threads_share_a_tokenizer(bpe):
    whole, cut = bpe.encode(TEXTS, 64), bpe.encode(TEXTS, 5)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: bpe.encode(TEXTS, 5 if i % 2 else 64), range(40)))
    for i, one in enumerate(found):
        expected = cut if i % 2 else whole
        assert all((one[key] == expected[key]).all() for key in expected)


def test_a_tokenizer_that_needs_another_package(tmp_path, wordpiece, monkeypatch):
    wordpiece.save(tmp_path)
    message = "\nX requires the Y library but it was not found in your environment. Check out\nits page.\n"
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", Mock(side_effect=ImportError(message)))
    with pytest.raises(UserError, match=r"path='.*': X requires the Y library but it was not found in your environment$"):
        Pretrained(str(tmp_path)).train(())


def test_mistakes(tmp_path, wordpiece):
    cases = [
        (lambda: WordPiece(20).train(TEXTS), "WordPiece.vocab_size=20: the characters of the corpus alone take"),
        (lambda: BPE(100).train(TEXTS), "BPE.vocab_size=100: the characters of the corpus alone take 260"),
        (lambda: BPE().train([]), "no texts to train on"),
        (lambda: Pretrained("/nowhere").train(()), "Pretrained.path='/nowhere': no such folder"),
        (lambda: Pretrained(str(tmp_path)).train(()), "no tokenizer can be read from it"),
        (lambda: wordpiece.encode(["a"], 2), "max_length=2 leaves no room"),
    ]
    for mistake, message in cases:
        with pytest.raises(UserError) as raised:
            mistake()
        assert message in str(raised.value) and "\n" not in str(raised.value)
    assert {"wordpiece", "bpe", "pretrained"} < set(TOKENIZERS)


WORDS = {word: i for i, word in enumerate(("<end>", "<begin>", "<pad>", "a", "red", "cat", "dog"))}


@pytest.fixture
def folder(tmp_path):
    """Writes a folder of a tokenizer of whole words whose texts stand between what a template says; returns its path."""

    def write(template="$A", **roles):
        backend = Backend(models.WordLevel(WORDS, unk_token="<end>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        named = [(word, i) for word, i in WORDS.items() if word.startswith("<")]
        if template != "$A":
            backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
        PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(tmp_path / "theirs")
        return str(tmp_path / "theirs")

    return write


ENDS = {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<pad>"}


@pytest.mark.parametrize(
    ("template", "roles", "wanted"),
    [
        ("$A", ENDS, [1, 3, 4, 5, 0]),  # writes nothing, as GPT-2's
        ("$A", {"bos_token": "<end>", "eos_token": "<end>"}, [0, 3, 4, 5, 0]),
        ("$A", {"eos_token": "<end>", "pad_token": "<pad>"}, [2, 3, 4, 5, 0]),
        ("<begin> $A", ENDS, [1, 3, 4, 5, 0]),  # as Llama's
        ("$A <end>", ENDS, [3, 4, 5, 0]),  # as T5's
        ("<begin> $A <end>", ENDS, [1, 3, 4, 5, 0]),
    ],
)
def test_every_text_has_an_end(folder, template, roles, wanted):
    tokenizer = Pretrained(folder(template, **roles)).train(())
    for there in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        found = there.encode(["a red cat", "dog"], 7)
        assert found["ids"][0, found["mask"][0]].tolist() == wanted and not found["truncated"].any()
        assert found["mask"].sum(1).tolist() == [len(wanted), len(wanted) - 2] and not found["segments"].any()
    cut = tokenizer.encode(["a red cat"], len(wanted) - 1)
    assert cut["ids"][0].tolist() == [*wanted[:-2], wanted[-1]] and cut["truncated"].all()
    with pytest.raises(UserError, match="leaves no room"):
        tokenizer.encode(["a"], len(wanted) - 3)
    assert tokenizer.decode(found["ids"][0]) == "a red cat"


def test_the_ends_of_pairs_and_of_nothing(folder):
    tokenizer = Pretrained(folder(**ENDS)).train(())
    found = tokenizer.encode(["a", "a"], 6, pairs=["red cat", ""])
    assert found["ids"].tolist() == [[1, 3, 4, 5, 0, 2], [1, 3, 0, 2, 2, 2]]
    assert found["segments"].tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert tokenizer.encode([""], 4)["ids"].tolist() == [[1, 0, 2, 2]]


def test_a_tokenizer_that_writes_its_ends_gives_what_it_gave(wordpiece, bpe):
    for tokenizer in (wordpiece, bpe):
        assert (tokenizer.begins, tokenizer.ends) == ((), ())


def test_no_code_of_a_folder_is_run(folder, tmp_path, monkeypatch):
    path, mark = folder(**ENDS), tmp_path / "mark"
    code = f"from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast as Own\nPath({str(mark)!r}).touch()\n"
    (tmp_path / "theirs" / "own.py").write_text(code)
    config = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", Mock(side_effect=AssertionError("somebody is asked")))
    for opened in (lambda: Pretrained(path).train(()), lambda: Tokenizer.load(path)):
        with pytest.raises(UserError, match=r"its tokenizer is code of its own, which is not run"):
            opened()
    assert not mark.exists()
