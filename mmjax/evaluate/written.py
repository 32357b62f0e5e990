"""Texts that a decoder writes of each example, held against those that people wrote: what all such evaluators share."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Params
from mmjax.data.strings import strings
from mmjax.evaluate.evaluation import Evaluation
from mmjax.evaluate.prompts import context_of, prompts
from mmjax.evaluate.texts.scores import SCORES, check_scores
from mmjax.generate import Rules, Settings, decode
from mmjax.generate.stops import tables
from mmjax.models.encoders.text import slots_before
from mmjax.models.forward import spliced_tokens
from mmjax.parallel.multihost import is_main

logger = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Written:
    """The fields of an evaluator that writes a text of each example and scores it. Examples without a reference do not count.

    Beside the scores it gives `tokens`, the mean length of a text, its end included, and `cut`, the share of texts that came to
    no end within `settings.max_new_tokens`.

    Attributes:
      decoder: the decoder that writes.
      text: the modality that it writes.
      prompt: the batch key of token ids that it goes on with, a question for instance, without their end; "" for the first
        token alone.
      references: the batch key of what people wrote, a column of `Strings`.
      scores: names of `evaluate.texts.scores.SCORES`.
      settings: how texts are written.
      share_in_training: of the data, asked while training, where writing is slow: so many of its batches, evenly spaced, one
        at least. A finished run, and `mmjax evaluate`, ask all.
      samples: so many of the texts are logged, with their references.
      data: the dataset.

    Raises:
      UserError: an unknown score or one whose package is not installed, no such decoder or one that writes no such text, data
        without the keys, a prompt that leaves no room for `settings.max_new_tokens`, or no example with a reference.
    """

    decoder: str = "caption"
    text: str = "text"
    prompt: str = ""
    references: str = "references"
    scores: tuple[str, ...] = ("bleu", "rouge_l", "cider_d")
    settings: Settings = dataclasses.field(default_factory=Settings)
    share_in_training: float = setting(above=0, most=1, default=1.0)
    samples: int = setting(least=0, default=3)
    data: str = "validation"

    def __post_init__(self) -> None:
        check_scores(self.scores)
        if (number := self.settings.num_return_sequences) > 1:
            raise UserError(f"settings.num_return_sequences={number}: one text an example is scored")

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        for name in self.scores:
            SCORES[name].check()
        rows = self.write(evaluation, params)
        references, decoded = strings(rows["references"]), evaluation.tokenizer(self._key(), self.text).decode
        kept = [n for n, own in enumerate(references) if own]
        if not kept:
            raise UserError(f"data={self.data!r} has no example with a text in {self.references!r}: scores need at least one")
        found: list[dict[str, Any]] = []
        for n in kept:
            asked = {"prompt": decoded(rows["prompt"][n][rows["prompt_mask"][n]])} if self.prompt else {}
            text = decoded(rows["ids"][n][: rows["lengths"][n]])
            rest = {"references": list(references[n]), "log_likelihood": float(rows["scores"][n])}
            found.append({"index": int(rows["index"][n]), **asked, "text": text, **rest})
        evaluation.keep(found)
        show(self._key(), self.data, found[: self.samples])
        metrics: dict[str, float] = {}
        for name in self.scores:
            metrics |= SCORES[name]([one["text"] for one in found], [one["references"] for one in found])
        return metrics | {"tokens": float(rows["lengths"][kept].mean()), "cut": float(1 - rows["ended"][kept].mean())}

    def write(self, evaluation: Evaluation, params: Params) -> dict[str, np.ndarray]:
        """What is written of each example, as `generate.Texts` has it: `ids` [N, max_new_tokens] int32, `lengths` [N] int32,
        `scores` [N] float32 and `ended` [N] bool; and its `index`, `references`, `prompt` and `prompt_mask`."""
        tokenizer = evaluation.tokenizer(self._key(), self.text)
        opening, eos, pad = tokenizer.opening, tokenizer.eos_id, tokenizer.pad_id
        ends = self.settings.eos_token_id or (eos,)

        def write(forward: Any, batch: Batch) -> dict[str, Array]:
            check_references(batch, self.references, self.text, self.data)
            context = context_of(forward, self.decoder, self.text, batch)
            start = forward.spec(f"decoders.{self.decoder}").start_token
            ids_BT, mask_BT = prompts(batch, self.prompt, opening, eos, pad, start)
            found = self._checked(forward, context, ids_BT, mask_BT)
            size = forward.spec(f"decoders.{self.decoder}").vocab_size
            rules = Rules(self.settings, ends, pad, tables(self.settings.stop_strings, tokenizer, size))
            texts = decode(forward.model, forward.params, self.decoder, context, ids_BT, mask_BT, rules, batch["index"])
            within_BN = jnp.arange(texts.ids.shape[1])[None] < texts.lengths[:, None]
            ended_B = jnp.any(within_BN & jnp.isin(texts.ids, jnp.asarray(ends, jnp.int32)), axis=1)
            ended_B |= texts.lengths < texts.ids.shape[1]  # at a stop string
            written = {"ids": texts.ids, "lengths": texts.lengths, "scores": texts.scores, "ended": ended_B}
            asked = {"index": batch["index"], "references": batch[self.references], "prompt": ids_BT, "prompt_mask": mask_BT}
            return {**written, **asked, **found}

        needs = (self.prompt, f"{self.prompt}_mask") if self.prompt else ()
        rows: dict[str, np.ndarray] = evaluation.rows(self._key(), self.data, params, write, needs, self.share_in_training)
        if "places" in rows and (wrong := np.flatnonzero((rows["places"] != rows["wanted"]) & (rows["places"] != 0))).size:
            n = int(wrong[0])
            raise UserError(
                f"prompt={self.prompt!r}: record {rows['index'][n]} of data.{self.data} holds {rows['places'][n]} places, and "
                f"the context has {rows['wanted'][n]} tokens to stand there"
            )
        return rows

    def _checked(self, forward: Any, context: Batch, ids_BT: Array, mask_BT: Array) -> dict[str, Array]:
        """Hold prompts against the decoder's length; and, of one that has its context in the text, the places for that."""
        spec, new = forward.spec(f"decoders.{self.decoder}"), self.settings.max_new_tokens
        before = slots_before(forward.params[f"decoders_{self.decoder}"])
        if ids_BT.shape[1] + new + before > spec.max_length:
            raise UserError(
                f"settings.max_new_tokens={new} and a prompt of {ids_BT.shape[1]} tokens do not fit into "
                f"model.decoders.{self.decoder}.max_length={spec.max_length}"
                + f", of which {before} are virtual tokens or a prefix"
                * bool(before)
            )
        if not hasattr(spec, "place") or not context:
            return {}
        wanted = spliced_tokens(forward.model, forward.params, context, self.decoder)
        places_B = jnp.sum(((ids_BT == spec.place) & mask_BT).astype(jnp.int32), axis=1)
        return {"places": places_B, "wanted": jnp.full_like(places_B, wanted)}

    def _key(self) -> str:
        """What this evaluation is called in what is said, and where its program is kept."""
        return type(self).__name__.lower()


def check_references(batch: Batch, references: str, text: str, data: str) -> None:
    """Raises UserError where data has no column of `Strings` under the key `references`, for texts of `text` to be held
    against."""
    if references not in batch:
        raise UserError(
            f"data={data!r} has no {references!r}, which texts are held against: give the data columns={{{references!r}: "
            f"Strings(of={text!r})}}, or Strings() where records have it; it has {', '.join(batch)}"
        )
    if batch[references].dtype != jnp.uint8 or batch[references].ndim != 3:
        raise UserError(f"references={references!r} is no column of Strings in data.{data}")


def show(who: str, data: str, found: Sequence[dict[str, Any]]) -> None:
    """Log some texts."""
    if not is_main():
        return
    for one in found:
        asked = f" after {one['prompt']!r}" if "prompt" in one else ""
        said = f"{one['text']!r}; people: {', '.join(map(repr, one['references']))}"
        logger.info("%s of data.%s, record %d%s: %s", who, data, one["index"], asked, said)
