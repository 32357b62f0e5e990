"""Entity markers: where they stand, as which tokens, and what of a record is named."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import BadRecordError, Data, Markers, Pretrained, Tokenizer, WordPiece
from mmjax.data.tokenizers.special import with_special

TOKENS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
TEXT = "Anna lives in New York."


def marked(head, tail, text=TEXT, **more):
    return Markers()({"text": text, "head": head, "tail": tail, "label": 1, **more}, np.random.default_rng(0), ())


def test_entities_stand_between_markers_in_either_order():
    assert marked([0, 4], [14, 22]) == {"text": "[E1] Anna [/E1] lives in [E2] New York [/E2].", "label": 1}
    assert marked((14, 22), np.array([0, 4]))["text"] == "[E2] Anna [/E2] lives in [E1] New York [/E1]."
    assert marked([0, 4], [4, 5])["text"].startswith("[E1] Anna [/E1][E2]   [/E2]lives")
    assert Markers.random is False


@given(st.permutations(range(1, 22)).map(lambda drawn: sorted(drawn[:4])), st.booleans())
def test_without_its_markers_it_is_the_text(ends, swapped):
    head, tail = ends[:2], ends[2:]
    text = marked(*((tail, head) if swapped else (head, tail)))["text"]
    for token in TOKENS:
        assert text.count(token) == 1
        text = text.replace(f"{token} " if "/" not in token else f" {token}", "")
    assert text == TEXT


@pytest.mark.parametrize(
    ("head", "tail", "words"),
    [
        ([0, 4], [3, 8], r"head=\[0, 4\] and tail=\[3, 8\] overlap"),
        ([0, 9], [3, 8], "overlap"),
        ([4, 0], [5, 8], r"head=\[4, 0\] is swapped or empty"),
        ([0, 4], [14, 24], r"tail=\[14, 24\] lies outside of the text's 23 characters"),
        ([-1, 4], [14, 22], "head=.-1, 4. lies outside"),
        ([0], [14, 22], r"head=\[0\]: give its first character and the one after its last"),
        ([0, 4], "York", "tail='York': give its first"),
        ([0, 1.5], [14, 22], "give its first"),
    ],
)
def test_places_that_are_none_are_named(head, tail, words):
    with pytest.raises(BadRecordError, match=words) as raised:
        marked(head, tail, id="r7")
    assert raised.value.path == "r7"


def test_mistakes_are_named():
    with pytest.raises(UserError, match="give four different ones"):
        Markers(tokens=("a", "b", "c", "c"))
    with pytest.raises(UserError, match="Markers needs 'tail'; a record's keys are text, head"):
        Markers()({"text": TEXT, "head": [0, 4]}, None, ())
    with pytest.raises(BadRecordError, match="one text is marked, not several"):
        marked([0, 1], [2, 3], text=(TEXT, TEXT))
    with pytest.raises(UserError, match=r"tokenizer.special=\('a', 'a'\): give a tuple of tokens, each once"):
        with_special(None, ("a", "a"))


@dataclasses.dataclass(frozen=True)
class Source:
    """One record."""

    classes = ("of", "in")

    def build(self):
        return self

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"text": TEXT, "head": [0, 4], "tail": [14, 22], "label": 1}

    def texts(self):
        return iter((TEXT,))

    def fingerprint(self):
        return "x"


def test_markers_are_tokens_that_are_never_cut(tmp_path):
    data = Data(Source(), (Markers(),), batch_size=1, max_length=24, threads=0)
    plain, own = (WordPiece(90, special=special).train([TEXT]) for special in ((), TOKENS))
    with pytest.raises(UserError, match=r"data.train: Markers.tokens: '\[E1\]' is no token of the tokenizer"):
        data.build(plain, 0, "train")
    assert own.vocab_size == plain.vocab_size + 4
    (batch,) = data.build(own, 0).epoch()
    ids = own.huggingface.convert_tokens_to_ids(list(TOKENS))
    assert ids == [plain.vocab_size + n for n in range(4)]
    assert [one for one in batch["text"][0] if one in ids] == ids
    own.save(tmp_path / "own")
    again = Tokenizer.load(tmp_path / "own")
    np.testing.assert_array_equal(again.encode([f"{TOKENS[0]} anna"], 8)["ids"], own.encode([f"{TOKENS[0]} anna"], 8)["ids"])
    plain.save(tmp_path / "plain")
    further = Pretrained(str(tmp_path / "plain"), special=("[MASK]", "[E1]")).train(())
    assert further.vocab_size == plain.vocab_size + 1 and further.mask_id == plain.mask_id
