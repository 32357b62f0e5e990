"""HuggingFace's image processors, both ways: the settings saved with a checkpoint as our transforms, and ours as its settings.

A processor resizes, crops, rescales and normalises, in this order, each if its `do_...` field says so. What is followed here is
the PIL form of `transformers` (`backend="pil"`); its torchvision form filters with other arithmetic. A processor converts to
RGB where `do_convert_rgb` says so and refuses other images where it does not; ours are always RGB.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.core import strict_json
from mmjax.core.errors import UserError
from mmjax.data import Tokenizer
from mmjax.data.spelling import nearest
from mmjax.data.transforms import CenterCrop, Normalise, PadSquare, RandomCrop, Resize, ResizeShortest, ResizeWithin
from mmjax.models import Multimodal

FILE = "preprocessor_config.json"
NESTED_FILE = "processor_config.json"  # as transformers 5 saves a whole processor; what it nests comes before FILE
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # PIL's filters by their number
VIDEO = "VideoMAEImageProcessor"  # it does the same to each frame
STRETCHED = 384  # pixels from which ConvNeXt's processor does not crop
STEPS = {PadSquare: 0, Resize: 1, ResizeShortest: 1, ResizeWithin: 1, CenterCrop: 2, Normalise: 3}

PROCESSORS = {
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "blip": "BlipImageProcessor",
    "blip_vision_model": "BlipImageProcessor",
    "flava": "FlavaImageProcessor",
    "flava_image_model": "FlavaImageProcessor",
    "llava": "LlavaImageProcessor",
    "vilt": "ViltImageProcessor",
    "videomae": "VideoMAEImageProcessor",
}
TEXT_ONLY = ("bert", "roberta", "gpt2", "llama", "clip_text_model", "siglip_text_model", "blip_text_model", "flava_text_model")

# What a processor does where its file is silent; a null there is no silence, it switches off.
_CLIP_STATISTICS: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_EVERY: dict[str, Any] = {
    "do_resize": True,
    "resample": 3,
    "default_to_square": True,
    "do_center_crop": False,
    "do_pad": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_CLIP: dict[str, Any] = {"size": {"shortest_edge": 224}, "default_to_square": False, "do_center_crop": True, "crop_size": 224}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {**_EVERY, "size": 224, "resample": 2},
    "DeiTImageProcessor": {**_EVERY, "size": 256, "do_center_crop": True, "crop_size": 224},
    "BitImageProcessor": {**_EVERY, **_CLIP_STATISTICS, **_CLIP},
    "ConvNextImageProcessor": {**_EVERY, "size": 384, "default_to_square": False, "crop_pct": 224 / 256},
    "CLIPImageProcessor": {**_EVERY, **_CLIP_STATISTICS, **_CLIP},
    "SiglipImageProcessor": {**_EVERY, "size": {"height": 224, "width": 224}, "default_to_square": False},
    "BlipImageProcessor": {**_EVERY, **_CLIP_STATISTICS, "size": 384},
    "FlavaImageProcessor": {**_EVERY, **_CLIP_STATISTICS, "size": 224, "do_center_crop": True, "crop_size": 224},
    "LlavaImageProcessor": {**_EVERY, **_CLIP_STATISTICS, **_CLIP},
    "ViltImageProcessor": {**_EVERY, "size": {"shortest_edge": 384}, "default_to_square": False, "size_divisor": 32},
    "VideoMAEImageProcessor": {**_EVERY, **_CLIP, "resample": 2},
}


class NoProcessorError(UserError):
    """A folder without an image processor's settings."""


def image_transforms(folder: Path) -> tuple[Any, ...]:
    """The transforms that make the tensor (to 1e-5, channels last) of the image processor saved in a HuggingFace folder.

    Those of a video's processor have the field `video`.

    ViLT's processor pads the images of a batch to the largest; ours does one image, and a batch takes images of one size.

    Raises:
      UserError: no settings, an unknown processor, or a field whose value none of our transforms can follow.
    """
    settings = _read(Path(folder))
    kind = settings.kind
    steps: list[Any] = []
    if kind == "LlavaImageProcessor" and settings.flag("do_pad"):
        red, green, blue = (int(255 * mean) for mean in settings.triple("image_mean"))
        if not all(0 <= value <= 255 for value in (red, green, blue)):
            raise settings.wrong("image_mean", "is no colour to pad with (do_pad=true)")
        steps.append(PadSquare((red, green, blue)))
    if settings.flag("do_resize"):
        steps += _resize_by_share(settings) if kind == "ConvNextImageProcessor" else [_resize(settings)]
    if kind != "ViltImageProcessor" and settings.flag("do_center_crop"):  # ViLT's reads the field and does not crop
        steps.append(CenterCrop(settings.rectangle("crop_size"), pad=True))
    if kind not in ("LlavaImageProcessor", "ViltImageProcessor") and settings.flag("do_pad"):
        _check_pad(settings, steps)
    steps.append(_normalise(settings))
    return tuple(dataclasses.replace(step, field="video") for step in steps) if kind == VIDEO else tuple(steps)


def write_processor(folder: Path, transforms: Sequence[Any], model_type: str) -> None:
    """Write the `preprocessor_config.json` that `AutoImageProcessor.from_pretrained(folder)` opens to the same processing.

    Transforms that draw are left out, but for `RandomCrop`, written as the `Resize` that it is for the whole image; better give
    the transforms of the evaluation. A `model_type` without images writes nothing.

    Args:
      folder: exists; a file of that name in it is replaced.
      transforms: of ours, in the order of `Data.transforms`.
      model_type: as in HuggingFace's config.json, "vit" for instance.

    Raises:
      UserError: an unknown model_type, or transforms that no processor of its can do.
    """
    if model_type in TEXT_ONLY:
        return
    if model_type not in PROCESSORS:
        known = nearest(model_type, [*PROCESSORS, *TEXT_ONLY])
        raise UserError(f"model_type={model_type!r} has no image processor here{known}")
    steps = _fixed(transforms)
    kind = PROCESSORS[model_type]
    if kind == "ViltImageProcessor" and not any(isinstance(step, ResizeWithin) for step in steps):
        kind = "ViTImageProcessor"  # ViLT's own can resize in one way only
    if kind == "ConvNextImageProcessor":
        kind = "BitImageProcessor"  # ConvNeXt's own makes square images only, and crops as their side says
    fields: dict[str, Any] = {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": False,
        "do_center_crop": False,
        "do_pad": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    for step in steps:
        fields |= _fields(step, kind)
    if isinstance(steps[0], PadSquare):
        fill, made = steps[0].fill, tuple(int(255 * mean) for mean in fields["image_mean"])
        if tuple(fill) != made:
            raise UserError(f"PadSquare.fill={tuple(fill)}: HuggingFace pads with its image_mean; give fill={made}")
    (Path(folder) / FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def write_splicing(folder: Path, model: Multimodal, tokenizer: Tokenizer) -> None:
    """Write the `processor_config.json` of a LLaVA: `AutoProcessor` then writes as many image tokens as the image has.

    A model whose decoder puts no image into its text, or a tokenizer without a token for one, writes nothing.
    """
    decoder: Any = model.decoders.get("caption")
    place = getattr(decoder, "place", None)
    if place is None or place >= tokenizer.vocab_size:
        return
    encoder = model.encoders[decoder.context[0]]
    fields = {
        "processor_class": "LlavaProcessor",
        "image_token": tokenizer.huggingface.convert_ids_to_tokens(place),
        "patch_size": encoder.patch[0],
        "num_additional_image_tokens": int(encoder.cls_token),
        "vision_feature_select_strategy": "default" if decoder.skip else "full",
    }
    (Path(folder) / NESTED_FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


@dataclasses.dataclass(frozen=True)
class _Settings:
    """A processor's fields, its class's own where the file has none, read with their types checked."""

    file: Path
    kind: str
    values: dict[str, Any]

    def wrong(self, field: str, right: str) -> UserError:
        return UserError(f"{self.file}: {field}={json.dumps(self.values.get(field))} {right}")

    def flag(self, field: str) -> bool:
        value = self.values[field]
        if value is not None and not isinstance(value, bool):
            raise self.wrong(field, "is neither true nor false")
        return bool(value)

    def number(self, field: str) -> float:
        value = self.values[field]
        if not _is_number(value) or value <= 0:
            raise self.wrong(field, "is not a positive number")
        return value

    def triple(self, field: str) -> tuple[float, float, float]:
        """One number stands for all three colours."""
        value = self.values[field]
        three = value if isinstance(value, list) else [value] * 3
        if len(three) != 3 or not all(map(_is_number, three)):
            raise self.wrong(field, "is not one number or three, red green blue")
        return tuple(three)  # type: ignore[return-value]  # its length was checked

    def sides(self, field: str, square: bool) -> dict[str, int]:
        """A size as a dict: one number is a square, or the shorter side; a list is height and width."""
        value = self.values.get(field)
        if isinstance(value, list) and len(value) == 2:
            value = dict(zip(("height", "width"), value, strict=True))
        elif not isinstance(value, dict):
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        sides = {side: length for side, length in value.items() if length is not None}
        if not sides or not all(type(length) is int and length > 0 for length in sides.values()):
            raise self.wrong(field, "is not a size in whole pixels")
        return sides

    def rectangle(self, field: str) -> tuple[int, int]:
        sides = self.sides(field, square=True)
        if sides.keys() != {"height", "width"}:
            raise self.wrong(field, "is not supported: give height and width")
        return sides["height"], sides["width"]


def _read(folder: Path) -> _Settings:
    file = folder / NESTED_FILE
    found = _json(file).get("image_processor") if file.is_file() else None
    if found is None:
        file = folder / FILE
        if not file.is_file():
            raise NoProcessorError(f"{folder}: no {FILE}, and no {NESTED_FILE} with an image_processor in it")
        found = _json(file)
    if not isinstance(found, dict):
        raise UserError(f"{file}: image_processor={json.dumps(found)} is not an object")
    kind = _kind(folder, file, found)
    settings = _Settings(file, kind, DEFAULTS[kind] | found)
    if kind == "CLIPImageProcessor" and found.get("use_square_size"):
        raise settings.wrong("use_square_size", "is not supported: give size with height and width")
    return settings


def _kind(folder: Path, file: Path, found: dict[str, Any]) -> str:
    """The class's name without what earlier and later versions of transformers add to it."""
    field = next((f for f in ("image_processor_type", "feature_extractor_type") if found.get(f)), None)
    if field is None:
        config = folder / "config.json"
        model_type = _json(config).get("model_type") if config.is_file() else None
        if model_type not in PROCESSORS:
            known = f"one of {', '.join(PROCESSORS)}"
            raise UserError(f"{file}: no image_processor_type, and model_type={model_type!r} in config.json is not {known}")
        return PROCESSORS[model_type]
    name = str(found[field])
    kind = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if kind not in DEFAULTS:
        raise UserError(f"{file}: {field}={name!r} is not supported{nearest(kind, DEFAULTS)}")
    return kind


def _json(file: Path) -> dict[str, Any]:
    found = strict_json.read(file)
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a JSON object")
    return found


def _resample(settings: _Settings) -> str:
    number = settings.values["resample"]
    if type(number) is not int or not 0 <= number < len(RESAMPLE):
        raise settings.wrong("resample", f"is not one of PIL's filters, 0 to {len(RESAMPLE) - 1}")
    return RESAMPLE[number]


def _resize_by_share(settings: _Settings) -> list[Any]:
    """ConvNeXt's: images of a small side are the middle of larger ones, of which `crop_pct` is left; others are stretched."""
    sides = settings.sides("size", square=False)
    if sides.keys() != {"shortest_edge"}:
        raise settings.wrong("size", "is not supported by ConvNeXt's processor: give shortest_edge")
    side, resample = sides["shortest_edge"], _resample(settings)
    if side >= STRETCHED:
        return [Resize((side, side), resample)]
    larger = int(side / settings.number("crop_pct"))
    if larger < 1:
        raise settings.wrong("crop_pct", f"leaves nothing of an image of {side}")
    return [ResizeShortest(larger, resample), CenterCrop((side, side), pad=True)]


def _resize(settings: _Settings) -> Resize | ResizeShortest | ResizeWithin:
    resample = _resample(settings)
    sides = settings.sides("size", square=settings.flag("default_to_square"))
    if settings.kind == "ViltImageProcessor":
        if "shortest_edge" not in sides:
            raise settings.wrong("size", "is not supported by ViLT's processor: give shortest_edge")
        divisor = settings.values["size_divisor"]
        if type(divisor) is not int or divisor < 1:
            raise settings.wrong("size_divisor", "is not a whole number from 1 up")
        return ResizeWithin(sides["shortest_edge"], _vilt_longest(sides["shortest_edge"]), divisor, resample)
    if sides.keys() == {"height", "width"}:
        return Resize((sides["height"], sides["width"]), resample)
    if sides.keys() == {"shortest_edge"}:
        return ResizeShortest(sides["shortest_edge"], resample)
    raise settings.wrong("size", "is not supported: give height and width, or shortest_edge alone")


def _vilt_longest(shortest: int) -> int:
    return int(1333 / 800 * shortest)


def _check_pad(settings: _Settings, steps: list[Any]) -> None:
    """Padding to the largest image of the batch, or to `pad_size`, does nothing where all images leave in that size."""
    size = getattr(steps[-1], "size", None) if steps else None
    if settings.values.get("pad_size") is not None and settings.rectangle("pad_size") != size:
        raise settings.wrong("pad_size", "is not supported: it is not the size that resizing and cropping give")
    if size is None:
        raise settings.wrong("do_pad", "is not supported where images keep sizes of their own")


def _normalise(settings: _Settings) -> Normalise:
    """(factor * x - mean) / std, written as (x / 255 - mean') / std'."""
    unit = 255 * (settings.number("rescale_factor") if settings.flag("do_rescale") else 1)
    if not settings.flag("do_normalize"):
        return Normalise((0.0,) * 3, (1 / unit,) * 3)
    mean, std = settings.triple("image_mean"), settings.triple("image_std")
    if min(std) <= 0:
        raise settings.wrong("image_std", "is not positive")
    (a, b, c), (d, e, f) = (x / unit for x in mean), (x / unit for x in std)
    return Normalise((a, b, c), (d, e, f))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fixed(transforms: Sequence[Any]) -> list[Any]:
    """The steps that a processor can do, in its order."""
    steps: list[Any] = []
    for transform in transforms:
        step = transform
        if isinstance(transform, RandomCrop):  # there is no such step; the nearest filter will do for its whole image
            step = Resize(transform.size, transform.resample if transform.resample in RESAMPLE else "bilinear")
        if getattr(step, "random", True):
            continue
        name = type(step).__name__
        if getattr(step, "resample", "") not in ("", *RESAMPLE):
            raise UserError(f"transforms: {name}.resample={step.resample!r} is none of HuggingFace's: {', '.join(RESAMPLE)}")
        if type(step) not in STEPS:
            raise UserError(f"transforms: {name} cannot be written as a HuggingFace image processor")
        if steps and STEPS[type(step)] <= STEPS[type(steps[-1])]:
            raise UserError(
                f"transforms: {name} after {type(steps[-1]).__name__} cannot be written: a HuggingFace image processor pads, "
                "resizes, crops and normalises, in this order and each at most once"
            )
        steps.append(step)
    if not steps or not isinstance(steps[-1], Normalise):
        raise UserError("transforms: there is no Normalise, which ends a HuggingFace image processor")
    return steps


def _fields(step: Any, kind: str) -> dict[str, Any]:
    """What one step adds to the fields."""
    match step:
        case PadSquare() if kind == "LlavaImageProcessor":
            return {"do_pad": True}
        case Resize(size=(height, width)):
            size: dict[str, int] = {"height": height, "width": width}
            return {"do_resize": True, "size": size, "resample": RESAMPLE.index(step.resample)}
        case ResizeShortest() if kind != "ViltImageProcessor":
            return {"do_resize": True, "size": {"shortest_edge": step.shortest}, "resample": RESAMPLE.index(step.resample)}
        case ResizeWithin() if kind == "ViltImageProcessor":
            if step.longest != _vilt_longest(step.shortest):
                fits = _vilt_longest(step.shortest)
                raise UserError(
                    f"ResizeWithin.longest={step.longest}: ViLT's processor has {fits} for shortest={step.shortest}"
                )
            size = {"shortest_edge": step.shortest}
            resample = RESAMPLE.index(step.resample)
            return {"do_resize": True, "size": size, "resample": resample, "size_divisor": step.divisor, "do_pad": True}
        case CenterCrop(size=(height, width)) if kind != "ViltImageProcessor":
            return {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
        case Normalise():
            return {"image_mean": list(step.mean), "image_std": list(step.std)}
    raise UserError(f"transforms: {type(step).__name__} cannot be written for {kind}, which has no such step")
