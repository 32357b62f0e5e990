"""Classification by a decoder of texts: the candidate that it would most likely write."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Params
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.evaluate.prompts import begun, context_of
from mmjax.evaluate.zero_shot import label_ranks
from mmjax.objectives.class_prompts import by_name
from mmjax.objectives.losses import cross_entropy


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How often the likeliest of some given texts is the right one (Li 2022, section 5.4, ranks answers so).

    A candidate is as likely as its tokens are after the prompt, its end among them. It gives `accuracy`, with more than 5
    candidates `top5_accuracy`, `mean_reciprocal_rank`, and `log_loss` of the candidates' shares, in nats. Of equally likely
    ones the first is taken. Records without a label do not count. A pass decodes each example once for each candidate.

    Attributes:
      candidates: texts by label; () for the names of the data's classes.
      template: makes the text of a candidate, with `{}` where it goes.
      per_token: compare the means over a candidate's tokens, which does not favour short ones, instead of the sums.
      decoder: the decoder that writes.
      text: the modality that it writes.
      prompt: the batch key of token ids that a candidate follows, without their end; "" for the first token alone.
      label: the batch key of the labels.
      data: the dataset.

    Raises:
      UserError: a template without `{}`, fewer than two candidates, one that is cut, data without labels, a label that no
        candidate stands for, or a decoder that writes no such text.
    """

    candidates: tuple[str, ...] = ()
    template: str = "{}"
    per_token: bool = False
    decoder: str = "caption"
    text: str = "text"
    prompt: str = ""
    label: str = "label"
    data: str = "validation"

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise UserError(f"template={self.template!r} lacks the {{}} where the candidate goes")
        if len(set(self.candidates)) < len(self.candidates):
            raise UserError(f"candidates={self.candidates}: name each once")

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        own = class_names(evaluation.dataset(self.data), self.label)
        names = self.candidates or own
        if len(names) < 2:
            raise UserError(f"candidates={self.candidates}, and data={self.data!r} has classes {own}: give two or more")
        by_name(np.zeros(0, np.int32), own, self.candidates, self.data)  # refused before anything is scored
        rows = self._scores(evaluation, params, [self.template.replace("{}", name) for name in names])
        score_NK, label_N, index_N = (row[rows["label"] >= 0] for row in (rows["score"], rows["label"], rows["index"]))
        if len(label_N) == 0:
            raise UserError(f"data={self.data!r} has no labelled record (all labels < 0): a ranking needs at least one")
        label_N = by_name(label_N, own, self.candidates, self.data)
        if label_N.max() >= len(names):
            raise UserError(f"data={self.data!r} has label {label_N.max()}, but there are {len(names)} candidates")
        rank_N, log_NK = label_ranks(score_NK, label_N), score_NK.astype(np.float64)
        log_NK = log_NK - np.logaddexp.reduce(log_NK, axis=1, keepdims=True)
        evaluation.keep(
            {"index": int(index), "label": names[label], "predicted": names[log.argmax()], "score": float(np.exp(log.max()))}
            for index, label, log in zip(index_N, label_N, log_NK, strict=True)
        )
        metrics = {"accuracy": np.mean(rank_N < 1)}
        if len(names) > 5:
            metrics["top5_accuracy"] = np.mean(rank_N < 5)
        metrics["mean_reciprocal_rank"] = np.mean(1.0 / (rank_N + 1))
        metrics["log_loss"] = -np.mean(np.take_along_axis(log_NK, label_N[:, None], axis=1))
        return {name: float(value) for name, value in metrics.items()}

    def _scores(self, evaluation: Evaluation, params: Params, texts: list[str]) -> dict[str, np.ndarray]:
        """`score` [N, K] float32, the log-likelihood of each candidate, `label` [N] and `index` [N]."""
        tokenizer = evaluation.tokenizer("ranking", self.text)
        opening, eos = tokenizer.opening, tokenizer.eos_id

        def score(forward: Any, batch: Batch) -> dict[str, Array]:
            looks = context_of(forward, self.decoder, self.text, batch)
            names = forward.spec(f"decoders.{self.decoder}").context if looks else ()
            context = {name: forward.tokens(name) for name in names}
            start = forward.spec(f"decoders.{self.decoder}").start_token
            id_KS, count_K = self._tokens(evaluation, texts, opening if start is None else ())
            ids_BP, begin_B1 = begun(batch, self.prompt, opening, eos, start)

            def of_one(candidate: tuple[Array, Array]) -> Array:
                """[B] float32"""
                id_S, count = candidate
                place_1T = jnp.arange(ids_BP.shape[1] + id_S.shape[0])[None]
                prompt_BT = jnp.pad(ids_BP, ((0, 0), (0, id_S.shape[0])))
                ids_BT = jnp.where(place_1T < begin_B1, prompt_BT, id_S[jnp.clip(place_1T - begin_B1, 0, id_S.shape[0] - 1)])
                real_BT = place_1T < begin_B1 + count
                inputs = {self.text: ids_BT, f"{self.text}_mask": real_BT}
                logits_BTV = forward.with_().decode(self.decoder, inputs, context or None, key="ranking")
                loss_BT = cross_entropy(logits_BTV, jnp.roll(ids_BT, -1, axis=1))
                counts_BT = (place_1T + 1 >= begin_B1) & (place_1T + 1 < begin_B1 + count)
                total_B = -jnp.sum(jnp.where(counts_BT, loss_BT, 0.0), axis=1)
                return total_B / count.astype(jnp.float32) if self.per_token else total_B

            score_KB = jax.lax.map(of_one, (jnp.asarray(id_KS), jnp.asarray(count_K)))
            return {"score": score_KB.T, "label": batch[self.label], "index": batch["index"]}

        needs = (self.label, *((self.prompt, f"{self.prompt}_mask") if self.prompt else ()))
        rows: dict[str, np.ndarray] = evaluation.rows("ranking", self.data, params, score, needs)
        return rows

    def _tokens(self, evaluation: Evaluation, texts: list[str], opening: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """([K, S] int32, [K] int32): the ids of each candidate without those before every text, and how many they are."""
        tokenizer, length = evaluation.tokenizer("ranking", self.text), evaluation.length(self.text)
        found = tokenizer.encode(texts, length)
        for text, cut in zip(texts, found.get("truncated", np.zeros(len(texts), bool)), strict=True):
            if cut:
                raise UserError(f"candidate {text!r} is longer than {length} tokens")
        rows = [ids[mask] for ids, mask in zip(found["ids"], found["mask"], strict=True)]
        first = len(opening)
        rows = [row[first:] if tuple(row[:first]) == opening else row for row in rows]
        id_KS = np.full((len(rows), max(map(len, rows))), tokenizer.pad_id, np.int32)
        for own, row in zip(id_KS, rows, strict=True):
            own[: len(row)] = row
        return id_KS, np.array([len(row) for row in rows], np.int32)
