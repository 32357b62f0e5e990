"""Adapters beside peft's: what it opens of ours and we of its, in answers; what has no place, by name."""

import pytest
import torch
from checks import check_answers, each, expected, said
from families import CASES
from parity import save
from peft_cases import WAYS, opened, ours, read, theirs, written

from mmjax.adapt import LoRA
from mmjax.convert import load

# Every class with LoRA both ways is a test that is run now and then; in each run one class of each family, with LoRA and one
# way more, in turn, and three families of different layouts in every way: what a family is read by and what a way computes know
# nothing of each other. peft 0.21 opens no FlavaForPreTraining, which says no words of its own.
CONVOLVED = ("resnet", "convnext", "convnextv2")  # which have no attention, on which all ways here act; see below
ATTENDING = [case for case in CASES.values() if case.model_type not in CONVOLVED]
FIRSTS = [
    (case, next((m for m in case.models if ("For" in m.name or "LMHead" in m.name) and "Flava" not in m.name), case.models[-1]))
    for case in ATTENDING
]
EVERY = [(case, made) for case in ATTENDING for made in case.models if made.name != "FlavaForPreTraining"]
BARE = ("llama", "t5", "mt5", "bart")  # without biases, or with one that no module has
WHOLE = ("gpt2", "vit", "llama")
PAIRS = [(case, made, way) for case, made in FIRSTS for way in WAYS if not (way == "bitfit" and case.model_type in BARE)]
OTHERS = [way for way in WAYS if way not in ("lora", "pissa")]  # peft writes no PiSSA that is not LoRA
TURN = {case.model_type: OTHERS[n % len(OTHERS)] for n, (case, _) in enumerate(FIRSTS)}


def rows(pairs):
    """The pairs as tests; those that others stand for only where there is time."""
    quick = [case.model_type in WHOLE or way in ("lora", TURN[case.model_type]) for case, _, way in pairs]
    params = each(*[(*p, (p[1].name, p[2])) for p in pairs])
    return [
        pytest.param(*p.values, id=p.id, marks=p.marks or (() if often else pytest.mark.slow))
        for p, often in zip(params, quick, strict=True)
    ]


def check_ours(case, made, way, tmp_path):
    hf, batch, before = expected(case, made)
    model, params = load(save(hf, tmp_path / "hf"))
    adapted, trained = ours(model, params, WAYS[way].ours)
    own = opened(hf, written(model, adapted, trained, tmp_path / "adapter"))
    with torch.no_grad():
        answers = case.theirs(made, own.base_model.model, batch)
    assert max(float((torch.as_tensor(answers[k]) - torch.as_tensor(before[k])).abs().max()) for k in answers) > 1e-3
    check_answers(case, model, adapted, batch, answers)


def check_theirs(case, made, way, tmp_path):
    hf, batch, _ = expected(case, made)
    model, params = load(save(hf, tmp_path / "hf"))
    own = theirs(hf, way, tmp_path / "adapter")
    with torch.no_grad():
        answers = case.theirs(made, own.base_model.model, batch)
    adapted, _, _ = read(model, params, tmp_path / "adapter")
    check_answers(case, model, adapted, batch, answers)


@pytest.mark.parametrize(("case", "made", "way"), rows(PAIRS))
def test_peft_opens_what_we_write(case, made, way, tmp_path):
    check_ours(case, made, way, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "made"), each(*[(*p, (p[1].name, said(p[1].changes))) for p in EVERY]))
def test_every_class_takes_lora_both_ways(case, made, tmp_path):
    check_ours(case, made, "rslora", tmp_path)
    check_theirs(case, made, "rslora", tmp_path / "theirs")


@pytest.mark.parametrize(("case", "made", "way"), rows([p for p in PAIRS if p[2] != "pissa"]))
def test_we_open_what_peft_writes(case, made, way, tmp_path):
    check_theirs(case, made, way, tmp_path)


@pytest.mark.parametrize("name", ["convnext", "convnextv2"])
def test_peft_opens_what_acts_in_convnexts_feed_forward_layers(name, tmp_path):
    case = CASES[name]
    made = next(one for one in case.models if "Classification" in one.name)
    hf, batch, before = expected(case, made)
    model, params = load(save(hf, tmp_path / "hf"))
    adapted, trained = ours(model, params, {"*/layers/mlp/up/kernel": LoRA(r=2, alpha=8)})
    own = opened(hf, written(model, adapted, trained, tmp_path / "adapter"))
    with torch.no_grad():
        answers = case.theirs(made, own.base_model.model, batch)
    assert max(float((torch.as_tensor(answers[k]) - torch.as_tensor(before[k])).abs().max()) for k in answers) > 1e-3
    check_answers(case, model, adapted, batch, answers)
