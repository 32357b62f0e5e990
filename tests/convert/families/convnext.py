"""ConvNeXt and ConvNeXt V2."""

import dataclasses

from cases import Case, Layers, Made, Published, given

from families.listed import linear, stack
from families.resnet import SILENT, batch, our_stages, stages
from families.vit import LABELS


def pooled(model, batch):
    """The norm of the mean of the grid, and the grid as tokens."""
    out = model(**given(model, batch, SILENT))
    return {"pooler": out.pooler_output, "tokens.image": out.last_hidden_state.flatten(2).mT}


def listed(name, more, widths=(96, 192, 384, 768), depths=(3, 3, 9, 3)):
    """The tiny size; `more`: width -> what a block has beside."""
    found = linear(f"{name}.embeddings.patch_embeddings", 96, 3, 4, 4) | linear(f"{name}.embeddings.layernorm", 96)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        at = f"{name}.encoder.stages.{stage}"
        if stage:
            found |= linear(f"{at}.downsampling_layer.0", widths[stage - 1])
            found |= linear(f"{at}.downsampling_layer.1", width, widths[stage - 1], 2, 2)
        block = linear("dwconv", width, 1, 7, 7) | linear("layernorm", width) | linear("pwconv1", 4 * width, width)
        found |= stack(f"{at}.layers", depth, {**block, **linear("pwconv2", width, 4 * width), **more(width)})
    return found | linear(f"{name}.layernorm", 768) | linear("classifier", 1000, 768)


CONFIG = {
    "depths": [3, 3, 9, 3],
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_sizes": [96, 192, 384, 768],
    "image_size": 224,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "num_channels": 3,
    "num_stages": 4,
    "patch_size": 4,
    "torch_dtype": "float32",
    **LABELS,
}
SIZES = {"hidden_sizes": [8, 12, 16], "depths": [2, 1, 2], "num_stages": 3, "image_size": 32}
STAGES = {"hidden_sizes": [8, 12], "depths": [1, 3], "num_stages": 2}
BASE = Made("ConvNextModel", pooled)
CLASSES = Made("ConvNextForImageClassification", {"classes": "logits"})

CONVNEXT = Case(
    "convnext",
    SIZES,
    batch,
    models=(
        BASE,
        CLASSES.of({"num_labels": 5, "patch_size": [2, 4]}),
        CLASSES.of({**STAGES, "num_labels": 0, "layer_scale_init_value": 0.0, "num_channels": 1}),
    ),
    honoured=(
        (
            CLASSES,
            {
                "num_channels": 4,
                "patch_size": 3,
                "hidden_sizes": [12, 8, 16],
                "depths": [1, 1, 2],
                "hidden_act": "relu",
                "layer_norm_eps": 1e-1,
                "layer_scale_init_value": 0.0,
            },
        ),
    ),
    training=((CLASSES, {"drop_path_rate": (0.4, ("encoders.image.drop_path",))}),),
    inert=((CLASSES, {"image_size": 64, "out_features": ["stage1"], "out_indices": [1]}),),
    untried=("stage_names", "num_stages"),  # both are made of the others, or refused
    mistakes=(
        ({"num_stages": 2}, r"num_stages=2 is not supported here with depths=\[2, 1, 2\] and hidden_sizes=\[8, 12, 16\]"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        ({"architectures": ["ConvNextBackbone"]}, "architectures='ConvNextBackbone' is not supported for convnext"),
    ),
    layers=Layers(BASE, stages, ours=our_stages),
    gradient=CLASSES.of(STAGES),
    steps=True,
    published=(  # facebook/convnext-tiny-224
        Published(
            "ConvNextForImageClassification",
            {**CONFIG, "layer_scale_init_value": 1e-6, "transformers_version": "4.17.0.dev0"},
            listed("convnext", lambda width: {"layer_scale_parameter": (width,)}),
            28_589_128,
        ),
    ),
    silent=SILENT,
)

CONVNEXT_V2 = dataclasses.replace(
    CONVNEXT,
    model_type="convnextv2",
    models=(
        Made("ConvNextV2Model", pooled),
        Made("ConvNextV2ForImageClassification", {"classes": "logits"}, {**STAGES, "num_labels": 5}),
    ),
    honoured=tuple(
        (
            Made("ConvNextV2ForImageClassification", {"classes": "logits"}),
            {name: value for name, value in changes.items() if name != "layer_scale_init_value"},
        )
        for _, changes in CONVNEXT.honoured
    ),
    training=tuple((Made("ConvNextV2ForImageClassification", {"classes": "logits"}), rates) for _, rates in CONVNEXT.training),
    inert=tuple((Made("ConvNextV2ForImageClassification", {"classes": "logits"}), changes) for _, changes in CONVNEXT.inert),
    mistakes=(({"num_stages": 2}, r"num_stages=2 is not supported here with depths=\[2, 1, 2\]"),),
    layers=Layers(Made("ConvNextV2Model", pooled), stages, ours=our_stages),
    gradient=Made("ConvNextV2ForImageClassification", {"classes": "logits"}, STAGES),
    steps=False,
    published=(  # facebook/convnextv2-tiny-1k-224
        Published(
            "ConvNextV2ForImageClassification",
            {**CONFIG, "transformers_version": "4.26.0.dev0"},
            listed("convnextv2", lambda width: {f"grn.{name}": (1, 1, 1, 4 * width) for name in ("weight", "bias")}),
            28_635_496,
        ),
    ),
)
