"""ResNet."""

import numpy as np
from cases import PIXELS, Case, Layers, Made, Published, given

from families.listed import linear
from families.vit import LABELS


def batch(model):
    """Images of a size that no stage divides."""
    return {"image": PIXELS[:, :37, :26, : model.config.num_channels]}


def pooled(model, batch):
    """The mean of the grid, and the grid as tokens."""
    out = model(**given(model, batch, SILENT))
    return {"pooler": out.pooler_output.flatten(1), "tokens.image": out.last_hidden_state.flatten(2).mT}


def stages(model, batch):
    """What each stage gives, channels last."""
    states = model(**given(model, batch, SILENT), output_hidden_states=True).hidden_states
    return {"image": [np.moveaxis(x.numpy(), 1, -1) for x in states[1:]]}


def our_stages(model, params, batch):
    """The same of our encoder's."""
    keep = lambda module, name: type(module).__name__ == "_Stage" and name == "__call__"  # noqa: E731
    known = {"params": {k: x for k, x in params.items() if k != "variables"}, **params.get("variables", {})}
    parts = {"": batch["image"]}
    apply = model.copy(dtype="float32").apply
    _, made = apply(known, "image", parts, method="encode", capture_intermediates=keep, mutable=["intermediates"])
    own = made["intermediates"]["encoders_image"]
    return {"image": [own[f"stage_{n}"]["__call__"][0] for n in range(len(own))]}


SILENT = ("interpolate_pos_encoding",)
BASE = Made("ResNetModel", pooled)
CLASSES = Made("ResNetForImageClassification", {"classes": "logits"})
BASIC = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1]}


def normed(name, width):
    return {f"{name}.normalization.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.normalization.num_batches_tracked": ()
    }


def convolved(name, out, inside, side):
    return {f"{name}.convolution.weight": (out, inside, side, side), **normed(name, out)}


def listed():
    """microsoft/resnet-50."""
    found, before = convolved("resnet.embedder.embedder", 64, 3, 7), 64
    for stage, (width, depth) in enumerate(zip((256, 512, 1024, 2048), (3, 4, 6, 3), strict=True)):
        for block in range(depth):
            name, inside = f"resnet.encoder.stages.{stage}.layers.{block}", width // 4
            found |= convolved(f"{name}.layer.0", inside, before, 1) | convolved(f"{name}.layer.1", inside, inside, 3)
            found |= convolved(f"{name}.layer.2", width, inside, 1)
            found |= convolved(f"{name}.shortcut", width, before, 1) if not block else {}
            before = width
    return found | linear("classifier.1", 1000, 2048)


CONFIG = {  # its config.json
    "depths": [3, 4, 6, 3],
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": [256, 512, 1024, 2048],
    "layer_type": "bottleneck",
    "num_channels": 3,
    "torch_dtype": "float32",
    "transformers_version": "4.18.0.dev0",
    **LABELS,
}


def bare(model, tensors):
    """A base model's names in a classifier's file."""
    return {name.removeprefix("resnet."): x for name, x in tensors.items()}


RESNET = Case(
    "resnet",
    {"embedding_size": 8, "hidden_sizes": [12, 16, 20], "depths": [2, 1, 3]},
    batch,
    models=(
        BASE,
        BASE.of({"downsample_in_bottleneck": True, "downsample_in_first_stage": True}),
        CLASSES.of(BASIC | {"num_labels": 5}),
        CLASSES.of({"num_labels": 0, "num_channels": 1}),
        CLASSES.of(BASIC | {"downsample_in_first_stage": True, "depths": [1, 2]}),
    ),
    honoured=(
        (
            CLASSES,
            {
                "num_channels": 4,
                "embedding_size": 12,
                "hidden_sizes": [12, 24, 20],
                "depths": [1, 2, 2],
                "layer_type": "basic",
                "hidden_act": "gelu",
                "downsample_in_first_stage": True,
                "downsample_in_bottleneck": True,
            },
        ),
    ),
    inert=((CLASSES, {"out_features": ["stage1"], "out_indices": [1]}),),
    untried=("stage_names",),  # names of the stages, made from their number
    mistakes=(
        ({"layer_type": "wide"}, "layer_type='wide' is not supported here; use one of 'bottleneck', 'basic'"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        ({"depths": [2, 1]}, r"widths=\(12, 16, 20\) and depths=\(2, 1\): give one of each for every stage"),
        ({"architectures": ["ResNetBackbone"]}, "architectures='ResNetBackbone' is not supported for resnet"),
    ),
    layers=Layers(BASE, stages, ours=our_stages),
    gradient=CLASSES.of(BASIC),
    steps=True,
    names={"without the prefix": (CLASSES, bare)},
    published=(Published("ResNetForImageClassification", CONFIG, listed(), 25_610_205),),
    silent=SILENT,
)
