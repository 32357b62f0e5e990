"""Masked contrastive pretraining of an encoder of waveforms (Baevski 2020, arXiv:2006.11477, "wav2vec 2.0", section 3)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.random import example_uniform, fold_name
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives.losses import EXCLUDED, counted, valid_rows

LEAST = 1e-8  # of a length that is divided by


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedContrastive:
    """Tell what a hidden frame of a sound is from what other hidden frames of it are.

    What a frame is, is a choice of one entry of each codebook, drawn by its logits with Gumbel noise, of which the gradient is
    that of the softmax (Jang 2017, straight through); in evaluation the likeliest. Of each hidden frame its guess is compared
    with its own entries and with those of `negatives` other hidden frames of the same sound (equation 3): the loss is the cross
    entropy of the cosines over `temperature`, summed over hidden frames. Other frames of the very same entries are no
    negatives. To it comes `diversity` * (GV - perplexity) / GV a frame, by which all G * V entries are used (equation 4, as
    HuggingFace has it): of the mean over the batch's hidden frames. A sound with fewer than two hidden frames does not count.

    Metrics: `accuracy`, how often the frame itself is the likeliest, and `perplexity`, how many entries are in use.

    Attributes:
      modality: whose frames: its encoder hides them (`WaveformTransformer(mask_token=True)`) and gives them as they were before
        its stack (`Tokens.taps["frames"]`).
      guesses: a head of what the stack says of a frame, `TokenClassifier(classes=C, input="audio", transform=False)`.
      code_logits: a head of the entries' logits, `TokenClassifier(classes=G * V, input="audio:frames", transform=False)`.
      codes: a head `Codebook(classes=C, books=G, entries=V)`.
      mask_probability: of n real frames n * mask_probability / mask_length stretches are hidden, rounded up or down by chance,
        one at least; they may overlap: at 0.65 and 10 about half of the frames.
      mask_length: frames of a stretch; a sound of fewer hides none.
      negatives: how many.
      temperature: of the comparison.
      noise_temperature: of the choice; the paper lowers it from 2 to 0.5 over the run, here it stays.
      diversity: weight of the second term.

    Raises:
      UserError: when called: an encoder without masked frames, heads that do not fit together.
    """

    modality: str = "audio"
    guesses: str = "guesses"
    code_logits: str = "code_logits"
    codes: str = "codes"
    mask_probability: float = setting(above=0, most=1, default=0.65)
    mask_length: int = setting(least=1, default=10)
    negatives: int = setting(least=1, default=100)
    temperature: float = setting(above=0, default=0.1)
    noise_temperature: float = setting(above=0, default=2.0)
    diversity: float = setting(least=0, default=0.1)

    in_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.modality, "index")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        spec, books = forward.spec(f"encoders.{self.modality}"), forward.spec(f"heads.{self.codes}")
        if not getattr(spec, "mask_token", False) or not hasattr(spec, "frames"):
            raise UserError(
                f"model.encoders.{self.modality} hides no frames: use WaveformTransformer(mask_token=True), which is a "
                f"{type(spec).__name__} with mask_token={getattr(spec, 'mask_token', None)}"
            )
        samples, mask = batch[self.modality].shape[1], batch.get(f"{self.modality}_mask")
        length = spec.length(samples)
        count_B = jnp.full(len(batch[self.modality]), length) if mask is None else spec.frames(mask.sum(axis=1))

        def draw(name: str, *shape: int) -> Array:
            return example_uniform(fold_name(rng, name), batch["index"], shape)

        hidden_BT = self.choose(draw("rounding"), draw("starts", length), count_B)
        negatives_BTN = others(hidden_BT, draw("negatives", length, self.negatives))
        noise = None
        if forward.train:
            uniform = draw("noise", length, books.books, books.entries)
            noise = -jnp.log(-jnp.log(jnp.clip(uniform, 1e-20, 1 - 2**-24)))
        return self.compare(forward, hidden_BT, negatives_BTN, noise)

    def choose(self, rounding_B: Array, starts_BT: Array, count_B: Array) -> Array:
        """[B, T] bool: which frames are hidden, by these draws; `count_B` of each row are real."""
        length, room_B = starts_BT.shape[1], count_B - (self.mask_length - 1)
        wanted_B = jnp.floor(self.mask_probability * count_B.astype(jnp.float32) / self.mask_length + rounding_B)
        wanted_B = jnp.clip(wanted_B.astype(jnp.int32), 1, jnp.maximum(room_B, 1))
        may_BT = jnp.arange(length)[None] < room_B[:, None]
        rank_BT = jnp.argsort(jnp.argsort(jnp.where(may_BT, starts_BT, 2.0), axis=1), axis=1)
        first_BT = (rank_BT < wanted_B[:, None]) & may_BT
        begun_BT = jnp.cumsum(first_BT, axis=1)
        ended_BT = jnp.pad(begun_BT, ((0, 0), (self.mask_length, 0)))[:, :length]
        return begun_BT > ended_BT

    def compare(self, forward: Forward, hidden_BT: Array, negatives_BTN: Array, noise_BTGV: Array | None) -> Loss:
        """The loss where these frames are hidden, each compared with these others of its row; without noise the choice is the
        likeliest entry, and the perplexity that of the choices."""
        name, key = self.modality, f"masked_contrastive/{self.guesses}/{self.codes}"
        tokens = forward.encode(name, {f"{name}_segments": hidden_BT.astype(jnp.int32)}, key=key)
        guesses_BTC = forward.head(self.guesses, tokens, key=key)
        books: Any = forward.spec(f"heads.{self.codes}")
        logits = forward.head(self.code_logits, tokens.tapped("frames", f"{name}:frames"), key=key)
        if logits.shape[-1] != books.books * books.entries or guesses_BTC.shape[-1] != books.classes:
            raise UserError(
                f"model.heads.{self.code_logits}.classes={logits.shape[-1]} and {self.guesses}.classes="
                f"{guesses_BTC.shape[-1]}: {self.codes} has books={books.books} of entries={books.entries} and "
                f"classes={books.classes}; use {books.books * books.entries} and {books.classes}"
            )
        logits_BTGV = logits.astype(jnp.float32).reshape(*hidden_BT.shape, books.books, books.entries)
        weights_BTGV, share_BTGV, chosen_BTG = self._choice(logits_BTGV, noise_BTGV)
        weighted = dataclasses.replace(tokens, embeddings=weights_BTGV.reshape(*hidden_BT.shape, -1), taps={})
        codes_BTC = forward.head(self.codes, weighted, key=key)
        alike_BTN = (_others_of(chosen_BTG, negatives_BTN) == chosen_BTG[:, :, None]).all(axis=-1)
        cosine_BTT = jnp.einsum("btc,bsc->bts", _unit(guesses_BTC), _unit(codes_BTC), precision="highest") / self.temperature
        own_BT1 = jnp.diagonal(cosine_BTT, axis1=1, axis2=2)[..., None]
        other_BTN = jnp.where(alike_BTN, EXCLUDED, jnp.take_along_axis(cosine_BTT, negatives_BTN, axis=2))
        all_BTN = jnp.concatenate([own_BT1, other_BTN], axis=-1)
        counts_BT = hidden_BT & valid_rows(forward.batch, len(hidden_BT), self.modality)[:, None]
        counts_BT = counts_BT & (hidden_BT.sum(axis=1, keepdims=True) > 1)
        total, count = counted(jax.nn.logsumexp(all_BTN, axis=-1) - all_BTN[..., 0], counts_BT)
        perplexity = _perplexity(share_BTGV, counts_BT)
        size = books.books * books.entries
        total = total + self.diversity * (size - perplexity) / size * count
        accuracy = counted((all_BTN[..., :1] > other_BTN).all(axis=-1), counts_BT)
        return Loss(total, count, {"accuracy": accuracy, "perplexity": (perplexity * count, count)})

    def _choice(self, logits_BTGV: Array, noise_BTGV: Array | None) -> tuple[Array, Array, Array]:
        """The weight of each entry, 1 for the chosen one; the shares of which the perplexity is taken; which is chosen."""
        entries = logits_BTGV.shape[-1]
        if noise_BTGV is None:
            chosen_BTG = jnp.argmax(logits_BTGV, axis=-1)
            hard_BTGV = jax.nn.one_hot(chosen_BTG, entries)
            return hard_BTGV, hard_BTGV, chosen_BTG
        soft_BTGV = jax.nn.softmax((logits_BTGV + noise_BTGV) / self.noise_temperature, axis=-1)
        chosen_BTG = jnp.argmax(soft_BTGV, axis=-1)
        weights_BTGV = jax.nn.one_hot(chosen_BTG, entries) + soft_BTGV - jax.lax.stop_gradient(soft_BTGV)
        return weights_BTGV, jax.nn.softmax(logits_BTGV, axis=-1), chosen_BTG


def others(hidden_BT: Array, uniform_BTN: Array) -> Array:
    """[B, T, N] int32: for each hidden frame the places of others of its row, drawn evenly; of a row without others, any."""
    count_B11 = hidden_BT.sum(axis=1)[:, None, None]
    order_BT = jnp.argsort(~hidden_BT, axis=1, stable=True)
    number_BT1 = (jnp.cumsum(hidden_BT, axis=1) - 1)[..., None]
    drawn_BTN = jnp.floor(uniform_BTN * (count_B11 - 1).astype(jnp.float32)).astype(jnp.int32)
    drawn_BTN = jnp.clip(drawn_BTN, 0, jnp.maximum(count_B11 - 2, 0))
    drawn_BTN = jnp.clip(drawn_BTN + (drawn_BTN >= number_BT1).astype(jnp.int32), 0, hidden_BT.shape[1] - 1)
    return jax.vmap(lambda order_T, drawn_TN: order_T[drawn_TN])(order_BT, drawn_BTN).astype(jnp.int32)


def _others_of(x_BTG: Array, places_BTN: Array) -> Array:
    """[B, T, N, G]: what stands at places of the same row."""
    found: Array = jax.vmap(lambda x_TG, places_TN: x_TG[places_TN])(x_BTG, places_BTN)
    return found


def _unit(x_BTC: Array) -> Array:
    """Of length 1. The root's derivative at 0 is infinite, so the square is held from it."""
    square_BT1 = jnp.sum(jnp.square(x_BTC.astype(jnp.float32)), axis=-1, keepdims=True)
    return x_BTC / jnp.sqrt(jnp.maximum(square_BT1, LEAST**2))


def _perplexity(share_BTGV: Array, counts_BT: Array) -> Array:
    """[]: e to the entropy of the mean share of each book's entries, summed over books."""
    weight_BT = counts_BT.astype(jnp.float32)
    mean_GV = jnp.einsum("btgv,bt->gv", share_BTGV, weight_BT, precision="highest") / jnp.maximum(weight_BT.sum(), 1.0)
    logs_GV = jnp.log(jnp.where(mean_GV > 0, mean_GV, 1.0))
    return jnp.exp(-(mean_GV * logs_GV).sum(axis=-1)).sum()
