"""Adapters that write row by row in one batch: the texts of each alone, and of peft."""

import copy

import numpy as np
import peft
import pytest
import torch
from peft_cases import strict
from test_writing import PROMPTS, gpt2, theirs  # noqa: F401

import mmjax
from mmjax.core.errors import UserError

RANKS = {"small": 2, "large": 5}
ASKED = [PROMPTS[1], PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[1]]
NAMES = ["small", "large", "small", "large", "large"]


@pytest.fixture(scope="module")
def several(gpt2, tmp_path_factory):  # noqa: F811
    """The base, peft's own models, and ours of their folders."""
    folder, model, _ = gpt2
    home, models = tmp_path_factory.mktemp("adapters"), {}
    for name, r in RANKS.items():
        torch.manual_seed(r)
        config = peft.LoraConfig(r=r, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        with strict():
            own = peft.get_peft_model(copy.deepcopy(model), config).eval()
        with torch.no_grad():
            for path, x in own.named_parameters():
                if "lora_" in path:
                    x.copy_(0.08 * torch.randn(x.shape))
        own.save_pretrained(home / name)
        models[name] = own
    return mmjax.Adapters(folder, {name: home / name for name in RANKS}), models


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3, "num_return_sequences": 2}])
def test_each_prompt_is_gone_on_with_by_its_own(settings, several, gpt2):  # noqa: F811
    ask, models = several
    given = {"max_new_tokens": 7, "details": True, **settings}
    found = ask.rows(NAMES).generate(ASKED, **given)
    for number, (name, prompt, own) in enumerate(zip(NAMES, ASKED, found, strict=True)):
        alone = ask[name].generate(prompt, numbers=[number], **given)[0]
        if settings.get("num_return_sequences"):
            assert [one.ids for one in own] == [one.ids for one in alone]
            continue
        assert own.ids == alone.ids
        np.testing.assert_allclose(own.score, alone.score, rtol=1e-4)
        assert own.ids == theirs(models[name], gpt2[2], prompt, max_new_tokens=7, **settings)
    if not settings:
        assert len({tuple(own.ids) for own in found}) > 2


def test_likelihoods_are_those_of_each(several):
    ask, _ = several
    after = [" friend", " the mat", " fine", " cat", " you"]
    found = ask.rows(NAMES).score(ASKED, after)
    for name, prompt, text, own in zip(NAMES, ASKED, after, found, strict=True):
        alone = ask[name].score([prompt], [text])[0]
        np.testing.assert_allclose(own["log_likelihood"], alone["log_likelihood"], rtol=1e-5)
        assert own["tokens"] == alone["tokens"]


def test_as_many_prompts_as_names(several):
    rows = several[0].rows(NAMES)
    for ask in (
        lambda: rows.generate(ASKED[:2]),
        lambda: rows.score(ASKED[:2], ["a", "b"]),
        lambda: rows.generate(stream=True),
    ):
        with pytest.raises(UserError, match=r"[12] inputs and 5 names of adapters: give one each"):
            ask()
    (text,) = several[0].rows(["large"]).generate(PROMPTS[0], max_new_tokens=6)
    assert "".join(several[0].rows(["large"]).generate(PROMPTS[0], max_new_tokens=6, stream=True)) == text
