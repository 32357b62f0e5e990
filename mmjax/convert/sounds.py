"""HuggingFace's feature extractors of sounds, both ways: their settings as our column, and ours as their settings.

What they compute is done here on the device, by the encoder's `spectrogram`; a file's numbers must be those of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmjax.convert.processor import FILE, NESTED_FILE
from mmjax.core import strict_json
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import Audio
from mmjax.models import Multimodal
from mmjax.nn.spectrogram import LogMel

KIND = "WhisperFeatureExtractor"
SAYS = {
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
}  # where a file is silent
HIGHEST = 8000.0  # Hz, which no field says


def sound_column(folder: Path, model: Multimodal) -> Audio | None:
    """The column of the sounds that a HuggingFace folder's model reads; None where the folder says nothing of sounds.

    Raises:
      UserError: settings that our spectrogram does not have, or another extractor.
    """
    encoder: Any = model.encoders.get("audio")
    found = _read(folder)
    if encoder is None or found is None:
        return None
    file, said = found
    kind = said.get("feature_extractor_type", KIND)
    if kind != KIND or not isinstance(encoder.spectrogram, LogMel):
        raise UserError(f"{file}: feature_extractor_type={kind!r} is not supported for this model; use {KIND}")
    front = encoder.spectrogram
    wanted: dict[str, Any] = {
        "feature_size": front.mels,
        "sampling_rate": front.rate,
        "hop_length": front.hop,
        "n_fft": front.n_fft,
    }
    wanted |= {"padding_value": 0.0, "dither": 0.0}
    for field, value in wanted.items():
        own = said.get(field, SAYS.get(field, value))
        if own != value:
            raise UserError(f"{file}: {field}={own!r}, and the model's spectrogram has {value!r}: no other is done here")
    seconds = said.get("chunk_length", SAYS["chunk_length"])
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
        raise UserError(f"{file}: chunk_length={seconds!r} is no number of seconds")
    return Audio(rate=front.rate, seconds=float(seconds), start="first")


def as_long(model: Multimodal, params: Params, column: Any) -> tuple[Multimodal, Params]:
    """A Whisper with as many positions as the sounds have that it was trained on, of which HuggingFace's class reads no fewer.

    Args:
      column: of the sounds; None, or one that says nothing of them, leaves the model as it is.
    """
    encoder: Any = model.encoders.get("audio")
    if (
        not isinstance(column, Audio)
        or getattr(encoder, "positions", "") != "fixed"
        or not isinstance(encoder.spectrogram, LogMel)
    ):
        return model, params
    tokens = _tokens(column, encoder)
    own = params.get("encoders_audio", {})
    if tokens >= encoder.max_length or "fixed_position" not in own:
        return model, params
    table = {"table": own["fixed_position"]["table"][:tokens]}
    shorter = model.copy(encoders={**model.encoders, "audio": encoder.copy(max_length=tokens)})
    return shorter, {**params, "encoders_audio": {**own, "fixed_position": table}}


def check_extractor(column: Audio, model: Multimodal) -> None:
    """Raises `UserError` for a column or a spectrogram of which no extractor of HuggingFace makes the same features."""
    front = model.encoders["audio"].spectrogram
    if (front.fmin, front.fmax) != (0.0, HIGHEST):
        raise UserError(f"spectrogram: fmin={front.fmin:g}, fmax={front.fmax:g}; HuggingFace's extractor has 0 and {HIGHEST:g}")
    if column.rate != front.rate:
        raise UserError(f"columns.audio.rate={column.rate}: the model's spectrogram has rate={front.rate}")
    if column.seconds != int(column.seconds):
        raise UserError(f"columns.audio.seconds={column.seconds:g}: HuggingFace's extractor has whole seconds")


def _tokens(column: Audio, encoder: Any) -> int:
    return -(-(column.samples // encoder.spectrogram.hop) // 2)


def write_extractor(folder: Path, column: Audio, model: Multimodal) -> None:
    """Write the `preprocessor_config.json` by which `transformers` makes the features that the model's encoder makes of sounds.

    Raises:
      UserError: a column or a spectrogram that no Whisper has, and what would be right.
    """
    encoder: Any = model.encoders["audio"]
    front = encoder.spectrogram
    check_extractor(column, model)
    if (tokens := _tokens(column, encoder)) != encoder.max_length:
        raise UserError(
            f"columns.audio.seconds={column.seconds:g} are {tokens} tokens, and HuggingFace's class reads exactly "
            f"encoders.audio.max_length={encoder.max_length}: train with max_length={tokens}, "
            "and of other weights with init_fresh=('encoders_audio/fixed_position/table',)"
        )
    said = {
        "feature_extractor_type": KIND,
        "feature_size": front.mels,
        "sampling_rate": front.rate,
        "hop_length": front.hop,
        "n_fft": front.n_fft,
        "chunk_length": int(column.seconds),
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": False,
    }
    (folder / FILE).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def _read(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file that says it, and what it says."""
    for name, inside in ((NESTED_FILE, "feature_extractor"), (FILE, "")):
        file = folder / name
        if file.is_file():
            found = strict_json.read(file)
            own = found.get(inside) if inside and isinstance(found, dict) else found
            if isinstance(own, dict):
                return file, own
    return None
