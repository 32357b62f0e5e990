"""Every number that a config can set: what means nothing is refused by the name of its field, wherever it stands."""

import dataclasses
import math
import re

import pytest

from mmjax.core.config import check_ranges, default, spec_fields
from mmjax.core.errors import UserError
from mmjax.data import Data
from mmjax.data.columns import COLUMNS
from mmjax.data.packing import PACKINGS
from mmjax.data.sources import SOURCES
from mmjax.data.tokenizers import TOKENIZERS
from mmjax.data.transforms import TRANSFORMS
from mmjax.evaluate import EVALUATORS
from mmjax.models import Multimodal
from mmjax.models.decoders import DECODERS
from mmjax.models.encoders import ENCODERS
from mmjax.models.fusion import FUSIONS
from mmjax.models.heads import HEADS
from mmjax.nn.augment import AUGMENTATIONS
from mmjax.nn.spectrogram import SPECTROGRAMS
from mmjax.objectives import OBJECTIVES
from mmjax.objectives.mixing import MIXES
from mmjax.parallel.mesh import Mesh
from mmjax.train import OPTIMIZERS, AdamW, Checkpoint, Experiment, Log, Task
from mmjax.train.hooks import HOOKS
from mmjax.train.weighting import WEIGHTINGS

TABLES = (COLUMNS, SOURCES, TRANSFORMS, TOKENIZERS, EVALUATORS, DECODERS, ENCODERS, FUSIONS, HEADS, AUGMENTATIONS, OBJECTIVES)
TABLES += (OPTIMIZERS, HOOKS, WEIGHTINGS, MIXES, PACKINGS, SPECTROGRAMS)
CLASSES = sorted({cls for table in TABLES for cls in table.values()} | {Data, Mesh, Checkpoint, Log, Task, Experiment}, key=str)
GIVEN = {  # of fields that have to be given
    "at": (1,),
    "classes": 4,
    "degrees": 10.0,
    "experiment": None,
    "longest": 9,
    "mask_id": 4,
    "names": ("a", "b"),
    "objective": OBJECTIVES["causal_lm"](),
    "path": "there",
    "seconds": 1.0,
    "shortest": 8,
    "sigma": 0.1,
    "size": (8, 8),
    "vocab_size": 64,
}
# Numbers of any sign, and those that count from the end or say "all that is left" by -1.
ANY_SIGN = {
    *(
        "Class.ignore",
        "Number.mean",
        "Normalise.mean",
        "Dual.bias_init",
        "Task.weight",
        "ImageAugment.fill",
        "Fbank.mean",
        "SpecAugment.fill",
    ),
    *("VideoTransformer.take_layer", "VideoTransformer.taps"),
    *("ViT.take_layer", "ViT.taps", "AudioTransformer.taps", "TextTransformer.taps", "TextDecoder.taps", "SplicedDecoder.taps"),
    *("WaveformTransformer.taps", "SpectrogramViT.taps"),
    *(f"{source}.window" for source in ("Folder", "Manifest", "TFDS", "ArrayRecord", "Arrow", "Coco", "Parquet", "WebDataset")),
    *("Streamed.window", "Conll.word_column", "Conll.tag_column"),
}
LATER = {  # refused where data is opened, a mesh is made or the whole experiment is looked at
    *(
        f"Data.{name}"
        for name in ("batch_size", "max_length", "workers", "threads", "prefetch", "cache_mb", "bad_record_limit")
    ),
    *(f"{source}.fractions" for source in ("Folder", "Manifest", "Stamps", "ArrayRecord", "Arrow", "Coco", "Conll", "Squad")),
    *("Parquet.fractions", "WebDataset.fractions", "Streamed.fractions", "Experiment.steps"),
    *(f"Mesh.{name}" for name in ("data", "fsdp", "tensor", "sequence", "slice")),
    *(f"{cls}.rotary_scaling" for cls in ("ViT", "TextTransformer", "TextDecoder", "SplicedDecoder", "AudioTransformer")),
    *(f"{cls}.rotary_scaling" for cls in ("Cross", "SingleStream", "PixelDecoder")),
    *(f"{cls}.rotary_scaling" for cls in ("VideoTransformer", "VideoFrames", "WaveformTransformer", "SpectrogramViT")),
}


def numbers(cls) -> dict[str, type]:
    """The fields of a spec that hold numbers, and how many."""
    return {n: f for n, f in spec_fields(cls).items() if re.search(r"\b(int|float)\b", str(f.type))}


def wrong(field, number):
    """The number, as what the field holds: alone, in a tuple or in a mapping."""
    if "Mapping" in str(field.type):
        return {"*": number} if "str, float" in str(field.type) else None
    held = default(field)
    if "tuple" in str(field.type):
        return (number,) * max(len(held) if isinstance(held, tuple) else 2, 1)
    return number


def refusal(cls, field: str, value) -> str:
    given = {n: GIVEN.get(n, "x") for n, f in spec_fields(cls).items() if default(f) is dataclasses.MISSING}
    try:
        check_ranges(cls(**given | {field: value}))
    except UserError as error:
        return str(error)
    return ""


CASES = [(cls, name) for cls in CLASSES if dataclasses.is_dataclass(cls) for name in numbers(cls)]


@pytest.mark.parametrize(("cls", "name"), CASES, ids=[f"{cls.__name__}.{name}" for cls, name in CASES])
def test_what_means_nothing_is_refused_by_its_name(cls, name):
    field, which = spec_fields(cls)[name], f"{cls.__name__}.{name}"
    for number in (math.nan, math.inf, -math.inf, -1e9 if "float" in str(field.type) else -(10**9)):
        value = wrong(field, number)
        if value is None or (math.isfinite(number) and which in ANY_SIGN | LATER):
            continue
        assert name in refusal(cls, name, value), f"{which}={value} is taken without a word"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("learning_rate", -3.0, "use a finite number from 0"),
        ("warmup_steps", -5, "use a number from 0"),
        ("clip_norm", math.inf, "use a finite number from 0"),
        ("layer_decay", -1.0, "use a number above 0"),
        ("end_factor", 1.5, "use a number from 0 and up to 1"),
        ("ema", 1.0, "use a number from 0 and below 1"),
        ("accumulate", 0, "use a number from 1"),
        ("b2", math.nan, "use a number from 0 and below 1"),
        ("spike_factor", 0.5, "use 0 for never, or a factor above 1"),
        ("spike_factor", 1.0, "use 0 for never, or a factor above 1"),
    ],
)
def test_an_optimizer_refuses_when_it_is_made(field, value, said):
    with pytest.raises(UserError) as error:
        AdamW(**{field: value})
    assert str(error.value) == f"optimizer.{field}={value}: {said}"


def test_a_rate_of_a_pattern_is_refused_by_the_pattern():
    with pytest.raises(UserError, match=r"^optimizer\.rates\.heads_\*=-0\.1: use a number from 0$"):
        AdamW(rates={"encoders_*": 0.1, "heads_*": -0.1})


def test_what_another_keeps_in_a_mapping_is_not_ours_to_judge():
    check_ranges(Multimodal(encoders={}, huggingface={"theirs": math.inf}))
