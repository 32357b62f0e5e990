"""Connectionist temporal classification: a text from the frames of a sound, without saying which frame is which letter."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks, routes
from mmjax.objectives.losses import counted, valid_rows

REDUCTIONS = ("mean", "sum")
NEVER = -1e30  # log(0), of which a few are still finite


@dataclasses.dataclass(frozen=True)
class CTC:
    """Minus the log-likelihood of a text: the sum over all ways to write it into the frames, one class a frame, that give the
    text when repeats become one and blanks are dropped (Graves 2006). Float32, PyTorch's `ctc_loss` of log-softmax.

    A row whose text cannot stand in its frames (one each for its letters, and a blank between two that are the same) has no
    such way: it does not count, and `cannot_fit` is the share of such rows. An empty text is all blanks. Of the metrics
    `blank` is the share of real frames whose likeliest class is the blank: near 1 while nothing is learned yet.

    Attributes:
      head: a head of a class for each token, [B, T, V]: `TokenClassifier(classes=V, input="audio", transform=False)`. Frames
        are those of its input's mask.
      text: the modality of the texts.
      blank_id: of the blank: the tokenizer's padding token, as in `transformers.Wav2Vec2ForCTC`.
      special_ids: of tokens that the tokenizer writes around a text, which nobody speaks: they are taken out of it. Set-up
        refuses to go on where one is missing here.
      reduction: as `ctc_loss_reduction` of `transformers`, over the rows that count. `mean`: of each row's loss by its letters,
        of which there is 1 at least; that is PyTorch's. `sum`: each row's loss whole; the value is its mean over rows, so that
        it does not grow with the batch, where theirs is the sum: their learning rate r is r * rows here.

    Raises:
      UserError: when called: logits or texts of another shape, a blank that the head does not have, rows of several texts.
    """

    head: str = "ctc"
    text: str = "text"
    blank_id: int = setting(least=0, default=0)
    special_ids: tuple[int, ...] = setting(least=0, default=())
    reduction: str = "mean"

    in_batch: ClassVar[bool] = False
    told: ClassVar[dict[str, str]] = {
        "cannot_fit": "of its rows have fewer frames than their text needs, and do not count: longer sounds (Audio.seconds), "
        "more frames a second (a smaller hop) or shorter texts"
    }

    def __post_init__(self) -> None:
        checks.one_of("ctc.reduction", self.reduction, REDUCTIONS)
        if self.blank_id in self.special_ids:
            raise UserError(f"ctc.special_ids={self.special_ids}: the blank, {self.blank_id}, is none of them")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.text, f"{self.text}_mask")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        logits_BTV, frames_BT = spoken(forward, self.head)
        ids_BN, real_BN = batch[self.text], batch[f"{self.text}_mask"]
        for part, why in (("lengths", "leave data.packing away"), ("segments", f"leave {self.text}_pair away")):
            if f"{self.text}_{part}" in batch:
                raise UserError(f"text={self.text!r}: CTC reads one text a row; {why}")
        if self.blank_id >= logits_BTV.shape[-1]:
            raise UserError(
                f"blank_id={self.blank_id}: model.heads.{self.head}.classes={logits_BTV.shape[-1]}; use one of them"
            )
        valid_B = valid_rows(batch, ids_BN.shape[0], self.text)  # an empty text is one, a lacking one is none
        ids_BN, real_BN = letters(ids_BN, real_BN, (self.blank_id, *self.special_ids))
        fits_B = fits(ids_BN, real_BN, frames_BT)
        losses_B = ctc_loss(logits_BTV, frames_BT, ids_BN, real_BN & fits_B[:, None], self.blank_id)
        if self.reduction == "mean":
            losses_B = losses_B / jnp.maximum(jnp.sum(real_BN.astype(jnp.float32), axis=1), 1.0)
        blank_BT = jnp.argmax(logits_BTV, axis=-1) == self.blank_id
        metrics = {
            "cannot_fit": counted(~fits_B, valid_B),
            "blank": counted(blank_BT, frames_BT & valid_B[:, None]),
        }
        return Loss(*counted(losses_B, fits_B & valid_B), metrics)


def spoken(forward: Forward, head: str) -> tuple[Array, Array]:
    """The logits of a head a frame, [B, T, V] float32, and which frames are real, [B, T] bool.

    Raises:
      UserError: a head that gives something else.
    """
    logits = forward.head(head)
    inputs = routes.named(forward.spec(f"heads.{head}").input)
    if logits.ndim != 3 or len(inputs) != 1:
        own = "x".join(map(str, logits.shape[1:]))
        raise UserError(
            f"model.heads.{head} gives {own} an example, and letters are read from one class a frame: use "
            "TokenClassifier(classes=V, input='audio', transform=False)"
        )
    return logits.astype(jnp.float32), forward.tokens(inputs[0]).real().mask


def letters(ids_BN: Array, real_BN: Array, left_out: tuple[int, ...]) -> tuple[Array, Array]:
    """Texts [B, N] without some ids, moved to the left, and which are real; 0 from there on."""
    real_BN = real_BN & ~jnp.isin(ids_BN, jnp.array(left_out, ids_BN.dtype))
    order_BN = jnp.argsort(~real_BN, axis=1, stable=True)
    ids_BN, real_BN = (jnp.take_along_axis(x, order_BN, axis=1) for x in (ids_BN, real_BN))
    return jnp.where(real_BN, ids_BN, 0), real_BN


def fits(ids_BN: Array, real_BN: Array, frames_BT: Array) -> Array:
    """[B] bool: whether there are as many frames as letters, and one more between two letters that are the same."""
    again_BN = (ids_BN[:, 1:] == ids_BN[:, :-1]) & real_BN[:, 1:]
    return jnp.sum(real_BN, axis=1) + jnp.sum(again_BN, axis=1) <= jnp.sum(frames_BT, axis=1)


def ctc_loss(logits_BTV: Array, frames_BT: Array, ids_BN: Array, real_BN: Array, blank_id: int) -> Array:
    """[B] float32 of logits [B, T, V], their real frames, and texts [B, N] that stand in them, whose real ids come first.

    The forward algorithm (Graves 2006, equations 6 to 8) over S = 2N + 1 places, the letters with blanks between and around
    them. The likeliest place of a frame is taken for 1 and what it was is summed up apart: without that numbers grow with the
    sound, and of a float32 of 100,000, with two digits behind the point, gradients are rounded anew in each of its frames
    (optax's `ctc_loss` and PyTorch's are off there; tests/objectives/test_ctc.py has the figures).
    """
    log_p_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    (B, N), V = ids_BN.shape, log_p_BTV.shape[-1]
    places_BS = jnp.full((B, 2 * N + 1), blank_id, ids_BN.dtype).at[:, 1::2].set(ids_BN)
    length_B = jnp.sum(real_BN, axis=1)
    there_BS = jnp.arange(2 * N + 1)[None] <= 2 * length_B[:, None]
    one_hot_BSV = jax.nn.one_hot(places_BS, V)
    log_p_TBS = jnp.einsum("btv,bsv->tbs", log_p_BTV, one_hot_BSV, precision=jax.lax.Precision.HIGHEST)
    log_p_TBS = jnp.where(there_BS[None], log_p_TBS, NEVER)
    # From a letter to the next without the blank between them, unless they are the same.
    leaps_BS = jnp.pad(places_BS[:, 2:] != places_BS[:, :-2], ((0, 0), (2, 0)))

    def frame(before: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (alpha_BS, whole_B), (log_p_BS, real_B) = before, now
        one_BS, two_BS = (jnp.pad(alpha_BS, ((0, 0), (n, 0)), constant_values=NEVER)[:, :-n] for n in (1, 2))
        ways_BS3 = jnp.stack([alpha_BS, one_BS, jnp.where(leaps_BS, two_BS, NEVER)], axis=-1)
        new_BS = jax.nn.logsumexp(ways_BS3, axis=-1) + log_p_BS
        most_B = jax.lax.stop_gradient(jnp.max(new_BS, axis=1))
        new_BS, most_B = jnp.where(real_B[:, None], new_BS - most_B[:, None], alpha_BS), jnp.where(real_B, most_B, 0.0)
        return (new_BS, whole_B + most_B), None

    # Before the first frame there is a blank that nobody says.
    first = jnp.full((B, 2 * N + 1), NEVER).at[:, 0].set(0.0), jnp.zeros(B)
    (alpha_BS, whole_B), _ = jax.lax.scan(frame, first, (log_p_TBS, frames_BT.T))
    last_BS = jnp.arange(2 * N + 1)[None] >= jnp.maximum(2 * length_B - 1, 0)[:, None]
    return -(whole_B + jax.nn.logsumexp(jnp.where(last_BS & there_BS, alpha_BS, NEVER), axis=1))
