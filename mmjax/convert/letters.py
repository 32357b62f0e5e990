"""The tokenizer of a class that says a letter a frame of sound (CTC), as `transformers.Wav2Vec2CTCTokenizer` reads it."""

from __future__ import annotations

import json
from pathlib import Path

from mmjax.core.errors import UserError
from mmjax.data import Tokenizer
from mmjax.models import Multimodal

HEAD = "ctc"
SPACE = "|"  # what stands for a space; transformers 5 reads no other from a file


def writes_letters(model: Multimodal) -> bool:
    """Whether a head says a letter a frame."""
    return HEAD in model.heads


def save_letters(folder: Path, tokenizer: Tokenizer) -> None:
    """Write `vocab.json` and what goes with it: `transformers` then makes of frames the texts that ours makes.

    What it makes of a text is not all that ours does: it has no normalisation, so that texts in capitals stay so.

    Raises:
      UserError: a tokenizer with tokens of several letters, or a bar among them, or without a padding token or one for what it
        does not know.
    """
    own = tokenizer.huggingface
    if tokenizer.delimiter_id is not None:
        own.save_pretrained(str(folder))
        return
    vocabulary: dict[str, int] = own.get_vocab()
    special = {own.convert_ids_to_tokens(i) for i in tokenizer.special_ids}
    if longer := sorted(token for token in vocabulary if len(token) != 1 and token not in special):
        raise UserError(f"HuggingFace's classes of CTC say letters, and the tokenizer has {longer[0]!r}: use Characters()")
    if SPACE in vocabulary and " " in vocabulary:
        raise UserError(f"HuggingFace's classes of CTC write a space as {SPACE!r}, which is a letter here: train without it")
    roles = {"pad_token": own.pad_token, "unk_token": own.unk_token}
    if missing := [name for name, token in roles.items() if token is None]:
        raise UserError(f"the tokenizer has no {missing[0]}, which HuggingFace's classes of CTC need: use Characters()")
    written = {SPACE if token == " " else token: number for token, number in vocabulary.items()}
    roles |= {
        "bos_token": own.convert_ids_to_tokens(tokenizer.bos_id),
        "eos_token": own.convert_ids_to_tokens(tokenizer.eos_id),
    }
    said = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": SPACE, "do_lower_case": False, **roles}
    for name, content in (("vocab.json", written), ("tokenizer_config.json", said)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    (folder / "tokenizer.json").unlink(missing_ok=True)  # of the weights' own, which AutoTokenizer would prefer
