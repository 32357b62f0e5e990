"""Which frames are hidden, what they are told from, what cannot be trained so; the loss: tests/convert/test_pretraining.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.models import Multimodal, init_params
from mmjax.models.codebook import Codebook
from mmjax.models.encoders import AudioTransformer, WaveformTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.heads import TokenClassifier
from mmjax.objectives import OBJECTIVES, MaskedContrastive
from mmjax.objectives.masked_contrastive import others

SIZE = {"width": 8, "depth": 1, "heads": 2, "position_kernel": 4, "position_groups": 2}
ENCODER = WaveformTransformer(widths=(6,), kernels=(10,), strides=(5,), rate=2000, mask_token=True, **SIZE)
HEADS = {
    "guesses": TokenClassifier(classes=4, input="audio", transform=False),
    "code_logits": TokenClassifier(classes=6, input="audio:frames", transform=False),
    "codes": Codebook(classes=4, books=2, entries=3, width=6),
}
OBJECTIVE = MaskedContrastive(mask_length=3, negatives=5)


def test_stretches_of_real_frames_are_hidden():
    rng = np.random.default_rng(0)
    count = np.array([40, 40, 17, 3, 2, 0] * 50)
    rounding, starts = (rng.random(shape).astype(np.float32) for shape in ((300,), (300, 40)))
    choose = jax.jit(MaskedContrastive(mask_probability=0.5, mask_length=3).choose)
    hidden = np.asarray(choose(jnp.asarray(rounding), jnp.asarray(starts), jnp.asarray(count, jnp.int32)))
    assert not hidden[np.arange(40)[None] >= count[:, None]].any()
    whole, many = hidden[count == 40], np.floor(20 / 3 + rounding[count == 40])
    # A frame is seen where none of the n stretches, of 38 places to begin, begins at one of 3.
    seen = np.mean([math.comb(35, int(n)) / math.comb(38, int(n)) for n in many])
    assert abs(whole[:, 3:-3].mean() - (1 - seen)) < 0.03 and set(many) == {6, 7}
    assert (hidden[count == 3].sum(axis=1) == 3).all() and not hidden[count < 3].any()
    begins = np.diff(np.pad(whole, ((0, 0), (1, 1))).astype(int), axis=1)
    lengths = np.argwhere(begins == -1)[:, 1] - np.argwhere(begins == 1)[:, 1]
    assert lengths.min() == 3 and 1 < (begins == 1).sum(axis=1).mean() < 7


def test_others_are_drawn_evenly_and_never_oneself():
    hidden = np.zeros((3, 9), bool)
    hidden[0, [1, 4, 5, 8]], hidden[1, 3], hidden[2, [0, 7]] = True, True, True
    uniform = np.tile(np.linspace(0, 1, 3000, endpoint=False), (3, 9, 1))
    found = np.asarray(others(jnp.asarray(hidden), jnp.asarray(uniform, jnp.float32)))
    for place in (1, 4, 5, 8):
        values, counts = np.unique(found[0, place], return_counts=True)
        assert values.tolist() == [other for other in (1, 4, 5, 8) if other != place] and np.ptp(counts) <= 2
    assert (found[2, 0] == 7).all() and (found[2, 7] == 0).all() and ((found >= 0) & (found < 9)).all()


def test_it_trains_and_counts_hidden_frames_of_valid_rows():
    model = Multimodal(encoders={"audio": ENCODER}, heads=HEADS, dtype="float32")
    mask = np.arange(200)[None] < np.array([[200], [120], [14], [200]])  # 39, 23, 1 and 39 frames
    batch = {
        "audio": jnp.asarray(np.random.default_rng(1).normal(size=mask.shape), jnp.float32),
        "audio_mask": jnp.asarray(mask),
        "index": jnp.arange(4, dtype=jnp.int32),
        "valid": jnp.asarray([True, True, True, False]),
    }

    @jax.jit
    def trained():
        params = init_params(model, jax.random.key(0))

        def loss(params, seed):
            forward = BoundForward(model, params, batch, None if seed is None else jax.random.key(seed))
            return OBJECTIVE(forward, batch, jax.random.key(1))

        def total(params):
            found = loss(params, 1)
            return found.sum, found

        gradient, first = jax.grad(total, has_aux=True)(params)
        return loss(params, None), first, gradient

    still, first, gradient = trained()
    assert 10 < first.count < 62 and first.count == still.count and first.sum != still.sum
    assert np.isfinite(first.sum) and 1 <= float(still.metrics["perplexity"][0]) / float(still.count) <= 6
    zeros = [path for path, x in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(x)]
    assert not zeros, zeros


@pytest.mark.parametrize(
    ("encoder", "heads", "line"),
    [
        (ENCODER.copy(mask_token=False), {}, "model.encoders.audio hides no frames: use WaveformTransformer"),
        (AudioTransformer(width=8, depth=1, heads=2), {}, "which is a AudioTransformer with mask_token=None"),
        (ENCODER, {"code_logits": HEADS["code_logits"].copy(classes=5)}, "has books=2 of entries=3 and classes=4; use 6 and 4"),
        (ENCODER, {"guesses": HEADS["guesses"].copy(classes=3)}, "guesses.classes=3: codes has books=2"),
    ],
)
def test_what_does_not_fit_is_said(encoder, heads, line):
    model = Multimodal(encoders={"audio": encoder}, heads={**HEADS, **heads})
    batch = {"audio": jnp.zeros((2, 100)), "index": jnp.arange(2, dtype=jnp.int32)}
    whole = Multimodal(encoders={"audio": ENCODER}, heads={**HEADS, **heads})
    params = jax.eval_shape(lambda: init_params(whole, jax.random.key(0)))
    with pytest.raises(UserError, match=line):
        jax.eval_shape(lambda params: OBJECTIVE(BoundForward(model, params, batch), batch, jax.random.key(1)), params)


def test_books_that_do_not_fit_are_said():
    assert OBJECTIVES["masked_contrastive"] is MaskedContrastive and OBJECTIVE.needs == ("audio", "index")
    with pytest.raises(UserError, match="books=2 does not divide width=5"):
        jax.eval_shape(Codebook(books=2, width=5).init, jax.random.key(0), None)
