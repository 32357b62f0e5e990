"""DINOv2's masked patches, and the width of its feed-forward layer."""

import numpy as np
import pytest
import torch
from cases import given
from families.dinov2 import BASE, CLASSES, DINOV2
from parity import assert_close, bound, save

from mmjax.convert import load, save_hf
from mmjax.core.errors import UserError


def test_masked_patches(tmp_path):
    theirs = DINOV2.make(BASE)
    model, params = load(save(theirs, tmp_path / "hf"))
    masked = np.array([[1, 0, 0, 1, 1, 0, 0, 0, 1], [0] * 8 + [1], [0] * 9], bool)
    batch = DINOV2.batch(theirs)
    out = theirs(**given(theirs, batch, DINOV2.silent), bool_masked_pos=torch.tensor(masked))
    batch["image_segments"] = masked.astype(np.int32)
    assert_close(bound(model, params, batch).encode("image").embeddings, out.last_hidden_state)


def test_another_width_of_the_feed_forward_layer_cannot_be_written(tmp_path):
    model, params = load(save(DINOV2.make(CLASSES), tmp_path / "hf"))
    wider = model.copy(encoders={"image": model.encoders["image"].copy(mlp_width=50)})
    with pytest.raises(UserError, match=r"model.encoders.image.mlp_width=50 has no place in Dinov2.*, which has 48"):
        save_hf(wider, params, tmp_path / "back")
