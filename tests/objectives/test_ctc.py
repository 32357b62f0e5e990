"""The loss of letters against PyTorch's, at the logits; and rows that have no such loss."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn import functional

from mmjax.core.errors import UserError
from mmjax.core.types import Tokens
from mmjax.objectives import CTC
from mmjax.objectives.ctc import ctc_loss, fits

FRAMES = np.array([14, 10, 12, 3, 8, 5])
LETTERS = [[1, 1, 2], [4, 5, 4, 4], [], [1, 2, 5], [2, 2, 2, 2], [5]]


class Said:
    """A forward whose head gives logits as they are."""

    def __init__(self, logits, frames, fed="audio"):
        self.logits, self.frames, self.fed = logits, frames, fed

    def head(self, head):
        return self.logits

    def spec(self, path):
        assert path == "heads.ctc"
        return types.SimpleNamespace(input=self.fed)

    def tokens(self, name):
        return Tokens(jnp.zeros((*self.frames.shape, 1)), self.frames)


def batch_of(letters, length=8, around=(), **more):
    """Texts as a tokenizer writes them: (before, after) around each, 0 to the end of a row."""
    ids, mask = np.zeros((len(letters), length), np.int32), np.zeros((len(letters), length), bool)
    for row, own in enumerate(letters):
        own = [*around[:1], *own, *around[1:]]
        ids[row, : len(own)], mask[row, : len(own)] = own, True
    return {"text": jnp.asarray(ids), "text_mask": jnp.asarray(mask), **{k: jnp.asarray(v) for k, v in more.items()}}


def given(frames=FRAMES, classes=7, length=14, seed=0, scale=1.0):
    logits = scale * np.random.default_rng(seed).normal(size=(len(frames), length, classes))
    return logits.astype(np.float32), np.arange(length)[None] < np.asarray(frames)[:, None]


def theirs(logits, frames, letters, blank=0, reduction="none", dtype=torch.float32):
    """PyTorch's losses and their gradient at the logits."""
    x = torch.tensor(logits, dtype=dtype, requires_grad=True)
    log_p = functional.log_softmax(x, -1).transpose(0, 1)
    flat = torch.tensor([one for own in letters for one in own])
    lengths = torch.tensor([len(own) for own in letters])
    found = functional.ctc_loss(log_p, flat, torch.tensor(frames.sum(1)), lengths, blank=blank, reduction=reduction)
    found.sum().backward()
    return found.detach().numpy(), x.grad.numpy()


def ours(objective, logits, frames, batch):
    def value(logits):
        loss = objective(Said(logits, jnp.asarray(frames)), batch, None)
        return loss.sum, loss

    (_, loss), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(jnp.asarray(logits))
    return loss, np.asarray(gradient)


@pytest.mark.parametrize(("blank", "reduction"), [(0, "sum"), (0, "mean"), (6, "mean")])
def test_losses_and_gradients_at_the_logits_are_pytorchs(blank, reduction):
    logits, frames = given()
    batch = batch_of(LETTERS, around=(3, 6 - blank))  # 0 is a token around a text where the blank is 6
    loss, gradient = ours(CTC(reduction=reduction, blank_id=blank, special_ids=(3, 6 - blank)), logits, frames, batch)
    value, expected = theirs(logits, frames, LETTERS, blank, reduction)
    if reduction == "sum":
        assert float(loss.sum) == pytest.approx(float(value), rel=1e-6) and float(loss.count) == 6
    else:
        assert float(loss.sum) / float(loss.count) == pytest.approx(float(value), rel=1e-6)
        gradient = gradient / 6
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    assert not gradient[~frames].any()


def test_that_loss_is_what_transformers_calls_mean_and_sum():
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC
    from transformers.modeling_outputs import BaseModelOutput

    logits, frames = given(frames=[14] * 6)  # a whole row of frames each, as their model counts them
    small = {"hidden_size": 7, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 7, "vocab_size": 7}
    small |= {"conv_dim": (4,), "conv_stride": (1,), "conv_kernel": (1,), "num_conv_pos_embeddings": 2}
    small |= {"num_conv_pos_embedding_groups": 1, "num_feat_extract_layers": 1, "pad_token_id": 0, "final_dropout": 0.0}
    labels = torch.tensor([own + [-100] * (4 - len(own)) for own in LETTERS])
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**small)).eval()
    model.wav2vec2.forward = lambda *_, **__: BaseModelOutput(last_hidden_state=torch.tensor(logits))
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(7))
        model.lm_head.bias.zero_()
    for reduction in ("mean", "sum"):
        model.config.ctc_loss_reduction = reduction
        with torch.no_grad():
            value = model(torch.zeros(6, 14), labels=labels).loss.item()
        assert value == pytest.approx(float(theirs(logits, frames, LETTERS, reduction=reduction)[0]), rel=1e-6)


def test_rows_whose_text_cannot_stand_in_their_frames_do_not_count():
    frames = [3, 3, 2, 0, 0, 14]
    letters = [[1, 2, 3], [1, 1, 2], [4, 4], [1], [], [5]]  # the second wants 4 frames, the third 3, the fourth 1
    logits, real = given(frames)
    batch = batch_of(letters, valid=np.array([True] * 5 + [False]))
    loss, gradient = ours(CTC(), logits, real, batch)
    assert [float(x) for x in loss.metrics["cannot_fit"]] == [3, 5] and float(loss.count) == 2
    assert np.isfinite(gradient).all() and not gradient[1:].any()
    expected, _ = theirs(logits[:1], real[:1], letters[:1])
    assert float(loss.sum) == pytest.approx(float(expected[0]) / 3, rel=1e-6)  # and 0 of nothing said in no frame
    found = fits(batch["text"], batch["text_mask"], jnp.asarray(real))
    assert found.tolist() == [True, False, False, False, True, True]


def test_blanks_are_a_share_of_the_real_frames():
    logits, real = given()
    loss, _ = ours(CTC(), logits, real, batch_of(LETTERS))
    blank = (logits.argmax(-1) == 0) & real
    assert [float(x) for x in loss.metrics["blank"]] == [blank.sum(), real.sum()]


def test_long_sounds_keep_their_digits():
    """Twenty seconds: against float64, where optax and PyTorch in float32 are off in the third digit of a gradient."""
    rng = np.random.default_rng(0)
    logits, frames = given([1000], classes=32, length=1000)
    letters = rng.integers(1, 32, (1, 150))
    value, expected = theirs(logits, frames, letters.tolist(), dtype=torch.float64)
    real = jnp.ones((1, 150), bool)
    found, own = jax.value_and_grad(lambda x: ctc_loss(x, jnp.asarray(frames), jnp.asarray(letters), real, 0).sum())(logits)
    of_optax = jax.grad(lambda x: optax.ctc_loss(x, jnp.zeros((1, 1000)), jnp.asarray(letters), jnp.zeros((1, 150))).sum())
    assert float(found) == pytest.approx(float(value[0]), rel=1e-6)
    off, of_optax = (float(np.abs(np.asarray(x) - expected).max()) for x in (own, of_optax(logits)))
    assert off < 5e-5 < 5e-4 < of_optax, (off, of_optax)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CTC(reduction="none"), r"^ctc\.reduction='none': use one of mean, sum"),
        (lambda: CTC(special_ids=(0, 2)), r"^ctc\.special_ids=\(0, 2\): the blank, 0, is none of them"),
        (lambda: CTC(blank_id=9)(Said(*map(jnp.asarray, given())), batch_of(LETTERS), None), r"blank_id=9: .*classes=7"),
        (
            lambda: CTC()(Said(jnp.zeros((6, 7)), jnp.ones((6, 14), bool)), batch_of(LETTERS), None),
            r"model\.heads\.ctc gives 7 an example",
        ),
        (
            lambda: CTC()(Said(*map(jnp.asarray, given()), fed=("audio", "image")), batch_of(LETTERS), None),
            r"one class a frame",
        ),
        (
            lambda: CTC()(Said(*map(jnp.asarray, given())), batch_of(LETTERS, lengths=0) | {"text_lengths": 0}, None),
            r"text='text': CTC reads one text a row; leave data\.packing away",
        ),
        (
            lambda: CTC()(Said(*map(jnp.asarray, given())), batch_of(LETTERS) | {"text_segments": 0}, None),
            r"one text a row; leave text_pair away",
        ),
    ],
)
def test_what_is_none_is_named(call, words):
    with pytest.raises(UserError, match=words):
        call()
