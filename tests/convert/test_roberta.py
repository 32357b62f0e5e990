"""RoBERTa's positions, which count from the padding id."""

import json

import numpy as np
import pytest
import torch
from families.roberta import BASE, ROBERTA
from parity import assert_close, bound, round_trip

from mmjax.core.errors import UserError


def test_the_longest_text(tmp_path):
    """15 rows of positions, of which the padding id's and the one before it are no token's."""
    theirs = ROBERTA.make(BASE)
    model, params = round_trip(theirs, tmp_path)
    assert (model.encoders["text"].max_length, model.encoders["text"].position_offset) == (13, 2)
    ids = np.random.default_rng(0).integers(5, 37, (2, 13))
    tokens = bound(model, params, {"text": ids.astype(np.int32)}).encode("text")
    assert_close(tokens.embeddings, theirs(torch.tensor(ids)).last_hidden_state)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["max_position_embeddings"] == 15
    with pytest.raises(UserError, match="a text of 14 tokens is longer than the model's max_length=13"):
        bound(model, params, {"text": np.zeros((1, 14), np.int32)}).encode("text")
