"""The tokenizer that goes with an exported model: its ids where the class reads them, and files that give the run's own ids.

A run's texts are what `Tokenizer.encode` makes of them. `transformers` tokenizes by the files of the folder alone, so these are
written to do the same: with the first and last tokens that `encode` adds, no arguments but those that the class takes, and the
longest text of the model. A class that continues texts is given them without their end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from mmjax.convert.config_paths import get, put, thaw
from mmjax.convert.family import Family
from mmjax.core.errors import UserError
from mmjax.data import Tokenizer
from mmjax.models import Multimodal

# Classes that write texts: those that continue one, and those that begin anew after an image.
CONTINUE = ("GPT2LMHeadModel", "LlamaForCausalLM", "LlavaForConditionalGeneration")
GENERATE = (
    *(*CONTINUE, "BlipForConditionalGeneration", "BlipForQuestionAnswering", "WhisperForConditionalGeneration"),
    *("T5ForConditionalGeneration", "MT5ForConditionalGeneration", "BartForConditionalGeneration"),
)
LAST_BY_PADDING = ("GPT2ForSequenceClassification", "LlamaForSequenceClassification")  # read the last id that is not padding
LARGEST = 2  # an eos_token_id that CLIP's classes do not look for: they take the largest id, as files of theirs once meant


def with_ids(family: Family, model: Multimodal, architecture: str, tokenizer: Tokenizer) -> Multimodal:
    """The model whose config.json says the tokenizer's ids where this class reads them.

    Raises:
      UserError: ids with which the class would compute something else than the model does.
    """
    _check(family, model, architecture, tokenizer)
    config: dict[str, Any] = thaw(model.huggingface)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    if family.ends_with_sep:
        ids["sep_token_id"] = tokenizer.eos_id
    if family.starts_apart:
        ids["decoder_start_token_id"] = tokenizer.opening[0]
    for group in family.texts:
        for name, value in ids.items():
            place = f"{group}.{name}" if group else name
            said = get(config, place, None)
            if isinstance(said, list | tuple) and value in said:  # Llama 3's ends: of a text, of a turn
                continue
            put(config, place, value)
            if config.get(f"{group}_dict"):  # which replaces the group where a file has both
                put(config, f"{group}_dict.{name}", value)
    return model.copy(huggingface=config)


def _check(family: Family, model: Multimodal, architecture: str, tokenizer: Tokenizer) -> None:
    text = text_part(model)
    if family.pools_at_end and tokenizer.eos_id == LARGEST:
        raise UserError(
            f"the tokenizer ends a text with the id {LARGEST}, at which {architecture} looks for the largest id instead; use a "
            "tokenizer with another eos_token"
        )
    if family.model_type == "roberta" and text is not None and text.position_offset != tokenizer.pad_id + 1:
        raise UserError(
            f"{architecture} counts positions from pad_token_id={text.position_offset - 1}, and the tokenizer pads with "
            f"{tokenizer.pad_id}: encoders.text.position_offset must be {tokenizer.pad_id + 1}"
        )
    if architecture in LAST_BY_PADDING and tokenizer.pad_id == tokenizer.eos_id:
        raise UserError(
            f"{architecture} reads the last token that is not padding, and the tokenizer has no padding of its own: it pads "
            f"with {tokenizer.eos_id}, which also ends each text; give it a pad_token"
        )


def text_part(model: Multimodal) -> Any:
    """What reads or writes the text: the part with the word table."""
    parts = (*model.encoders.values(), *model.decoders.values())
    return next((part for part in parts if hasattr(part, "vocab_size")), None)


def write_generation(folder: Path, architecture: str, config: Mapping[str, Any], family: Family, tokenizer: Tokenizer) -> None:
    """generation_config.json of a class that generates: what is there, with the ids that config.json says; and those by which
    the tokenizer begins each text, where the class is told them (a Whisper of several languages would choose one itself)."""
    if architecture not in GENERATE:
        return
    group = family.texts[0] if family.texts else ""
    file = folder / "generation_config.json"
    said = json.loads(file.read_text()) if file.is_file() else {}
    if family.starts_apart:
        said["forced_decoder_ids"] = [[place, token] for place, token in enumerate(tokenizer.opening) if place]
    begins = family.starts_apart or "decoder_start_token_id" in family.fields
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", *["decoder_start_token_id"] * begins):
        value = get(config, f"{group}.{name}" if group else name, None)
        if value is not None:
            said[name] = value
    file.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def save_tokenizer(folder: Path, tokenizer: Tokenizer, family: Family, architecture: str, model: Multimodal) -> None:
    """Write a tokenizer's files so that `AutoTokenizer` gives the ids that `tokenizer.encode` gives, and padding as we pad."""
    written = _writing(tokenizer, architecture)
    written.save_pretrained(str(folder))
    part = text_part(model)
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text())
    said["model_input_names"] = list(family.reads)
    said["padding_side"] = "left" if architecture in CONTINUE else "right"
    if part is not None:
        said["model_max_length"] = part.max_length
    if said.get("pad_token") is None:
        said["pad_token"] = written.convert_ids_to_tokens(tokenizer.pad_id)
    file.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def _writing(tokenizer: Tokenizer, architecture: str) -> Any:
    """The `transformers` tokenizer that writes, by itself, what ours adds; without the end where texts are continued."""
    own = tokenizer.huggingface
    first, last = _around(tokenizer)
    wanted = (first, []) if architecture in CONTINUE else (first, last)
    if wanted == _around(None, own):
        return own
    from transformers import PreTrainedTokenizerFast

    backend = Backend.from_str(own.backend_tokenizer.to_str())
    names = {i: own.convert_ids_to_tokens(i) for i in (*first, *last)}
    begin, end = ([f"{names[i]}:0" for i in ids] for ids in wanted)
    other = [word.replace(":0", ":1") for word in end]
    backend.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A:0", *end],
        pair=[*begin, "$A:0", *end, "$B:1", *other],
        special_tokens=[(name, i) for i, name in names.items()],
    )
    kept = {name: value for name, value in own.special_tokens_map.items() if isinstance(value, str)}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **kept)
    made.chat_template = own.chat_template
    return made


def _around(tokenizer: Tokenizer | None, own: Any = None) -> tuple[list[int], list[int]]:
    """The ids before and after those of a text itself: as `encode` gives them, or as a `transformers` tokenizer does."""
    huggingface = tokenizer.huggingface if tokenizer is not None else own
    for text in ("a", "1", "."):
        alone = huggingface(text, add_special_tokens=False, verbose=False)["input_ids"]
        whole = huggingface(text, verbose=False)["input_ids"]
        for start in range(len(whole) - len(alone) + 1 if alone else 0):
            if whole[start : start + len(alone)] == alone:
                begun, ended = whole[:start], whole[start + len(alone) :]
                if tokenizer is None:
                    return begun, ended
                return [*tokenizer.begins, *begun], [*ended, *tokenizer.ends]
    return [], []
