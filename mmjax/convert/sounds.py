"""The files of HuggingFace's feature extractors of sounds, both ways: their settings as our column, and ours as their settings.

What they compute is done here on the device, by the encoder; a file's numbers must be those of it (`extractors`). Some of them
config.json does not say: these the encoder takes from the extractor's file (`with_extractor`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmjax.convert.extractors import ALWAYS, Extractor, Said, extractor_of, rate_of, tokens_of
from mmjax.convert.processor import FILE, NESTED_FILE
from mmjax.core import strict_json
from mmjax.core.errors import UserError, within
from mmjax.core.types import Params
from mmjax.data import Audio
from mmjax.models import Multimodal
from mmjax.models.encoders import AudioTransformer
from mmjax.nn.spectrogram import Fbank, LogMel


def with_extractor(folder: Path, model: Multimodal) -> Multimodal:
    """The model of a HuggingFace folder with what its extractor's file says of its encoder, and config.json does not.

    Raises:
      UserError: a setting of another type, or one that the encoder cannot have.
    """
    encoder, found = model.encoders.get("audio"), _read(folder)
    own = extractor_of(encoder)
    if own is None or found is None or not own.beside(encoder):
        return model
    file, said = found
    if said.get("feature_extractor_type", own.kind) != own.kind:
        return model  # `sound_column` says it to whoever wants to hear
    settings = _settings(file, own, {**own.silent, **said}, own.beside(encoder))
    with within(str(file)):
        return model.copy(encoders={**model.encoders, "audio": own.take(encoder, settings)})


def sound_column(folder: Path, model: Multimodal) -> Audio | None:
    """The column of the sounds that a HuggingFace folder's model reads; None where the folder says nothing of sounds.

    Raises:
      UserError: settings that the encoder does not have, or another extractor.
    """
    encoder: Any = model.encoders.get("audio")
    found = _read(folder)
    if encoder is None or found is None:
        return None
    file, said = found
    own = extractor_of(encoder)
    kind = said.get("feature_extractor_type", own.kind if own else None)
    if own is None or kind != own.kind:
        right = f"; use {own.kind}" if own else ""
        raise UserError(f"{file}: feature_extractor_type={kind!r} is not supported for this model{right}")
    for field, value in own.wanted(encoder).items():
        if (there := said.get(field, own.silent.get(field, value))) != value:
            raise UserError(f"{file}: {field}={there!r}, and the model's {own.part} has {value!r}: no other is done here")
    seconds = own.seconds(encoder, {**own.silent, **said})
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
        raise UserError(f"{file}: chunk_length={seconds!r} is no number of seconds")
    return Audio(rate=rate_of(encoder), seconds=float(seconds), start="first")


def as_long(model: Multimodal, params: Params, column: Any) -> tuple[Multimodal, Params]:
    """A Whisper with as many positions as the sounds have that it was trained on, of which HuggingFace's class reads no fewer.

    Args:
      column: of the sounds; None, or one that says nothing of them, leaves the model as it is.
    """
    encoder: Any = model.encoders.get("audio")
    whisper = isinstance(encoder, AudioTransformer) and isinstance(encoder.spectrogram, LogMel)
    if not isinstance(column, Audio) or not whisper or encoder.positions != "fixed":
        return model, params
    tokens = tokens_of(column, encoder)
    own = params.get("encoders_audio", {})
    if tokens >= encoder.max_length or "fixed_position" not in own:
        return model, params
    table = {"table": own["fixed_position"]["table"][:tokens]}
    shorter = model.copy(encoders={**model.encoders, "audio": encoder.copy(max_length=tokens)})
    return shorter, {**params, "encoders_audio": {**own, "fixed_position": table}}


def check_extractor(column: Audio, model: Multimodal) -> None:
    """Raises `UserError` for a column or an encoder of which no extractor of HuggingFace makes the same features."""
    _extractor(column, model).check(column, model.encoders["audio"])


def _extractor(column: Audio, model: Multimodal) -> Extractor:
    encoder: Any = model.encoders["audio"]
    own = extractor_of(encoder)
    if own is None:
        raise UserError(f"encoders.audio: no feature extractor of HuggingFace's makes what {type(encoder).__name__} reads")
    if column.rate != rate_of(encoder):
        raise UserError(f"columns.audio.rate={column.rate}: the model's {own.part} has rate={rate_of(encoder)}")
    return own


def write_extractor(folder: Path, column: Audio, model: Multimodal) -> None:
    """Write the `preprocessor_config.json` by which `transformers` makes of sounds what the model's encoder makes of them.

    Raises:
      UserError: a column or an encoder that no extractor has, and what would be right.
    """
    encoder: Any = model.encoders["audio"]
    own = _extractor(column, model)
    said = {**ALWAYS, **own.wanted(encoder), **own.beside(encoder), **own.says(column, encoder)}
    said |= {"feature_extractor_type": own.kind}
    said.pop("dither", None)
    (folder / FILE).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def _settings(file: Path, own: Extractor, said: Said, held: Said) -> dict[str, Any]:
    """What a file says of the settings that an encoder holds."""
    found = {setting: said[setting] for setting in held}
    if own.front is Fbank and said.get("do_normalize") is False:
        found |= {"mean": 0.0, "std": 0.5}  # by twice of which features are divided
    for setting, value in found.items():
        usual = own.silent[setting]
        kinds: Any = type(usual) if isinstance(usual, int) else int | float
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(usual, bool):
            raise UserError(f"{file}: {setting}={json.dumps(value)} is no value of it; by default it is {json.dumps(usual)}")
    return found


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
