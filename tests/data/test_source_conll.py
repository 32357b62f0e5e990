import json

import pytest

from mmjax.core.errors import UserError
from mmjax.data import Conll, Data, Manifest, Tags, WordPiece


def write(folder, text, name="a.conll"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


def test_sentences_of_a_file(tmp_path):
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n \nPeter NNP B-NP B-PER"
    records = Conll(write(tmp_path, text)).build()
    assert [records[n] for n in range(len(records))] == [
        {"words": ("EU", "rejects"), "tags": ("B-ORG", "O")},
        {"words": ("Peter",), "tags": ("B-PER",)},
    ]
    assert [*records.texts_of("words")] == ["EU", "rejects", "Peter"] and [*records.texts_of("tags")] == ["B-ORG", "O", "B-PER"]
    assert records.classes == () and [*records.texts()] == []


def test_tabs_columns_comments_and_line_ends(tmp_path):
    text = "\ufeff# id 1\r\n1\tNew York\tB-LOC\r\n2\t#\tO\r\n\r\n# id 2\r\n1\tx\tO\r\n"
    records = Conll(write(tmp_path, text), word_column=1, tag_column=2, comment="# ").build()
    assert records[0] == {"words": ("New York", "#"), "tags": ("B-LOC", "O")} and len(records) == 2


def test_a_wide_space_is_a_word(tmp_path):
    (tmp_path / "a.conll").write_text("猫\tN\tB-X\n\u3000\tS\tI-X\n犬\tN\tI-X\n\n\u3000  O\n  \n", encoding="utf-8")
    records = Conll(str(tmp_path / "a.conll")).build()
    assert [records[i]["words"] for i in range(2)] == [("猫", "\u3000", "犬"), ("\u3000",)]


def test_splits_part_the_file_and_stay(tmp_path):
    lines = [f"word{n} O\n\n" for n in range(60)]
    path, longer = write(tmp_path, "".join(lines)), write(tmp_path, "new O\n\n" + "".join(lines), "b.conll")
    found = {split: [*Conll(path, split).build().texts_of("words")] for split in ("train", "validation", "test")}
    assert sorted(word for own in found.values() for word in own) == sorted(f"word{n}" for n in range(60)) and all(
        found.values()
    )
    assert {*found["test"]} <= {*Conll(longer, "test").build().texts_of("words")}
    prints = {Conll(path, split).build().fingerprint() for split in ("all", "train", "test")}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (b"a O\nb\xff O\n", {}, "a.conll:2: not UTF-8 text"),
        ("a O\nb c\n", {"tag_column": 2}, "a.conll:1: Conll.tag_column=2, and the line is ['a', 'O']"),
        ("a O\nb\n", {}, "a.conll:2: a word and its tag are two columns, and the line has one: ['b']"),
        ("a\t\tO\n", {"word_column": 1}, "a.conll:1: Conll.word_column=1, and the line is ['a', '', 'O']"),
        ("\n-DOCSTART- O\n\n", {}, "a.conll': it has no sentence"),
        ("a O\n", {"split": "dev"}, "Conll.split='dev' is not a split"),
        ("a O\n", {"split": "test", "fractions": (1.0, 0.0, 0.0)}, "none of the 1 sentences"),
        ("a O\n", {"fractions": (1.0, 1.0, 0.0)}, "Conll.fractions=(1.0, 1.0, 0.0)"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path, text, changes, message):
    with pytest.raises(UserError) as raised:
        Conll(write(tmp_path, text), **changes).build()
    assert message in str(raised.value)


def test_no_such_file():
    with pytest.raises(UserError, match=r"Conll.path='nowhere': no such file"):
        Conll("nowhere").build()


def test_the_same_sentences_from_json_lines(tmp_path):
    rows = [{"w": ["EU", "rejects"], "ner": ["B-ORG", "O"]}, {"w": ["Peter"], "ner": ["B-PER"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    conll = Conll(write(tmp_path, "EU B-ORG\nrejects O\n\nPeter B-PER\n"))
    manifest = Manifest(str(tmp_path / "a.jsonl"), split="all", fields={"words": "w", "tags": "ner"})
    batches = []
    for source in (conll, manifest):
        data = Data(source, (), {"tags": Tags()}, batch_size=2, threads=0, max_length=8)
        batches.append(next(data.build(WordPiece(60).train(data.texts()), 0).epoch()))
    for key in batches[0]:
        assert (batches[0][key] == batches[1][key]).all(), key
