"""What a text says of left and right is still true of its image."""

import dataclasses

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import Caption, Data, Digits, Flip, Noise, Normalise
from mmjax.data.transforms.sided import PLACED, SIDED, says

IMAGE = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
SAID = (
    *(
        "a cat on the left",
        "LEFT.",
        "a left-hand glove",
        "left_arrow",
        "arrow left2",
        "TurnRight",
        "leftmost",
        "right, then up",
    ),
    *(
        "der linke Hund",
        "links vom Haus",
        "mit der Rechten? rechts",
        "à gauche",
        "la main droite",
        "a la izquierda",
        "el derecho",
    ),
    *("el derecho", "right, then up", "左边的猫", "右手", "箱の左にある犬", "고양이는 왼쪽에 있다", "의자의 오른쪽"),
)
UNSAID = (
    *("a cleft", "brightly lit", "a copyright sign", "upright", "bereft", "a cat", "", "drechsler", "adroite", "猫", "한국어"),
    *("leaf", "Rechnung"),
)


def mirrored(record, transform=None, seed=0):
    after = (transform or Flip(1.0))(record, np.random.default_rng(seed), ())
    if after is record:
        return False
    np.testing.assert_array_equal(after["image"], IMAGE[:, ::-1])
    return True


@pytest.mark.parametrize("text", SAID)
def test_an_image_is_not_mirrored_whose_text_says_a_side(text):
    assert not mirrored({"image": IMAGE, "text": text})
    assert mirrored({"image": IMAGE, "text": text}, Flip(1.0, sided=()))


@pytest.mark.parametrize("text", UNSAID)
def test_words_within_words_say_none(text):
    assert mirrored({"image": IMAGE, "text": text})


def test_every_text_of_a_record_counts():
    for key, value in (
        ("name", "left_arrow"),
        ("text_pair", "to the right"),
        ("question", "what is left of it?"),
        ("text", ("a cat", "a cat on the left")),
        ("labels", ["hand", "right shoe"]),
        ("about", {"said": [{"value": "turn left"}]}),
    ):
        assert not mirrored({"image": IMAGE, "text": "a cat", key: value}), key
    assert mirrored({"image": IMAGE, "label": 3, "name": "3", "left": 1})


def test_words_of_ones_own():
    flip = Flip(1.0, sided=("vänster", "höger*"))
    assert not any(mirrored({"image": IMAGE, "text": text}, flip) for text in ("till Vänster", "högerhand"))
    assert mirrored({"image": IMAGE, "text": "left"}, flip)
    for wrong in ("left", ("left", ""), ("*",)):
        with pytest.raises(UserError, match=r"Flip\.sided=.*: give a tuple of words"):
            Flip(sided=wrong)
    assert set(SIDED) < set(PLACED) and says({"text": "oben"}, PLACED) and not says({"text": "oben"}, SIDED)


@dataclasses.dataclass(frozen=True)
class Said:
    """A digit with a text that says a side, or not."""

    text: str

    def __call__(self, record, rng, records):
        return {key: value for key, value in record.items() if key != "name"} | {"about": self.text}


def test_what_is_held_back_draws_as_it_would():
    def batch(text, *flips):
        flip = flips[0] if flips else Flip()
        return Data(Digits(), (Said(text), flip, Noise(0.1), Normalise()), batch_size=16, threads=0).build(None, 3).batch(1)

    plain, held, none = batch("a digit"), batch("left"), batch("left", Flip(0.0))
    turned = [not np.array_equal(a, b) for a, b in zip(plain["image"], held["image"], strict=True)]
    assert 3 < sum(turned) < 13
    np.testing.assert_array_equal(held["image"], none["image"])  # the noise after it included
    np.testing.assert_array_equal(batch("left", Flip(sided=()))["image"], plain["image"])


def test_a_caption_that_says_a_side_is_written_before():
    caption = Caption(("a {}", "a {} on the left"))
    Data(Digits(), (caption, Flip(), Normalise()))._check(0)
    Data(Digits(), (Flip(sided=()), caption, Normalise()))._check(0)
    with pytest.raises(UserError, match=r"Caption writes 'a \{\} on the left' after Flip .*: put Caption before Flip"):
        Data(Digits(), (Flip(), caption, Normalise())).build(None, 0)
