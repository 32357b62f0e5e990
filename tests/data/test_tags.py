"""Tags of words against HuggingFace's own `word_ids`, and what is lost on the way to tokens."""

import dataclasses

import numpy as np
import pytest
from transformers import BertTokenizerFast, RobertaTokenizerFast

from mmjax.core.errors import UserError
from mmjax.data import BPE, Data, Pretrained, Tags, Tokenizer, WordPiece
from mmjax.data.columns import Columns
from mmjax.data.inspect import describe

WORDS = ("Anna", "lives", "in", "New", "Yorkshire", ".")
TAGS = ("B-PER", "O", "O", "B-LOC", "I-LOC", "O")
NAMES = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
TEXTS = ["anna lives in new york . the shire is far away , so she left", "ab cd ef gh ij kl mn op qr st uv wx yz"]
SENTENCES = [list(WORDS), ["I", "'m", "don't", "U.S.", "日本", "\u200b", "x"], [], ["far"] * 30, ["naïve", "  away ", "#"]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Sentences in memory."""

    sentences: tuple = ((WORDS, TAGS), (("far", "away"), ("O", "O")))
    classes = ()

    def build(self):
        return self

    def __len__(self):
        return len(self.sentences)

    def __getitem__(self, index):
        return dict(zip(("words", "tags"), self.sentences[index], strict=True))

    def texts(self):
        return iter(())

    def fingerprint(self):
        return "x"


def wordpiece(size=70):
    return WordPiece(size).train(TEXTS)


def build(*sentences, max_length=24, **settings):
    source = Source(sentences) if sentences else Source()
    data = Data(source, (), {"tags": Tags(**settings)}, batch_size=2, threads=0, max_length=max_length)
    return data.build(wordpiece(), 0)


def theirs(folder, kind):
    if kind == "bert":
        vocabulary = wordpiece().huggingface.get_vocab()
        (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
        return BertTokenizerFast.from_pretrained(folder)
    BPE(300).train(TEXTS).huggingface.backend_tokenizer.model.save(str(folder))
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    special = {"bos_token": "[CLS]", "cls_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    RobertaTokenizerFast(**files, **special, unk_token="[PAD]", mask_token="[MASK]", add_prefix_space=True).save_pretrained(
        folder
    )
    return RobertaTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_ids_and_words_are_those_of_transformers(tmp_path, kind):
    hf, ours = theirs(tmp_path, kind), Pretrained(str(tmp_path)).train(())
    found = ours.encode_words(SENTENCES, 20)
    for n, words in enumerate(SENTENCES):
        one = hf(words, is_split_into_words=True, truncation=True, max_length=20)
        longer = len(hf(words, is_split_into_words=True)["input_ids"]) > 20
        size = len(one["input_ids"])
        assert found["ids"][n, :size].tolist() == one["input_ids"] and found["mask"][n].sum() == size
        assert found["words"][n, :size].tolist() == [-1 if word is None else word for word in one.word_ids()]
        assert (found["words"][n, size:] == -1).all() and found["truncated"][n] == longer
    plain = ours.encode(["far away"], 8)["ids"]  # what was set for the cut is not left behind
    np.testing.assert_array_equal(plain, ours.encode_words([["far", "away"]], 8)["ids"])


def test_a_tokenizer_that_marks_spaces_reads_words_as_it_reads_the_text():
    ours = BPE(300).train(TEXTS)
    found = ours.encode_words([["far", "away", ",", "so"]], 12)
    np.testing.assert_array_equal(found["ids"], ours.encode(["far away , so"], 12)["ids"])
    assert sorted({*found["words"][0].tolist()}) == [-1, 0, 1, 2, 3]


def test_places_are_those_of_the_characters():
    ours = wordpiece()
    text = "Anna, far  away"
    found = ours.encode_places([text, ""], 12)
    np.testing.assert_array_equal(found["ids"], ours.encode([text, ""], 12)["ids"])
    pieces = [text[start:end] for start, end in found["places"][0] if start >= 0]
    assert "".join(pieces) == "Anna,faraway" and (found["places"][1] == -1).all()


def test_the_tag_is_at_the_first_token_of_its_word():
    dataset = build()
    (batch,) = dataset.epoch()
    assert dataset.names == {"tags": NAMES} and batch["text"].shape == (2, 24)
    assert {name: x.dtype for name, x in batch.items() if name.startswith("tags")} == dict.fromkeys(
        ("tags", "tags_words", "tags_ends", "tags_lost"), np.dtype(np.int32)
    )
    one = dataset.tokenizer.encode_words([WORDS], 24)["words"][0].tolist()
    firsts = [one.index(word) for word in range(6)]
    assert one.count(4) > 1  # a word of several tokens
    expected = np.full(24, -1)
    expected[firsts] = [NAMES.index(tag) for tag in TAGS]
    np.testing.assert_array_equal(batch["tags"][0], expected)
    ends = np.full(24, -1)
    ends[firsts[0]], ends[firsts[3]] = 0, 4
    np.testing.assert_array_equal(batch["tags_ends"][0], ends)
    np.testing.assert_array_equal(batch["tags_words"][0][firsts], range(6))
    assert batch["tags_lost"].tolist() == [[0, 0], [0, 0]] and dataset.lost.words == 0
    assert batch["text_mask"].dtype == bool and "group" not in batch and dataset.texts() == {"text": (dataset.tokenizer, 24)}


def test_all_tokens_of_a_word_may_have_its_tag():
    (batch,) = build(label_all=True).epoch()
    (first,) = build().epoch()
    word_T = wordpiece().encode_words([WORDS], 24)["words"][0]
    for place, word in enumerate(word_T):
        own, start = batch["tags"][0, place], first["tags_words"][0, place] >= 0
        tag = None if word < 0 else TAGS[word] if start else TAGS[word].replace("B-", "I-")
        assert own == (-1 if tag is None else NAMES.index(tag))
    np.testing.assert_array_equal(batch["tags_words"], first["tags_words"])


def test_entities_that_are_cut_or_vanish_are_counted():
    whole = wordpiece().encode_words([WORDS], 24)["words"][0].tolist()
    cut = build((WORDS, TAGS), max_length=whole.index(4) + 1)  # New is there, Yorkshire is not
    (batch,) = cut.epoch()
    assert batch["tags_lost"][0].tolist() == [1, 0] and (batch["tags_ends"][0] >= 0).sum() == 1
    assert batch["tags"][0].max() == NAMES.index("B-PER") and NAMES.index("B-LOC") in batch["tags"][0]  # still learned from
    assert cut.lost.words == 2 and cut.lost.truncated == 1
    empty = build((("\u200b", "far"), ("B-PER", "O")), (("far", "\u200b", "away"), ("B-LOC", "I-LOC", "I-LOC")))
    (batch,) = empty.epoch()
    assert batch["tags_lost"].tolist() == [[0, 1], [1, 0]] and empty.lost.words == 2 and (batch["tags_ends"] == -1).all()


def test_iob1_and_iobes():
    (batch,) = build((("far", "away"), ("I-LOC", "B-LOC")), scheme="iob1").epoch()
    assert (batch["tags"][0] == 1).sum() == 2 and (batch["tags_ends"] >= 0).sum() == 4  # the last batch is filled up
    dataset = build((("far", "away", "so"), ("B-LOC", "E-LOC", "S-PER")), scheme="bioes")
    (batch,) = dataset.epoch()
    names = dataset.names["tags"]
    assert len(names) == 9 and [names[tag] for tag in batch["tags"][0] if tag >= 0] == ["B-LOC", "E-LOC", "S-PER"]


def test_other_names_and_their_order_afterwards():
    dataset = build()
    more = ("I-ORG", "B-ORG", *reversed(NAMES))
    (before,) = dataset.epoch()
    assert dataset.can_match("tags")
    dataset.match("tags", more)
    (after,) = dataset.epoch()
    assert dataset.spec()["tags_lost"][0] == (2, 3) == after["tags_lost"].shape and dataset.names["tags"] == more
    known = before["tags"] >= 0
    np.testing.assert_array_equal(known, after["tags"] >= 0)
    assert [NAMES[i] for i in before["tags"][known]] == [more[i] for i in after["tags"][known]]
    assert build(names=more).names["tags"] == more


@pytest.mark.parametrize("pieces", [WordPiece(70), BPE(300)], ids=["wordpiece", "bpe"])
def test_the_tokenizer_is_trained_on_the_words(pieces):
    data = Data(Source(), (), {"tags": Tags()}, max_length=16)
    assert [*data.texts()] == [f" {word}" for word in (*WORDS, "far", "away")]
    tokenizer = pieces.train(data.texts())
    found = tokenizer.encode_words([["far", "away", "far"]], 8)
    assert found["mask"].sum() == 5  # whole words, the space before them with them


def test_a_look_at_the_data():
    lines = describe(build(max_length=8))
    assert "cut          50.0% of the texts, at max_length=8" in lines and "'anna lives in" in lines


def test_a_text_that_is_there_already_is_that_of_the_words():
    record = {"words": ["far"], "tags": ["O"], "text": "something else"}
    columns = Columns(record, {"": wordpiece()}, 6, {"tags": Tags(names=NAMES)})
    batch, _ = columns([record])
    np.testing.assert_array_equal(batch["text"], wordpiece().encode(["far"], 6)["ids"])


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ((("a", "b"), ("O",)), "columns.tags: 'a b' has 2 words and 1 tags: give as many of both"),
        ((("a", "b"), ("O", "I-LOC")), "columns.tags: 'a b': tag 1 is 'I-LOC' after 'O', which iob2 does not allow"),
        ((("a",), ("B-ORG",)), "columns.tags: 'a': 'B-ORG' is not one of the tags"),
        (("ab", ("O", "O")), "columns.tags: words='ab': give a list of strings"),
        ((("a",), (1,)), "columns.tags: tags=(1,): give a list of strings"),
    ],
)
def test_a_record_that_is_wrong_is_named(sentence, message):
    record = {"words": WORDS, "tags": TAGS}
    columns = Columns(record, {"": wordpiece()}, 8, {"tags": Tags(names=NAMES)})
    with pytest.raises(UserError) as raised:
        columns([record, dict(zip(("words", "tags"), sentence, strict=True))])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "iob3"}, "columns.tags: scheme='iob3' is no scheme"),
        ({"scheme": "bioes"}, "columns.tags: 'a': the last tag"),
        ({"names": ("B-PER",)}, "names=('B-PER',): give a tuple of tags, each once, 'O' among them"),
        ({"names": ("O", "PER")}, "'PER' is no tag of the scheme iob2"),
        ({"words": "tokens"}, "words='tokens': no record has it; its keys are words, tags"),
        ({"label_all": True, "scheme": "iobes", "names": ("O",)}, "label_all=True with scheme='iobes'"),
        ({"tokenizer": "other"}, "tokenizer='other': the words want a tokenizer"),
    ],
)
def test_settings_that_are_wrong_are_named(settings, message):
    sentences = ((("a",), ("B-LOC",)),) if settings.get("scheme") == "bioes" else ()
    with pytest.raises(UserError) as raised:
        build(*sentences, **settings)
    assert message in str(raised.value)


def test_two_columns_that_make_one_text():
    with pytest.raises(UserError, match=r"columns.tags.of='text': another column makes that text too"):
        Columns({"words": [], "tags": [], "more": []}, {}, 8, {"tags": Tags(names=("O",)), "more": Tags(names=("O",))})


def test_a_tokenizer_without_a_fast_form():
    class Slow:
        eos_token_id = sep_token_id = pad_token_id = bos_token_id = cls_token_id = mask_token_id = 0
        all_special_ids = (0,)

        def __len__(self):
            return 1

        def __call__(self, text, **kwargs):
            return {"input_ids": [0] if kwargs["add_special_tokens"] else []}

        def num_special_tokens_to_add(self, pair=False):
            return 0

        def convert_tokens_to_ids(self, token):
            return None

    with pytest.raises(UserError, match="it has no fast form"):
        Tokenizer(Slow()).encode_words([["a"]], 8)
