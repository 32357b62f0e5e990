"""HuggingFace's feature extractors of sounds, and the encoders here that do what they do: a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data import Audio
from mmjax.models.encoders import AudioTransformer, SpectrogramViT, WaveformTransformer
from mmjax.nn.spectrogram import Fbank, LogMel

HIGHEST = 8000.0  # Hz, which no field of Whisper's says
SECONDS = 30.0  # of a sound that is read where nothing says how long one is
Said = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """One of HuggingFace's, and the encoder that has it.

    Attributes:
      kind: its class.
      encoder, front: the types of the encoder and of its spectrogram; None for one that reads waveforms.
      silent: its settings where a file says none.
      wanted: encoder -> the settings that are no others, as the encoder has them.
      beside: encoder -> the settings that it holds and config.json does not say (`family.BESIDE`).
      take: encoder, such settings -> the encoder with them.
      seconds: encoder, settings -> the length of a row.
      check: column, encoder: raises `UserError` for what the class cannot do, however the encoder is trained.
      says: column, encoder -> what is written of it, beside `wanted`, `beside` and `ALWAYS`; raises `UserError` for what the
        class cannot do.
    """

    kind: str
    encoder: type[Any]
    front: type | None
    silent: Said
    wanted: Callable[[Any], dict[str, Any]]
    beside: Callable[[Any], dict[str, Any]]
    take: Callable[[Any, Said], Any]
    seconds: Callable[[Any, Said], Any]
    check: Callable[[Audio, Any], Any]
    says: Callable[[Audio, Any], dict[str, Any]]

    def reads(self, encoder: Any) -> bool:
        """Whether it goes with this encoder."""
        return type(encoder) is self.encoder and (self.front is None or type(encoder.spectrogram) is self.front)

    @property
    def part(self) -> str:
        """What of a model has its settings, for complaints."""
        return "encoder" if self.front is None else "spectrogram"


ALWAYS = {"padding_value": 0.0, "padding_side": "right"}


def _whisper(encoder: Any) -> dict[str, Any]:
    front = encoder.spectrogram
    said = {"feature_size": front.mels, "sampling_rate": front.rate, "hop_length": front.hop, "n_fft": front.n_fft}
    return {**said, "padding_value": 0.0, "dither": 0.0}


def _check_whisper(column: Audio, encoder: Any) -> None:
    front = encoder.spectrogram
    if (front.fmin, front.fmax) != (0.0, HIGHEST):
        raise UserError(f"spectrogram: fmin={front.fmin:g}, fmax={front.fmax:g}; HuggingFace's extractor has 0 and {HIGHEST:g}")
    if column.seconds != int(column.seconds):
        raise UserError(f"columns.audio.seconds={column.seconds:g}: HuggingFace's extractor has whole seconds")


def tokens_of(column: Audio, encoder: AudioTransformer) -> int:
    """How many tokens a Whisper makes of a row."""
    return -(-(column.samples // encoder.spectrogram.hop) // 2)


def _whisper_says(column: Audio, encoder: Any) -> dict[str, Any]:
    _check_whisper(column, encoder)
    if (tokens := tokens_of(column, encoder)) != encoder.max_length:
        raise UserError(
            f"columns.audio.seconds={column.seconds:g} are {tokens} tokens, and HuggingFace's class reads exactly "
            f"encoders.audio.max_length={encoder.max_length}: train with max_length={tokens}, "
            "and of other weights with init_fresh=('encoders_audio/fixed_position/table',)"
        )
    return {"chunk_length": int(column.seconds), "return_attention_mask": False}


def _kaldi(encoder: Any) -> dict[str, Any]:
    front = encoder.spectrogram
    return {"num_mel_bins": front.mels, "max_length": front.length, "padding_value": 0.0, "feature_size": 1}


def _kaldi_beside(encoder: Any) -> dict[str, Any]:
    front = encoder.spectrogram
    return {"sampling_rate": front.rate, "mean": front.mean, "std": front.deviation}


def _kaldi_takes(encoder: Any, said: Said) -> Any:
    rate = said["sampling_rate"]
    settings = {"rate": rate, "fmax": float(rate // 2), "mean": said["mean"], "deviation": said["std"]}
    return encoder.copy(spectrogram=dataclasses.replace(encoder.spectrogram, **settings))


def _whole(encoder: Any) -> int:
    """How many samples an AST's features are made of."""
    front = encoder.spectrogram
    return (front.length - 1) * front.hop + front.window


def _kaldi_says(column: Audio, encoder: Any) -> dict[str, Any]:
    front, own = encoder.spectrogram, Fbank()
    names = ("window", "n_fft", "hop", "fmin", "preemphasis")
    other = [f"{name}={getattr(front, name):g}" for name in names if getattr(front, name) != getattr(own, name)]
    if other or front.fmax != front.rate // 2:
        said = other[0] if other else f"fmax={front.fmax:g}"
        right = getattr(own, said.partition("=")[0]) if other else front.rate // 2
        raise UserError(f"spectrogram: {said}; HuggingFace's extractor has {right:g}")
    if column.samples < _whole(encoder):
        raise UserError(
            f"columns.audio.seconds={column.seconds:g}: HuggingFace's class reads max_length={front.length} frames, "
            f"{_whole(encoder) / front.rate:g} s; train with as many seconds, or with a smaller max_length"
        )
    return {"do_normalize": True, "return_attention_mask": False}


def _waves(encoder: Any) -> dict[str, Any]:
    return {"feature_size": 1, "padding_value": 0.0}


def _waves_say(column: Audio, encoder: Any) -> dict[str, Any]:
    # With a norm over time HuggingFace's class was not trained to be told what is padding.
    return {"return_attention_mask": encoder.extract_norm == "layer"}


EXTRACTORS = (
    Extractor(
        "WhisperFeatureExtractor",
        AudioTransformer,
        LogMel,
        {"feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "chunk_length": 30},
        _whisper,
        lambda encoder: {},
        lambda encoder, said: encoder,
        lambda encoder, said: said["chunk_length"],
        _check_whisper,
        _whisper_says,
    ),
    Extractor(
        "ASTFeatureExtractor",
        SpectrogramViT,
        Fbank,
        {"num_mel_bins": 128, "max_length": 1024, "sampling_rate": 16000, "mean": -4.2677393, "std": 4.5689974},
        _kaldi,
        _kaldi_beside,
        _kaldi_takes,
        lambda encoder, said: _whole(encoder) / encoder.spectrogram.rate,
        _kaldi_says,
        _kaldi_says,
    ),
    Extractor(
        "Wav2Vec2FeatureExtractor",
        WaveformTransformer,
        None,
        {"sampling_rate": 16000, "do_normalize": True},
        _waves,
        lambda encoder: {"sampling_rate": encoder.rate, "do_normalize": encoder.normalise},
        lambda encoder, said: encoder.copy(rate=said["sampling_rate"], normalise=said["do_normalize"]),
        lambda encoder, said: SECONDS,
        _waves_say,
        _waves_say,
    ),
)


def extractor_of(encoder: Any) -> Extractor | None:
    """The one that goes with an encoder; None where there is none."""
    return next((one for one in EXTRACTORS if one.reads(encoder)), None)


def rate_of(encoder: Any) -> int:
    """Of the waveforms that an encoder reads, in Hz."""
    rate: int = encoder.rate if isinstance(encoder, WaveformTransformer) else encoder.spectrogram.rate
    return rate
