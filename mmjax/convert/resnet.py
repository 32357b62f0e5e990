"""ResNet (He et al. 2015): base with the mean of its grid, image classification. The running statistics come and go with it."""

from __future__ import annotations

from mmjax.convert.bert import labels
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert
from mmjax.convert.layout import Count, Kernel, Row, Vector, linear
from mmjax.convert.vit import IMAGE
from mmjax.models import Multimodal
from mmjax.models.encoders import ResNet
from mmjax.models.encoders.resnet import projects
from mmjax.models.heads import Classifier

KEPT = "variables/statistics"  # where the running statistics are

BACKBONE: dict[str, ConfigField] = {name: Inert("of a backbone") for name in ("out_features", "out_indices", "stage_names")}
FIELDS: dict[str, ConfigField] = {
    "num_channels": Honoured(3, (f"{IMAGE}.channels",)),
    "embedding_size": Honoured(64, (f"{IMAGE}.stem_width",)),
    "hidden_sizes": Honoured((256, 512, 1024, 2048), (f"{IMAGE}.widths",), read=tuple, write=list, kind="wholes"),
    "depths": Honoured((3, 4, 6, 3), (f"{IMAGE}.depths",), read=tuple, write=list, kind="wholes"),
    "layer_type": Honoured("bottleneck", (f"{IMAGE}.block",), {"bottleneck": "bottleneck", "basic": "basic"}),
    "hidden_act": Honoured("relu", (f"{IMAGE}.activation",), ACTIVATIONS),
    "downsample_in_first_stage": Honoured(False, (f"{IMAGE}.reduce_first",)),
    "downsample_in_bottleneck": Honoured(False, (f"{IMAGE}.stride_first",)),
    **BACKBONE,
}


def _convolved(theirs: str, ours: str, depth: int = 0, first: int = 0) -> list[Row]:
    """The rows of a convolution with its norm and what that keeps."""
    place = {"depth": depth, "first": first}
    t, kept = f"{theirs}.normalization", f"{KEPT}/{ours}/norm"
    return [
        Row(f"{theirs}.convolution.weight", (f"{ours}/convolve/kernel",), Kernel(), **place),
        Row(f"{t}.weight", (f"{ours}/norm/scale",), Vector(), **place),
        Row(f"{t}.bias", (f"{ours}/norm/bias",), Vector(), **place),
        Row(f"{t}.running_mean", (f"{kept}/mean",), Vector(), **place),
        Row(f"{t}.running_var", (f"{kept}/variance",), Vector(), **place),
        Row(f"{t}.num_batches_tracked", (f"{kept}/batches",), Count(), **place),
    ]


def _stage(theirs: str, ours: str, image: ResNet, number: int) -> list[Row]:
    """The rows of a stage: its first block apart where it projects, the others stacked."""
    before = image.widths[number - 1] if number else image.stem_width
    apart = int(projects(before, image.widths[number], 2 if number or image.reduce_first else 1))
    left, rows = image.depths[number] - apart, list[Row]()
    for part in range(2 if image.block == "basic" else 3):
        name = f"layer.{part}"
        if apart:
            rows += _convolved(f"{theirs}.layers.0.{name}", f"{ours}/first/conv_{part + 1}")
        if left:
            rows += _convolved(f"{theirs}.layers.{{l}}.{name}", f"{ours}/layers/conv_{part + 1}", left, apart)
    return rows + (_convolved(f"{theirs}.layers.0.shortcut", f"{ours}/first/shortcut") if apart else [])


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    base, image = "" if architecture == "ResNetModel" else "resnet.", model.encoders["image"]
    rows = _convolved(f"{base}embedder.embedder", "encoders_image/stem")
    for number in range(len(image.depths)):
        rows += _stage(f"{base}encoder.stages.{number}", f"encoders_image/stage_{number}", image, number)
    if "classes" in model.heads and model.heads["classes"].classes:
        rows += linear("classifier.1", "heads_classes/logits")
    return rows


def _model(**heads: Classifier) -> Multimodal:
    return Multimodal(encoders={"image": ResNet()}, heads=heads)


def _head(classes: int) -> Classifier:
    return Classifier(classes=classes, input="image")


def _classifier(config: Config) -> Multimodal:
    return _model(classes=_head(labels(config)))


RESNET = Family(
    model_type="resnet",
    any_size=True,
    models={"ResNetModel": lambda c: _model(pooler=_head(0)), "ResNetForImageClassification": _classifier},
    fields=FIELDS,
    rows=_rows,
    prefix="resnet.",
)
