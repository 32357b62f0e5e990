import sys

import pytest

from mmjax.core.errors import UserError
from mmjax.evaluate.texts import edits

TEXTS, REFERENCES = ["The cat sat on the mat.", "hello world", ""], ["The cat is on the mat.", "Hello, world", "a b"]


def distance(a, b):
    """Levenshtein's, by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_error_rates_are_edits_over_the_corpus():
    pytest.importorskip("jiwer")
    texts, references = ["a b", "d e", ""], ["a c b", "d e", "f"]
    rates = [
        sum(map(distance, texts_, references_)) / sum(map(len, references_))
        for texts_, references_ in (
            ([text.split() for text in texts], [text.split() for text in references]),
            (texts, references),
        )
    ]
    assert edits.error_rates(texts, references) == pytest.approx(rates, abs=1e-12)
    assert edits.error_rates(TEXTS, REFERENCES) == pytest.approx((0.4, 0.21621621621621623), abs=1e-9)
    assert edits.error_rates([" a  b "], ["a b"])[0] == 0.0
    assert edits.error_rates(["a b"], [""]) == (2.0, 3.0)
    assert edits.error_rates([""], [""]) == (0.0, 0.0)


def test_bleu_and_chrf_are_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    own = [[one] for one in REFERENCES]
    score, signature = edits.corpus_bleu(TEXTS, own)
    assert score == pytest.approx(32.899518596931635, abs=1e-6) and "tok:13a" in signature
    score, signature = edits.corpus_chrf(TEXTS, own)
    assert score == pytest.approx(58.02041923121695, abs=1e-6) and "nc:6" in signature
    # Of several references, where each text has as many and where not.
    same = sacrebleu.corpus_bleu(["a b c d e"], [["a b c d f"], ["z b c d e"]]).score
    assert edits.corpus_bleu(["a b c d e"], [["a b c d f", "z b c d e"]])[0] == pytest.approx(same, abs=1e-9)
    more = edits.corpus_bleu(["a b c d e", "f g h i"], [["a b c d f", "a b c d e"], ["f g h i"]])[0]
    assert more == pytest.approx(100.0, abs=1e-6)


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError, match=r"jiwer is not installed.*pip install 'mmjax\[texts\]'"):
        edits.error_rates(["a"], ["a"])
