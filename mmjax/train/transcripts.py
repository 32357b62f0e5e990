"""What the objective `CTC` learns its letters from, held against the tokenizer that writes them."""

from __future__ import annotations

from collections.abc import Mapping

from mmjax.core.errors import UserError, within
from mmjax.data import Audio, Tokenizer
from mmjax.objectives import CTC
from mmjax.objectives.routes import named
from mmjax.train.setup import Setup


def check_transcripts(setup: Setup, heads: Mapping[str, tuple[int, ...]]) -> None:
    """Look for what would train without a complaint and not teach what is meant.

    Args:
      heads: head -> the shape of its logits.

    Raises:
      UserError: a blank that is a letter, tokens around each text that would be learned as letters, letters that are left out,
        a head of other classes than the tokenizer has tokens, or sounds of which any part may be read beside the whole text.
    """
    for name, task in setup.tasks.items():
        objective, dataset = task.objective, setup.datasets.get(task.data)
        if not isinstance(objective, CTC) or dataset is None or objective.text not in dataset.texts():
            continue
        tokenizer, _ = dataset.texts()[objective.text]
        with within(f"tasks.{name}.objective"):
            _check_tokens(objective, tokenizer)
        size = heads[objective.head][-1] if objective.head in heads else tokenizer.vocab_size
        if size != tokenizer.vocab_size:
            raise UserError(
                f"model.heads.{objective.head}.classes={size}: tasks.{name} reads a class a token of the tokenizer, which has "
                f"{tokenizer.vocab_size}; use classes={tokenizer.vocab_size}"
            )
        heard = {one for way in named(setup.experiment.model.heads[objective.head].input) for one in _modalities(setup, way)}
        for key, column in setup.experiment.data[task.data].columns.items():
            if isinstance(column, Audio) and key in heard and column.start == "random":
                raise UserError(
                    f"data.{task.data}.columns.{key}.start='random': of a sound longer than seconds={column.seconds:g} any "
                    f"part is read, and tasks.{name} holds it against the whole text; use start='first', and seconds enough"
                )


def _check_tokens(objective: CTC, tokenizer: Tokenizer) -> None:
    said = tokenizer.huggingface.convert_ids_to_tokens
    if tokenizer.huggingface.pad_token_id is None:
        raise UserError(
            f"blank_id={objective.blank_id}: the tokenizer has no padding token, which is the blank; set a pad_token in its "
            "tokenizer_config.json"
        )
    if objective.blank_id != tokenizer.pad_id:
        is_token = objective.blank_id < tokenizer.vocab_size
        own = f", and {objective.blank_id} is {said(objective.blank_id)!r}" if is_token else ""
        raise UserError(
            f"blank_id={objective.blank_id}: the blank is the tokenizer's padding token, {said(tokenizer.pad_id)!r}, which is "
            f"{tokenizer.pad_id}{own}"
        )
    special = set(tokenizer.special_ids) - {tokenizer.pad_id}
    for token in objective.special_ids:
        if token not in special:
            what = f"{said(token)!r}, a letter" if token < tokenizer.vocab_size else "no token of the tokenizer"
            raise UserError(f"special_ids={objective.special_ids}: {token} is {what}, which would be left out of each text")
    around = set(tokenizer.whole("a")) & special - {tokenizer.huggingface.unk_token_id}
    if missing := sorted(around - set(objective.special_ids)):
        tokens = " and ".join(repr(said(token)) for token in missing)
        raise UserError(
            f"special_ids={objective.special_ids}: the tokenizer writes {tokens} around each text, which would be learned as "
            f"letters; use special_ids={tuple(sorted({*objective.special_ids, *missing}))}"
        )


def _modalities(setup: Setup, way: str) -> tuple[str, ...]:
    """What an input of a head reads: an encoder, or a fusion of several."""
    first = way.partition(":")[0]
    return tuple(getattr(setup.experiment.model.fusions.get(first), "modalities", (first,)))
