import json

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import BPE, Data, Manifest, Text, WordPiece
from mmjax.data.words import jieba, word_numbers

CHINESE = ["我来到北京清华大学", "他来到了网易杭研大厦", "ＡＢＣ公司在北京"]


def build(tmp_path, texts, words, tokenizer=None, **lines):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, **lines}) + "\n" for text in texts))
    own = (tokenizer or WordPiece(300)).train(texts)
    return Data(Manifest(str(path), "all"), columns={"text": Text(words=words)}, batch_size=len(texts), max_length=24).build(
        own, 0
    )


@pytest.mark.parametrize("tokenizer", [WordPiece(60), BPE(280)], ids=["wordpiece", "bpe"])
def test_words_are_those_of_the_tokenizer(tmp_path, tokenizer):
    texts = ["unbelievable stories, told twice", "a b"]
    data = build(tmp_path, texts, "tokenizer", tokenizer)
    with data.epoch() as batches:
        batch = next(batches)
    for row, text in enumerate(texts):
        words = batch["text_words"][row]
        assert set(words[~batch["text_mask"][row]].tolist()) == {-1}
        pieces = [data.tokenizer.decode(batch["text"][row][words == number]) for number in range(words.max() + 1)]
        assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
        assert len(pieces) == (5 if "," in text else 2)
    special = np.isin(batch["text"], data.tokenizer.special_ids)
    assert (batch["text_words"][special] == -1).all() and (batch["text_words"][~special] >= 0).all()


def test_chinese_words_are_jiebas(tmp_path):
    pytest.importorskip("rjieba")
    assert [CHINESE[0][start:end] for start, end in jieba(CHINESE[0])] == ["我", "来到", "北京", "清华大学"]
    data = build(tmp_path, CHINESE, "jieba")
    with data.epoch() as batches:
        batch = next(batches)
    # A character is a token here; [CLS] begins.
    assert batch["text_words"][0, :11].tolist() == [-1, 0, 1, 1, 2, 2, 3, 3, 3, 3, -1]


def test_a_token_is_of_the_word_that_it_begins_in():
    places = np.array([[-1, -1], [0, 1], [1, 3], [3, 3], [4, 5], [5, 6], [-1, -1]])
    assert word_numbers("ab cde", places, lambda text: [(0, 2), (4, 6)]).tolist() == [-1, 0, 0, -1, 1, 1, -1]


def test_unknown_words_and_pairs_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"words='jeiba'.*did you mean 'jieba'.*use one of tokenizer, jieba"):
        build(tmp_path, CHINESE, "jeiba")
    with pytest.raises(UserError, match="the words of two texts, text and text_pair, are not told apart"):
        build(tmp_path, CHINESE, "jieba", text_pair="more")
