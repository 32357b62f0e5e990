"""CLIP's end of a text, and the norm that its classifier keeps."""

import torch
from cases import given
from families.clip import BOTH, CLIP, UNREAD
from parity import assert_close, bound, save

from mmjax.convert import load


def test_the_end_token_of_either_convention_is_the_last_that_the_mask_keeps(tmp_path):
    first_of_id, largest_id = CLIP.make(BOTH), CLIP.make(BOTH.of({"text_config.eos_token_id": 2}))
    batch = CLIP.batch(first_of_id)
    by_id, by_size = (theirs(**given(theirs, batch)).text_embeds for theirs in (first_of_id, largest_id))
    assert torch.equal(by_id, by_size)
    model, params = load(save(largest_id, tmp_path / "hf"))
    assert_close(bound(model, params, batch).embed("text"), by_size)
    assert float(params["fusions_dual"]["bias_logit"]) == 0.0


def test_the_classifier_keeps_the_norm_that_it_does_not_read(tmp_path):
    model, _ = load(save(CLIP.make(UNREAD), tmp_path / "hf"))
    assert model.unread == {f"vision_model.post_layernorm.{part}": (20,) for part in ("weight", "bias")}
