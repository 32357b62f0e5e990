import pytest

from mmjax.evaluate.texts.words import words


@pytest.mark.parametrize(
    ("text", "expected"),  # as Stanford's PTBTokenizer (CoreNLP 3.4.1) and coco-caption's list of punctuation give them
    [
        ("A man's dog isn't here.", "a man 's dog is n't here"),
        ('A "stop" sign (red) at the corner; it\'s rainy.', "a stop sign -lrb- red -rrb- at the corner it 's rainy"),
        ("A well-known 2-year-old girl with a t-shirt", "a well-known 2-year-old girl with a t-shirt"),
        ("the U.S. flag flies at 5:30 p.m. near Mr. Smith's house", "the u.s. flag flies at 5:30 p.m. near mr. smith 's house"),
        ("10,000 people, 3.5 km away, 1/2 of them wearing hats...", "10,000 people 3.5 km away 1/2 of them wearing hats"),
        ("I cannot believe they're gonna do that", "i can not believe they 're gon na do that"),
        ("He'd've gone, but they'll stay; we've seen I'm not", "he 'd 've gone but they 'll stay we 've seen i 'm not"),
        ("the boys' bikes - Rock 'n' roll", "the boys bikes rock 'n' roll"),
        ("a $5 bill and 50% off; $1,200.50", "a $ 5 bill and 50 % off $ 1,200.50"),
        ("wow!!! so cool??? yes!", "wow !!! so cool ??? yes"),
        ("\u201cquoted\u201d and \u2018single\u2019 \u2013 dash \u2026 a café", "quoted and single dash a café"),
        ("a man who is 6'2\" tall", "a man who is 6 2 tall"),
        ("a TV/VCR combo at an AT&T store", "a tv/vcr combo at an at&t store"),
        ("", ""),
        (" . ,\n!", ""),
    ],
)
def test_words_are_those_of_the_penn_treebank(text, expected):
    assert " ".join(words(text)) == expected
