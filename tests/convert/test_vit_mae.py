"""ViT-MAE's masks."""

import numpy as np
from families.vit_mae import NOISE, PAINT, VIT_MAE, keep, run
from parity import save

from mmjax.convert import load
from mmjax.convert.vit_mae import objective


def test_the_same_patches_are_hidden(tmp_path):
    for ratio in (0.75, 0.4):
        theirs = VIT_MAE.make(PAINT.of({"mask_ratio": ratio}))
        model, _ = load(save(theirs, tmp_path / str(ratio)))
        batch = VIT_MAE.batch(theirs)
        mask = run(theirs, batch).mask.numpy()
        assert np.array_equal(objective(model).choose(NOISE[:, :25])[1], mask == 1)
        assert np.array_equal(np.sort(keep(model, batch)), [np.flatnonzero(row == 0) for row in mask])
