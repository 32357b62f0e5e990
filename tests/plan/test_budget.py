import json
from pathlib import Path

import pytest

from mmjax.core.errors import UserError
from mmjax.core.flags import take
from mmjax.plan.budget import figures, grown, write
from mmjax.plan.command import Options, measured_step, prepare
from mmjax.plan.compile import Measured
from mmjax.train.config_file import apply_flags, load_config

BUDGETS = sorted((Path(__file__).parents[2] / "benchmarks" / "budgets").glob("*.json"))
MEASURED = Measured(
    mesh={},
    examples=1,
    sizes={},
    model_flops=1.0,
    hardware_flops=1.0,
    memory={"arguments": 60, "temporaries": 40},
    traffic={"read": 700.0, "written": 300.0},
    collectives={"all-reduce data": 8.0, "all-gather data": 2.0, "all-gather fsdp": 5.0},
)


def test_a_budget_holds_memory_traffic_and_what_is_sent_along_each_axis(tmp_path):
    assert figures(MEASURED) == {"hbm": 100, "traffic": 1000, "sent data": 10, "sent fsdp": 5}
    write(tmp_path / "b.json", ["digits", "--topology", "v5e:2x2"], MEASURED)
    kept = json.loads((tmp_path / "b.json").read_text())
    assert kept == {"plan": ["digits", "--topology", "v5e:2x2"], "figures": figures(MEASURED)}


def test_three_percent_more_is_allowed_and_no_more():
    budget = {"figures": {"hbm": 100, "traffic": 1000}}
    assert grown(budget, {"hbm": 103, "traffic": 900}) == []
    assert grown(budget, {"hbm": 104, "traffic": 900}) == ["hbm: 104 bytes, and its budget is 100"]


def test_a_new_collective_is_over_its_budget_of_nothing():
    assert grown({"figures": {}}, {"sent tensor": 5.0}) == ["sent tensor: 5 bytes, and its budget is 0"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--write_budget .*: No such file or directory"):
        write(tmp_path / "no" / "b.json", [], MEASURED)


@pytest.mark.slow  # minutes each; of a small step `test_plan_command` has bounds
@pytest.mark.parametrize("path", BUDGETS, ids=[path.stem for path in BUDGETS])
def test_a_shipped_config_stays_within_its_budget(path):
    budget = json.loads(path.read_text())
    words = list(budget["plan"])
    options = take(words, Options)
    job = prepare(words[0], apply_flags(load_config(words[0]), words[1:]), options)
    measured = measured_step(job)
    assert grown(budget, figures(measured)) == []
