"""Answers in passages: windows and targets against `transformers`' own overflowing tokens, and what is refused."""

import dataclasses
import json
import types

import numpy as np
import pytest
from transformers import BertTokenizerFast, RobertaTokenizerFast

from mmjax.core.errors import UserError
from mmjax.data import BPE, Data, Manifest, Pretrained, Span, Squad, Tags, WordPiece
from mmjax.data.inspect import describe
from mmjax.data.letters import is_mark, letter_end
from mmjax.data.passages import Layout, Windows, windows
from mmjax.train.finish import data_troubles

CONTEXT = "Anna lives in New Yorkshire , far away from the shire . She left it in 1990 ."
TEXTS = [CONTEXT.lower(), "who left? where is it ( far or near )", "日本の東京"]
QUESTIONS = ("Who left?", "Where is it?", "where where where where where where is it?")
LONG = " ".join([CONTEXT] * 3)


def theirs(folder, kind):
    if kind == "bert":
        vocabulary = WordPiece(90).train(TEXTS).huggingface.get_vocab()
        (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
        return BertTokenizerFast.from_pretrained(folder)
    BPE(300).train(TEXTS).huggingface.backend_tokenizer.model.save(str(folder))
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    special = {"bos_token": "[CLS]", "cls_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    RobertaTokenizerFast(**files, **special, unk_token="[PAD]", mask_token="[MASK]").save_pretrained(folder)
    return RobertaTokenizerFast.from_pretrained(folder)


def placed(offsets, sequence, start, end):
    """The tokens of an answer as transformers' example run_qa.py finds them; (0, 0) where it is not whole in the window. That
    goes on into [SEP] for an answer that ends a window, which is put right here."""
    first = next(i for i, of in enumerate(sequence) if of == 1)
    last = max(i for i, of in enumerate(sequence) if of == 1)
    if not (offsets[first][0] <= start and offsets[last][1] >= end):
        return (0, 0)
    end_of_passage = last
    while first <= end_of_passage and offsets[first][0] <= start:
        first += 1
    while offsets[last][1] >= end:
        last -= 1
    return (first - 1, last + 1)


@dataclasses.dataclass(frozen=True)
class Source:
    """Records in memory."""

    records: tuple
    classes = ()

    def build(self):
        return self

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return dict(self.records[index])

    def texts(self):
        return iter(())

    def fingerprint(self):
        return "x"


def asked(question=QUESTIONS[0], context=LONG, answers=((0, "Anna"),), **more):
    return {"question": question, "context": context, "answers": answers, **more}


def built(*records, tokenizer=None, **settings):
    spec = {"stride": 4, "max_question": 12, **settings}
    how = {"batch_size": 4, "threads": 0, "max_length": 24, "bad_record_limit": 1.0}
    data = Data(Source(records), (), {"answers": Span(**spec)}, **how)
    return data.build(tokenizer or WordPiece(90).train(TEXTS), 0, "train")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_windows_and_targets_are_those_of_transformers(tmp_path, kind):
    hf, own = theirs(tmp_path, kind), Pretrained(str(tmp_path)).train(())
    answers = [(LONG.index(text, start), text) for text, start in (("New Yorkshire", 0), ("1990", 90), ("Anna", 0))]
    records = [asked(question, LONG, (answer,)) for question, answer in zip(QUESTIONS, answers, strict=True)]
    records += [asked(context="Anna left", answers=((5, "left"),)), asked(answers=())]
    length = 40 if kind == "roberta" else 28
    spec = Span(stride=5, max_question=16 if kind == "bert" else 30)
    data = Data(Source(tuple(records)), (), {"answers": spec}, batch_size=4, threads=0, max_length=length)
    dataset = data.build(own, 0)
    rows = []
    for number, one in enumerate(records):
        found = hf(
            one["question"],
            one["context"],
            truncation="only_second",
            max_length=length,
            stride=5,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        for n, ids in enumerate(found["input_ids"]):
            offsets, of = found["offset_mapping"][n], found.sequence_ids(n)
            start, text = one["answers"][0] if one["answers"] else (0, "")
            target = placed(offsets, of, start, start + len(text)) if text else (0, 0)
            places = [place if part == 1 else (-1, -1) for place, part in zip(offsets, of, strict=True)]
            rows.append((number, ids, found["token_type_ids"][n], target, places))
    assert dataset.size == len(rows) > 8
    seen = [row for batch in dataset.epoch() for row in range(4) if batch["valid"][row]]
    assert len(seen) == len(rows)
    column = [{key: value[row] for key, value in batch.items()} for batch in dataset.epoch() for row in range(4)]
    for ours, (number, ids, segments, target, _) in zip(column, rows, strict=False):
        size = len(ids)
        assert ours["text"][:size].tolist() == ids and ours["text_mask"].sum() == size and ours["text_mask"][:size].all()
        assert ours["text_segments"][:size].tolist() == segments and ours["answers_record"] == number
        assert ours["answers"].tolist() == list(target)
    assert dataset.windows.passage(0).answers == (answers[0],) and dataset.lost.answers == 0
    made = windows(own, [(one["question"], one["context"]) for one in records], spec.layout(length))
    for one, (*_, places) in zip([window for some in made for window in some], rows, strict=True):
        assert one.places.tolist() == [list(place) for place in places]


def test_characters_of_a_token_are_those_of_its_word_where_that_is_asked_for():
    (whole,), (pieces,) = (list(built(asked(context=CONTEXT), whole_words=own).epoch()) for own in (True, False))
    assert whole["answers_places"].shape == (4, 24, 2) and whole["answers_places"].dtype == np.int32
    words = {CONTEXT[start:end] for start, end in whole["answers_places"][0] if start >= 0}
    assert {"Anna", "lives", "in", "New", "Yorkshire"} <= words and " " not in "".join(words)
    cut = [CONTEXT[start:end] for start, end in pieces["answers_places"][0] if start >= 0]
    assert "Yorkshire" not in cut and "Yorkshire" in "".join(cut)
    assert (whole["answers_places"][0, 0] == -1).all() and whole["text_mask"].dtype == bool


def test_an_answer_that_no_window_holds_is_counted_and_learned_nowhere():
    answer = (0, LONG[:130])
    dataset = built(asked(answers=(answer,)), asked(answers=()))
    batches = list(dataset.epoch())
    rows = np.concatenate([batch["answers"][batch["valid"]] for batch in batches])
    record = np.concatenate([batch["answers_record"][batch["valid"]] for batch in batches])
    assert (rows[record == 0] == -1).all() and (rows[record == 1] == 0).all() and (record == 0).sum() > 2
    assert dataset.lost.answers == 1 and dataset.lost.truncated == 0


def test_a_long_question_is_cut_and_counted_once():
    dataset = built(asked("where " * 20), max_question=8)
    batches = list(dataset.epoch())
    assert len(batches) > 1 and dataset.lost.truncated == 1
    (row,) = {int((batch["text_segments"][0] == 0)[batch["text_mask"][0]].sum()) for batch in batches[:1]}
    assert row == 8 + 2
    lines = list(data_troubles(types.SimpleNamespace(datasets={"train": dataset})))
    assert lines[0] == "data.train: 1 questions were longer than max_question=8 tokens and were cut"


@pytest.mark.parametrize(
    ("start", "text", "learned", "between"),
    [
        (4, "cafe\u0301", "cafe\u0301", 0),
        (4, "cafe", "cafe\u0301", 1),
        (4, "cafe\u0301 is", "cafe\u0301 is", 0),
        (8, "\u0301 is", "cafe\u0301 is", 1),
        (10, "is", "is", 0),
        (13, "cafe\u0301", "cafe\u0301", 0),
    ],
)
def test_a_letter_has_its_marks_which_a_tokenizer_drops(tmp_path, start, text, learned, between):
    """At the end of an answer, and of the passage; an answer that parts them is counted."""
    context = "the cafe\u0301 is cafe\u0301"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "is", "who"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    found = windows(Pretrained(str(tmp_path)).train([]), [("who", context)], Layout(12, 2, 2))[0][0]
    first, last = found.tokens(start, start + len(text))
    assert context[found.places[first, 0] : found.places[last, 1]] == learned
    assert any(is_mark(context, edge) for edge in (start, start + len(text))) == bool(between)
    assert letter_end(context, start + len(text)) == start + len(text) + (between and text == "cafe")
    assert context[slice(*found.words[last])] in ("cafe", "is"), "as the library has it"


def test_answers_between_a_letter_and_its_marks_are_counted():
    dataset = built(
        asked(context="the cafe\u0301 is", answers=((4, "cafe"),)),
        asked(context="the cafe\u0301", answers=((4, "cafe\u0301"),)),
    )
    list(dataset.epoch())
    assert dataset.lost.letters == 1 and dataset.lost.answers == 0
    assert any(
        "1 answers begin or end between" in line for line in data_troubles(types.SimpleNamespace(datasets={"a": dataset}))
    )


def test_answers_may_come_in_three_forms(tmp_path):
    lists, one = {"text": ["Anna"], "answer_start": [0]}, [{"text": "Anna", "answer_start": 0}]
    found = [built(asked(answers=answers)) for answers in (lists, one)]
    assert [dataset.windows.passage(0).answers for dataset in found] == [((0, "Anna"),)] * 2
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(asked(CONTEXT[:9], CONTEXT, answers)) + "\n" for answers in (one, [])))
    fields = {key: key for key in ("question", "context", "answers")}
    spec = {"answers": Span(stride=4, max_question=8)}
    data = Data(Manifest(str(file), "all", fields=fields), (), spec, batch_size=2, threads=0, max_length=32)
    assert [text for text in data.texts() if text][:2] == [CONTEXT[:9]] * 2
    dataset = data.build(WordPiece(90).train(data.texts()), 0)
    (batch,) = dataset.epoch()
    assert batch["answers"].tolist() == [batch["answers"][0].tolist(), [0, 0]] and batch["answers"][0, 0] > 0
    assert "tokens       " in describe(dataset)


def test_a_passage_that_cannot_be_read_is_replaced():
    wrong = [((5, "Anna"),), ({"text": "Anna"},), ((-1, "x"),), "Anna", {"text": ["a"]}]
    reasons = ["'Anna' is said to begin at 5, where the passage has 'live'", "an answer has a 'text'", "answer_start' from 0"]
    reasons += ["give a list of answers", "as many of 'text' as of 'answer_start'"]
    dataset = built(asked(context=CONTEXT), *(asked(answers=own) for own in wrong), asked(question=" ", id="q7"))
    batches = list(dataset.epoch())
    assert sum(batch["valid"].sum() for batch in batches) == dataset.size - 6
    for place, reason in enumerate(reasons, 1):
        assert reason in dataset.bad[f"record {place}"]
    assert dataset.bad["record q7"] == "question=' ': give a text"


def test_mistakes_are_named():
    plain = WordPiece(90).train(TEXTS)
    with pytest.raises(
        UserError, match=r"columns.answers: max_length=24: beside max_question=12 and 3 special tokens it leaves 9"
    ):
        built(asked(), stride=9)
    with pytest.raises(UserError, match="'context': a record lacks it"):
        built({"question": "a", "answers": ()})
    with pytest.raises(UserError, match=r"tokenizer='x': the texts want a tokenizer"):
        Data(Source((asked(),)), (), {"answers": Span(tokenizer="x")}).build(plain, 0)
    with pytest.raises(UserError, match="leave transforms out"):
        Data(Source((asked(),)), (lambda record, rng, records: record,), {"answers": Span()}).build(plain, 0)
    with pytest.raises(UserError, match="are each a Span: give one"):
        Data(Source((asked(),)), (), {"answers": Span(), "b": Span()}).build(plain, 0)
    with pytest.raises(UserError, match=r"columns.answers.of='text': another column makes that text too"):
        record = asked(words=("a",), tags=("O",))
        columns = {"answers": Span(stride=4, max_question=12), "tags": Tags()}
        Data(Source((record,)), (), columns, max_length=24).build(plain, 0)
    shared = type("Mixed", (Source,), {"shares": lambda self: ()})
    with pytest.raises(UserError, match="a mixture is of records"):
        Windows(shared((asked(),)), "answers", ("question", "context"), Layout(24, 4, 12), plain)


def test_squad_files(tmp_path):
    def file(data, name="a.json"):
        (tmp_path / name).write_text(json.dumps(data))
        return str(tmp_path / name)

    qas = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Anna", "answer_start": 0}, {"text": "New", "answer_start": 14}]},
        {
            "id": "2",
            "question": "Why?",
            "is_impossible": True,
            "answers": [{"text": "x", "answer_start": 0}],
            "plausible_answers": [{"text": "x"}],
        },
    ]
    whole = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}, {"paragraphs": [{"context": LONG, "qas": qas[1:]}]}]}
    path = file(whole)
    records = Squad(path).build()
    assert len(records) == 3 and records[0] == asked("Who?", CONTEXT, ((0, "Anna"), (14, "New")), id="1")
    assert records[1] == asked("Why?", CONTEXT, (), id="2")
    assert list(records.texts_of("context")) == [CONTEXT, LONG] and list(records.texts()) == []
    parts = [Squad(path, split, (0.5, 0.5, 0.0)) for split in ("train", "validation")]
    kept = []
    for part in parts:
        try:
            kept += [part.build()[n] for n in range(len(part.build()))]
        except UserError as error:
            assert "none of the 3 questions" in str(error)
    assert sorted(one["id"] for one in kept) == ["1", "2", "2"]
    for data, words in (
        ([], "data is no list; the file is to be of SQuAD's format"),
        ({"data": [{}]}, r"data\[0\].paragraphs is no list"),
        ({"data": [{"paragraphs": [{"context": 3}]}]}, r"data\[0\].paragraphs\[0\].context is 3, no text"),
        (
            {"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b", "answers": [{"text": "a"}]}]}]}]},
            r"qas\[0\].answers\[0\].answer_start is None",
        ),
        ({"data": []}, "it has no question"),
    ):
        with pytest.raises(UserError, match=words):
            Squad(file(data, "b.json")).build()
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match="not JSON in UTF-8"):
        Squad(str(tmp_path / "c.json")).build()
    with pytest.raises(UserError, match="no such file"):
        Squad(str(tmp_path / "d.json")).build()
