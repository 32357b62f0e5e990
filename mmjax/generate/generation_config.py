"""What `generation_config.json` says of how a checkpoint writes, as settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.core import strict_json
from mmjax.core.errors import UserError
from mmjax.generate.settings import Settings

# Of Whisper: how a sound is gone through window by window, where the file says it (`predict.sequential.Manner`).
MANNERS = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold", "condition_on_prev_tokens")
# What says nothing of how a text is written here: ids that the tokenizer has, whence the file is, what `generate` returns, and
# how it is computed.
SILENT = (
    *("bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "use_cache", "return_dict_in_generate"),
    *("output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_legacy_cache", "cache_config"),
    # Of Whisper: the numbers of its tokens, which the tokenizer writes before a text, and of heads that time words.
    *("is_multilingual", "lang_to_id", "task_to_id", "no_timestamps_token_id", "prev_sot_token_id", "alignment_heads"),
    *("max_initial_timestamp_index", "median_filter_width", "return_timestamps", *MANNERS),
    *("cache_implementation", "disable_compile", "compile_config", "low_memory", "token_healing"),
)
# Values with which a setting that there is not here changes nothing.
NEUTRAL: dict[str, Any] = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "guidance_scale": 1.0,
}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings by name, what else the file asks for and is not done); both {} without a file.

    Raises:
      UserError: a file that is no JSON object.
    """
    return settings(said(folder))


def said(folder: Path) -> dict[str, Any]:
    """All that the file holds; {} without one. Raises `UserError` for a file that is no JSON object."""
    file = folder / "generation_config.json"
    try:
        found = strict_json.read(file)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{file}: it holds {type(found).__name__}, not an object")
    return found


def settings(file: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of what a file says. `max_length` counts the prompt, and is no setting here; 20 is what nobody chose."""
    known = {field.name for field in dataclasses.fields(Settings)} - {"seed"}
    own = {name: value for name, value in file.items() if name in known and value is not None}
    if not own.get("do_sample") and own.get("temperature") == 0:  # which is how some say that nothing is drawn
        del own["temperature"]
    rest = {
        name: value
        for name, value in file.items()
        if name not in (*known, *SILENT)
        and not name.startswith("_")
        and value is not None
        and NEUTRAL.get(name) != value
        and (name, value) != ("max_length", 20)
    }
    return own, rest
