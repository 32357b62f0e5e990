"""`benchmarks/few_shot.py`: its score, its table, and that the page's flags are its methods."""

import dataclasses
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from mmjax.core.config import differences
from mmjax.train.config_file import apply_flags, load_config

HERE = Path(__file__).parents[2]
PAGE = (HERE / "docs" / "few_shot.md").read_text()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("few_shot", HERE / "benchmarks" / "few_shot.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags():
    """What the page says of each method -> its flags."""
    parts = re.split(r"\n(?=# )", re.search(r"```\n(# CoOp.*?)```", PAGE, re.DOTALL)[1].strip())
    return {part.splitlines()[0]: shlex.split(" ".join(part.splitlines()[1:])) for part in parts}


@pytest.mark.parametrize(
    ("title", "method"),
    [
        ("# CoOp", "CoOp"),
        ("# a linear probe", "linear probe"),
        ("# Tip-Adapter-F: `size` is as many records as there are", "Tip-Adapter-F"),
    ],
)
def test_the_flags_of_the_page_are_the_methods_that_were_measured(script, title, method):
    assert len(flags()) == 3
    by_flags = apply_flags(load_config("few_shot"), flags()[title])
    evaluator, change = script.METHODS[method]
    measured = change(load_config("few_shot"))
    assert differences(measured, by_flags, ("evaluate",)) == []
    assert differences(measured.evaluate[evaluator], by_flags.evaluate[evaluator]) == []
    by_flags.check()
    assert by_flags.updating.train


def test_the_pages_python_runs():
    made = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, made)
    assert made["train"].source.shots == 4 and made["other"].source.but == ("owl", "cat")


def test_a_score_is_the_mean_over_classes(script, tmp_path):
    rows = [("a", "a"), ("a", "a"), ("a", "b"), ("a", "a"), ("b", "b"), ("b", "a")]
    lines = [{"evaluator": "prompted", "label": label, "predicted": predicted} for label, predicted in rows]
    lines.append({"evaluator": "tip", "label": "a", "predicted": "b"})
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert script.balanced(path, "prompted") == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_the_table_marks_what_is_below_zero_shot(script, capsys):
    table = {"zero-shot, one prompt": {1: [0.3, 0.3]}, "probe": {1: [0.1, 0.3]}, "tip": {1: [0.4, 0.4]}}
    script.print_table(table, [1], 5)
    said = capsys.readouterr().out
    assert "chance 0.200; zero-shot with one prompt 0.300, 1.5 times chance" in said
    assert "| probe | 0.200 +- 0.141 * |" in said and "| tip | 0.400 +- 0.000 |" in said


def test_shots_seeds_and_the_folder_reach_every_stream(script):
    base = load_config("few_shot")
    made = script.few(script.at(base, "elsewhere"), 8, 2)
    assert {data.source.source.path for data in made.data.values()} == {"elsewhere"}
    assert (made.data["train"].source.shots, made.data["train"].source.seed, made.seed) == (8, 2, 2)
    assert made.data["test"] == dataclasses.replace(script.at(base, "elsewhere").data["test"])
