"""What stands where an objective should is named, with what would be right."""

import dataclasses

import pytest

from mmjax.core.errors import UserError
from mmjax.evaluate import HeldOut, Perplexity
from mmjax.objectives import CausalLM, Classification
from mmjax.train import Task
from mmjax.train.config_file import apply_flags, load_config

CASES = [
    (None, "objective is missing: give one"),
    ("causal_lm", r"objective='causal_lm' is a text: give the objective itself, CausalLM\(\.\.\.\)"),
    ("causl_lm", r"objective='causl_lm' is a text \(did you mean 'causal_lm'\?\)"),
    (CausalLM, r"objective=CausalLM is a class: give what it makes, CausalLM\(\.\.\.\)"),
    (3, "objective=3: give one of alignment, causal_lm"),
]


@pytest.mark.parametrize(("given", "said"), CASES)
@pytest.mark.parametrize("kind", [Perplexity, HeldOut])
def test_an_evaluator_says_what_its_objective_should_be(kind, given, said):
    with pytest.raises(UserError, match=said):
        kind(given)
    assert kind(CausalLM()).objective == CausalLM()


def test_one_that_is_left_out_is_missing():
    with pytest.raises(UserError, match=r"missing: give one, for instance Perplexity\(CausalLM\(\)\)"):
        Perplexity()
    with pytest.raises(UserError, match=r"missing: give one, for instance HeldOut\(Classification\(\)\)"):
        HeldOut()
    for word in ("perplexity", "held_out"):
        with pytest.raises(UserError, match=r"needs objective; add --evaluate\.new\.objective NAME"):
            apply_flags(load_config("captioner"), ["--evaluate.new", word])


@pytest.mark.parametrize(("given", "said"), CASES)
def test_so_does_a_task(given, said):
    made = dataclasses.replace(load_config("captioner"), tasks={"own": Task(given)})
    with pytest.raises(UserError, match=r"tasks\.own: " + said):
        made.check()
    dataclasses.replace(made, tasks={"own": Task(Classification())}).check()
