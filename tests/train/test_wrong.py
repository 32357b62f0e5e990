"""Fifty wrong experiments: each ends in one line before the first step. `wrong.py` makes as many as one likes."""

import jax
import pytest
import wrong

from mmjax.core.errors import UserError
from mmjax.train import train

WRONG = 50


@pytest.mark.parametrize("number", range(WRONG))
def test_it_is_refused_in_one_line_before_the_first_step(number, tmp_path):
    wrong.photos(tmp_path)
    what, make = wrong.wrong(number, tmp_path)
    with pytest.raises(UserError) as refused, jax.log_compiles(False):
        train(make(), tmp_path / "run")
    said = str(refused.value)
    assert said and "\n" not in said, f"{what}: {said}"
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text(), what


def test_what_they_are_made_of_is_sound(tmp_path):
    wrong.photos(tmp_path)
    assert set(train(wrong.sound(tmp_path), tmp_path / "run")) >= {"report/accuracy", "answers/accuracy", "prompted/accuracy"}
