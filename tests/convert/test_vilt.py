"""ViLT's word table: tied to the output or not, whatever config.json says."""

import torch
from families.vilt import MASKED_LM, VILT
from parity import assert_close, round_trip

from mmjax.convert import load
from mmjax.convert.huggingface import build_model


def test_files_with_two_word_tables_are_not_tied(tmp_path):
    """The public masked LM's: config.json as HuggingFace 5 writes it claims otherwise."""
    theirs = VILT.make(MASKED_LM)
    table = torch.randn(theirs.mlm_score.decoder.weight.shape, generator=torch.Generator().manual_seed(1))
    theirs.mlm_score.decoder.weight = torch.nn.Parameter(0.2 * table)
    model, params = round_trip(theirs, tmp_path)
    assert model.heads["masked_lm"].tied_to == ""
    batch = VILT.batch(theirs)
    found = VILT.ours(model, params, batch, ("masked_lm",))["masked_lm"][:, : batch["text"].shape[1]]
    assert_close(found, VILT.theirs(MASKED_LM, theirs, batch)["masked_lm"], where=batch["text_mask"])
    assert load(tmp_path / "back")[0].heads["masked_lm"].tied_to == ""


def test_a_config_that_does_not_say_has_the_bias_of_attention():
    config = {"model_type": "vilt", "architectures": [MASKED_LM.name], **VILT.sizes}
    assert build_model(config)[1].fusions["joint"].qkv_bias
