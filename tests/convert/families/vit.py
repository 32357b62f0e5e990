"""ViT, and what its relatives share with it."""

from cases import Case, Layers, Made, Published, picture

from families.listed import linear, stack, vit_layer

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 12,
    "patch_size": 4,
}
BASE = Made("ViTModel", {"pooler": "pooler_output", "tokens.image": "last_hidden_state"})
CLASSES = Made("ViTForImageClassification", {"classes": "logits"})
RATES = {
    "hidden_dropout_prob": (0.3, ("encoders.image.dropout",)),
    "attention_probs_dropout_prob": (0.2, ("encoders.image.attention_dropout",)),
}


def batch(model):
    """Images of the config's own size."""
    return {"image": picture(model.config)}


def in_memory(model, tensors):
    """What `model.state_dict()` calls its tensors in transformers 5, other than `save_pretrained`."""
    return {name: x.detach().numpy() for name, x in model.state_dict().items()}


CONFIG = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
}
LABELS = {"id2label": {str(n): f"label {n}" for n in range(1000)}}


def base(name, layer, positions=197):
    """A base-size encoder in a public file."""
    return {
        f"{name}.embeddings.cls_token": (1, 1, 768),
        f"{name}.embeddings.position_embeddings": (1, positions, 768),
        **linear(f"{name}.embeddings.patch_embeddings.projection", 768, 3, 16, 16),
        **stack(f"{name}.encoder.layer", 12, layer),
        **linear(f"{name}.layernorm", 768),
    }


VIT = Case(
    "vit",
    SIZES,
    batch,
    models=(
        BASE,
        CLASSES.of({"num_labels": 5}),
        CLASSES.of({"num_labels": 0, "qkv_bias": False}),
        BASE.of({"image_size": [8, 20]}),
        BASE.of({"image_size": [12, 10], "patch_size": [4, 5]}),
        BASE.of({"image_size": [20, 8], "patch_size": [5, 4]}),
    ),
    honoured=(
        (
            BASE,
            {
                "hidden_size": 36,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 20,
                "hidden_act": "gelu_new",
                "layer_norm_eps": 1e-2,
                "patch_size": 6,
                "qkv_bias": False,
                "pooler_act": "relu",
                "pooler_output_size": 10,
                "image_size": 8,
                "num_channels": 1,
            },
        ),
    ),
    training=((BASE, RATES),),
    inert=((BASE, {"encoder_stride": 4}),),
    mistakes=(
        ({"image_size": 14}, "image_size=14 is not supported here: patch_size=4 must divide it"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        (
            {"architectures": ["ViTForMaskedImageModeling"]},
            "architectures='ViTForMaskedImageModeling' is not supported for vit",
        ),
    ),
    layers=Layers(BASE, {"image": "hidden_states"}),
    gradient=BASE,
    steps=True,
    images=((CLASSES, ((28, 16), (4, 8), (20, 20))),),
    names={"in memory": (CLASSES, in_memory)},
    published=(  # google/vit-base-patch16-224, with the config.json it has
        Published(
            "ViTForImageClassification",
            {**CONFIG, **LABELS, "encoder_stride": 16, "qkv_bias": True, "transformers_version": "4.13.0.dev0"},
            base("vit", vit_layer()) | linear("classifier", 1000, 768),
            86_567_656,
        ),
    ),
)
