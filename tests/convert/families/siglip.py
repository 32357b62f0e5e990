"""SigLIP, and each of its towers alone."""

from cases import MASK, PIXELS, Case, Layers, Made, Published, Together, given, image_config, words

from families.clip import VISION, loss, rate
from families.listed import clip_layer, linear, linears, stack

PAD = 1
TEXT = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 9,
    "projection_size": 20,
    "bos_token_id": 0,
    "eos_token_id": PAD,
    "pad_token_id": PAD,
}
VISION = VISION | {"num_hidden_layers": 2}
STYLE = {
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-2,
}
SILENT = ("attention_mask",)  # the processor gives none
NO_HEAD = {"vision_config.vision_use_head": False}


def batch(model):
    """Images of another shape than the config's."""
    return {
        "text": words(2, pad=PAD),
        "text_mask": MASK,
        "image": PIXELS[:, :8, :20, : getattr(image_config(model.config), "num_channels", 3)],
    }


BOTH = Made("SiglipModel", {"dual": "logits_per_image"})
CLASSES = Made("SiglipForImageClassification", {"classes": "logits"}, {"num_labels": 5})


def listed(words):
    block = linear("mlp.fc1", 3072, 768) | linear("mlp.fc2", 768, 3072)
    head = linear("attention.out_proj", 768, 768) | linear("layernorm", 768) | block
    return {
        "logit_bias": (1,),
        "logit_scale": (1,),
        "text_model.embeddings.position_embedding.weight": (64, 768),
        "text_model.embeddings.token_embedding.weight": (words, 768),
        **linear("text_model.final_layer_norm", 768),
        **linear("text_model.head", 768, 768),
        **linear("vision_model.embeddings.patch_embedding", 768, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (196, 768),
        **stack("text_model.encoder.layers", 12, clip_layer(768)),
        **stack("vision_model.encoder.layers", 12, clip_layer(768)),
        "vision_model.head.attention.in_proj_bias": (2304,),
        "vision_model.head.attention.in_proj_weight": (2304, 768),
        **{f"vision_model.head.{name}": shape for name, shape in head.items()},
        "vision_model.head.probe": (1, 1, 768),
        **linears("vision_model.{post_layernorm}", 768),
    }


SIGLIP = Case(
    "siglip",
    sizes={"text_config": TEXT, "vision_config": VISION},
    batch=batch,
    models=(
        # A factor of 118, as published ones.
        Made("SiglipModel", {"dual": "logits_per_image"}, weights={"logit_scale": 4.77, "logit_bias": -12.9}),
        CLASSES,
        CLASSES.of(NO_HEAD),
    ),
    honoured=(
        (
            BOTH,
            {
                "text_config.vocab_size": 41,
                "text_config.max_position_embeddings": 10,
                "text_config.hidden_size": 36,
                **{f"text_config.{name}": value for name, value in STYLE.items()},
                "vision_config.num_channels": 2,
                "vision_config.image_size": 16,
                "vision_config.patch_size": 2,
                **{f"vision_config.{name}": value for name, value in STYLE.items()},
                # Of the model of both towers the two widths are one; each is changed alone where the other is not.
                "text_config.projection_size": Together(36, {"vision_config.hidden_size": 36}),
            },
        ),
        (CLASSES, {"vision_config.hidden_size": 36}),
    ),
    training=((BOTH, rate("text_config", "text", 0.3) | rate("vision_config", "image", 0.2)),),
    elsewhere=("vision_config.vision_use_head",),  # see `models`
    inert=((BOTH, {"initializer_factor": 2.0}),),
    mistakes=(
        ({"text_config.projection_size": 24}, "text_config.projection_size=24 must be vision_config.hidden_size=20"),
        (NO_HEAD, "vision_config.vision_use_head=False is not supported by SiglipModel"),
        ({"vision_config.patch_size": 5}, "image_size=12 is not supported here: patch_size=5 must divide it"),
        ({"text_config.hidden_act": "gelu_10"}, "text_config.hidden_act='gelu_10' is not supported here"),
    ),
    layers=Layers(
        BOTH, {"image": "vision_model_output.hidden_states", "text": "text_model_output.hidden_states"}
    ),
    gradient=BOTH,
    loss=loss(kind="sigmoid", without=SILENT),
    images=((BOTH, ((12, 12),)),),
    published=(  # google/siglip-base-patch16-224, google/siglip2-base-patch16-224
        Published(
            "SiglipModel",
            {"text_config": {"model_type": "siglip_text_model"}, "vision_config": {"model_type": "siglip_vision_model"}},
            listed(32000),
        ),
        Published(
            "SiglipModel",
            {"text_config": {"vocab_size": 256000, "hidden_act": "gelu_pytorch_tanh"}, "vision_config": {}},
            listed(256000),
        ),
    ),
    silent=SILENT,
)  # fmt: skip
TEXT_ALONE = Made("SiglipTextModel", {"pooler": "pooler_output"})
SIGLIP_TEXT = Case(
    "siglip_text_model",
    sizes=TEXT,
    batch=batch,
    models=(TEXT_ALONE,),
    honoured=((TEXT_ALONE, {"projection_size": 36}),),
    inherits=(SIGLIP, "text_config"),
    silent=SILENT,
)


def alone(model, batch):
    out = model(**given(model, batch))
    return {
        "tokens.image": out.last_hidden_state,
        "unit.image": out.pooler_output / out.pooler_output.norm(dim=-1, keepdim=True),
    }


IMAGE_ALONE = Made("SiglipVisionModel", alone)
SIGLIP_VISION = Case(
    "siglip_vision_model",
    sizes=VISION,
    batch=batch,
    models=(
        IMAGE_ALONE,
        Made("SiglipVisionModel", {"tokens.image": "last_hidden_state"}, {"vision_use_head": False}),
    ),
    honoured=((IMAGE_ALONE, {"hidden_size": 36}),),
    inherits=(SIGLIP, "vision_config"),
    elsewhere=("vision_use_head",),  # see `models`
    silent=SILENT,
)
