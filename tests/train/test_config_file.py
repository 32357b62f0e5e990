"""Config files: what a user can get wrong in one, and flags on top of it."""

from pathlib import Path

import pytest
import tiny

from mmjax.core.config import leaves
from mmjax.core.errors import UserError
from mmjax.train import AdamW, Lion
from mmjax.train.config_file import apply_flags, load_config, shipped_configs

TINY = Path(tiny.__file__)


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def config(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_file_and_a_shipped_name():
    assert load_config(str(TINY)).steps == tiny.experiment().steps
    assert "digits" in shipped_configs()
    assert load_config("digits").tasks.keys() == {"contrastive", "matching", "masked_lm", "caption"}


def test_a_misspelt_name():
    refused(lambda: load_config("digist"), "config 'digist'", "no such file", "did you mean 'digits'?")


def test_a_config_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text(f"import sys\nsys.path.insert(0, {str(TINY.parent)!r})\nfrom tiny import experiment\n")
    assert load_config(config(tmp_path, "from beside import experiment")).steps == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", ["it defines no experiment()"]),
        ("def experiment():\n    return 3", ["experiment() returned int, not an Experiment"]),
        ("x = 1\ndef experiment(:\n", ["line 2", "invalid syntax"]),
        ("import mmjaxx", ["No module named 'mmjaxx'"]),
        ("from mmjax.train import AdamV", ["cannot import name 'AdamV'"]),
        (
            "from mmjax.models.encoders import ViT\ndef experiment():\n    return ViT(dept=3)",
            ["unexpected keyword argument 'dept'", "did you mean 'depth'?"],
        ),
        (
            "from mmjax.train import AdamW\noptimizer = AdamW(learning_rat=3)",
            ["unexpected keyword argument 'learning_rat'", "did you mean 'learning_rate'?"],
        ),
        ("from mmjax.train import AdamW\noptimizer = AdamW(schedule='step')", ["optimizer.schedule='step'"]),
        ("def experiment():\n    return foo", ["line 2", "NameError", "'foo'"]),
        ("x = 1\nopen('nowhere.txt')", ["line 2", "No such file", "'nowhere.txt'"]),
        ("def half(x):\n    return x / 0\nhalf(3)", ["line 2", "ZeroDivisionError"]),
        ("import sys\nsys.exit('not here')", ["line 2", "not here"]),
        ("x = 1\0", ["null bytes"]),
    ],
)
def test_a_wrong_config_is_one_line_with_its_file(tmp_path, text, words):
    path = config(tmp_path, text)
    refused(lambda: load_config(path), f"config {path}", *words)


def test_a_config_that_is_no_text(tmp_path):
    path = tmp_path / "mine.py"
    path.write_bytes(b"x = '\xff'\n")
    refused(lambda: load_config(str(path)), f"config {path}", "'utf-8' codec can't decode")
    refused(lambda: load_config(str(tmp_path)), f"config {str(tmp_path)!r}", "it is a folder")


def test_what_fails_in_our_code_keeps_its_traceback(tmp_path):
    path = config(tmp_path, "from mmjax.data.splits import hash_split\nhash_split(None, (1, 0, 0))\n")
    with pytest.raises(AttributeError):
        load_config(path)


def test_flags_set_fields_of_every_kind():
    words = (
        "--steps 12 --model.encoders.image.depth 2 --optimizer.learning_rate=1e-3 --tasks.classify.weight 0.5 "
        "--init_fresh heads_a/* heads_b/* --tasks.contrastive none --log.tensorboard true --model.encoders.image.patch 2,2"
    )
    made = apply_flags(tiny.experiment(), words.split())
    assert made.steps == 12
    assert made.model.encoders["image"].depth == 2 and made.model.encoders["image"].patch == (2, 2)
    assert made.optimizer.learning_rate == 1e-3
    assert list(made.tasks) == ["classify"] and made.tasks["classify"].weight == 0.5
    assert made.init_fresh == ("heads_a/*", "heads_b/*")
    assert made.log.tensorboard is True


def test_a_flag_changes_its_leaf_and_no_other():
    before, after = leaves(tiny.four()), leaves(apply_flags(tiny.four(), ["--model.fusions.cross.depth", "2"]))
    assert {path for path in before if before[path] != after[path]} == {"model.fusions.cross.depth"}
    assert before.keys() == after.keys()


def test_a_flag_names_a_class_of_a_table_or_of_ones_own():
    """It keeps the values of the fields that both have."""
    kept = {"learning_rate": 0.05, "schedule": "constant", "clip_norm": 0.0}
    assert apply_flags(tiny.experiment(), ["--optimizer", "lion"]).optimizer == Lion(**kept)
    assert apply_flags(tiny.experiment(), ["--optimizer", "mmjax.train.optimizer:AdamW"]).optimizer == AdamW(**kept)
    refused(lambda: apply_flags(tiny.experiment(), ["--optimizer", "loin"]), "--optimizer loin", "did you mean 'lion'?")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.encoders.image.dept", "3"], ["--model.encoders.image.dept", "did you mean 'model.encoders.image.depth'?"]),
        (["--steps", "many"], ["--steps many", "expected int", "now 6"]),
        (["--steps"], ["--steps: a value is missing"]),
        (["steps", "3"], ["'steps' is neither a config nor a flag"]),
        (["--tasks", "x"], ["--tasks holds --tasks.contrastive, --tasks.classify"]),
    ],
)
def test_a_wrong_flag_is_one_line(words, said):
    refused(lambda: apply_flags(tiny.experiment(), words), *said)


def test_experiment_may_import_what_lies_beside_its_config(tmp_path):
    (tmp_path / "late_neighbour.py").write_text("STEPS = 77\n")
    made = "import dataclasses\n\n\ndef experiment():\n    import tiny\n    from late_neighbour import STEPS\n\n"
    (tmp_path / "mine.py").write_text(made + "    return dataclasses.replace(tiny.experiment(), steps=STEPS)\n")
    assert load_config(str(tmp_path / "mine.py")).steps == 77
