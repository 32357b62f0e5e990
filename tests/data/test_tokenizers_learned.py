"""Tokenizers of whole characters and words, and forms of Unicode."""
# ruff: noqa: RUF001

import numpy as np
import pytest
from transformers import AutoTokenizer

from mmjax.core.errors import UserError
from mmjax.data import BPE, TOKENIZERS, Characters, Tokenizer, WordPiece, Words

CHINESE = ["红色的圆在蓝色的方块左边", "一个 红色的三角", "ＡＢＣ１２３，ｶﾅ"]


def ids_of(tokenizer, text, length=24):
    found = tokenizer.encode([text], length)
    return found["ids"][0][found["mask"][0]].tolist()


def test_each_character_is_a_token_and_a_text_comes_back():
    tokenizer = Characters(100).train(CHINESE)
    for text in CHINESE[:2]:
        assert len(ids_of(tokenizer, text)) == len(text) + 2
        assert tokenizer.decode(ids_of(tokenizer, text)) == text
    assert tokenizer.decode(ids_of(tokenizer, "  红 \n 色 ")) == "红 色"
    unknown = tokenizer.encode(["红鲸"], 8)
    assert tokenizer.unknown(unknown["ids"], unknown["mask"]).tolist() == [1]


def test_each_word_is_a_token():
    tokenizer = Words(100).train(["A red circle, left of it.", "a red  square"])
    assert tokenizer.decode(ids_of(tokenizer, "a Red circle")) == "a red circle"
    assert len(ids_of(tokenizer, "left, of")) == 5
    assert tokenizer.vocab_size == 5 + len({"a", "red", "circle", ",", "left", "of", "it", ".", "square"})


@pytest.mark.parametrize("spec", [Characters(12), Words(9)], ids=["characters", "words"])
def test_the_most_frequent_are_kept_in_one_order(spec):
    texts = ["b b b c c a a d", "e f"]
    tokenizer = spec.train(texts)
    assert tokenizer.vocab_size == spec.vocab_size
    assert spec.train(reversed(texts)).huggingface.get_vocab() == tokenizer.huggingface.get_vocab()
    ranked = [token for token in tokenizer.huggingface.convert_ids_to_tokens(range(5, 9)) if token != " "]
    assert ranked == ["b", "a", "c", "d"][: len(ranked)]


@pytest.mark.parametrize("spec", [WordPiece(200, unicode="nfkc"), BPE(300, unicode="nfkc"), Characters(60), Words(60)], ids=str)
def test_full_width_and_half_width_forms_are_the_usual_ones(spec):
    tokenizer = spec.train([*CHINESE, "abc123,カナ"])
    assert ids_of(tokenizer, "ＡＢＣ１２３，ｶﾅ") == ids_of(tokenizer, "ABC123,カナ")
    apart = WordPiece(200).train([*CHINESE, "abc123,カナ"])
    assert ids_of(apart, "ＡＢＣ１２３") != ids_of(apart, "ABC123")


@pytest.mark.parametrize("spec", [Characters(60), Words(60)], ids=["characters", "words"])
def test_a_saved_folder_opens_here_and_with_huggingface(spec, tmp_path):
    tokenizer = spec.train(CHINESE)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in CHINESE:
        assert theirs(text)["input_ids"] == ids_of(tokenizer, text) == ids_of(Tokenizer.load(tmp_path), text)
        assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == tokenizer.decode(ids_of(tokenizer, text))


def test_mistakes_are_named():
    assert set(TOKENIZERS) >= {"characters", "words"}
    with pytest.raises(UserError, match=r"Characters.vocab_size=5: the special tokens alone are 5"):
        Characters(5).train(CHINESE)
    with pytest.raises(UserError, match=r"Words.unicode='nkfc'.*use one of nfc, nfkc, or none"):
        Words(50, unicode="nkfc").train(CHINESE)
    with pytest.raises(UserError, match="no texts to train on"):
        Words(50).train([])
    special = Words(50, special=("[E1]",)).train(["a b"])
    assert np.count_nonzero(np.array(ids_of(special, "a [E1] b")) == special.vocab_size - 1) == 1


@pytest.mark.parametrize("spec", [WordPiece(60), BPE(300), Characters(60)], ids=str)
def test_half_a_surrogate_pair_is_the_replacement_character(spec):
    cut = "a cut emoji \ud83d"
    tokenizer = spec.train([cut, "a b"])
    assert ids_of(tokenizer, cut) == ids_of(tokenizer, "a cut emoji \ufffd")
    assert tokenizer.encode_places([cut], 24)["ids"].tolist() == tokenizer.encode([cut], 24)["ids"].tolist()
