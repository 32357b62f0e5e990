"""DINOv2."""

from cases import Case, Layers, Made, Published

from families.listed import linear, linears, stack
from families.vit import CONFIG, batch, in_memory

BASE = Made("Dinov2Model", {"pooler": "pooler_output"})
CLASSES = Made("Dinov2ForImageClassification", {"classes": "logits"})
LAYER = {
    **linears("{norm1 norm2}", 768),
    **linears("attention.attention.{query key value}", 768, 768),
    **linear("attention.output.dense", 768, 768),
    "layer_scale1.lambda1": (768,),
    **linear("mlp.fc1", 3072, 768),
    **linear("mlp.fc2", 768, 3072),
    "layer_scale2.lambda1": (768,),
}
LISTED = {
    "embeddings.cls_token": (1, 1, 768),
    "embeddings.mask_token": (1, 768),
    "embeddings.position_embeddings": (1, 1370, 768),
    **linear("embeddings.patch_embeddings.projection", 768, 3, 14, 14),
    **stack("encoder.layer", 12, LAYER),
    **linear("layernorm", 768),
}
OWN = {
    "apply_layernorm": True,
    "drop_path_rate": 0.0,
    "image_size": 518,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "out_features": ["stage12"],
    "out_indices": [12],
    "patch_size": 14,
    "qkv_bias": True,
    "reshape_hidden_states": True,
    "stage_names": ["stem", *[f"stage{n}" for n in range(1, 13)]],
    "torch_dtype": "float32",
    "transformers_version": "4.32.0.dev0",
    "use_swiglu_ffn": False,
}
PAIRS = CLASSES.of({"image_size": [12, 15], "patch_size": [4, 5]})

DINOV2 = Case(
    "dinov2",
    {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "mlp_ratio": 2, "image_size": 12, "patch_size": 4},
    batch,
    models=(
        BASE.of({"use_mask_token": False}),
        BASE.of({"use_swiglu_ffn": True}),
        CLASSES.of({"num_labels": 5}),
        CLASSES.of({"num_labels": 0, "use_swiglu_ffn": True, "hidden_act": "relu", "mlp_ratio": 3}),
        CLASSES.of({"num_channels": 1, "use_mask_token": False}),
        PAIRS,
    ),
    honoured=(
        (
            CLASSES,
            {
                "hidden_size": 36,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "mlp_ratio": 3,
                "hidden_act": "gelu_new",
                "layer_norm_eps": 1e-2,
                "image_size": 20,
                "patch_size": 6,
                "qkv_bias": False,
                "use_swiglu_ffn": True,
            },
        ),
    ),
    training=(
        (
            CLASSES,
            {
                "hidden_dropout_prob": (0.3, ("encoders.image.embed_dropout",)),
                "attention_probs_dropout_prob": (0.2, ("encoders.image.attention_dropout",)),
                "drop_path_rate": (0.1, ("encoders.image.drop_path",)),
            },
        ),
    ),
    elsewhere=("num_channels", "use_mask_token"),  # see `models`
    inert=(
        (
            CLASSES,
            {
                "layerscale_value": 0.1,
                "apply_layernorm": False,
                "reshape_hidden_states": False,
                "out_features": ["stage1"],
                "out_indices": [1],
            },
        ),
    ),
    untried=("stage_names",),  # names of the layers, made from their number
    mistakes=(
        ({"image_size": [12, 48]}, r"image_size=.12, 48. is not supported by dinov2 here: .* found 3 and 12"),
        ({"image_size": 14}, "image_size=14 is not supported here: patch_size=4 must divide it"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        ({"architectures": ["Dinov2Backbone"]}, "architectures='Dinov2Backbone' is not supported for dinov2"),
    ),
    layers=Layers(BASE, {"image": "hidden_states"}),
    gradient=CLASSES.of({"use_swiglu_ffn": True}),
    images=((CLASSES, ((28, 16), (4, 8), (20, 20))), (PAIRS, ((8, 25),))),
    names={"in memory": (CLASSES, in_memory)},
    published=(  # facebook/dinov2-base, with the config.json it has
        Published(
            "Dinov2Model",
            {name: value for name, value in CONFIG.items() if name != "intermediate_size"} | OWN,
            LISTED,
            86_580_480,
        ),
    ),
    silent=("interpolate_pos_encoding",),
)
