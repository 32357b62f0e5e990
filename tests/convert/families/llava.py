"""LLaVA."""

import numpy as np
from cases import PIXELS, Case, Made, Older, Published

from families.listed import clip_layer, linear, linears, llama_layer, stack
from families.vit import in_memory

VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 18,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 13,
}
PLACE = 35
MASK = np.arange(11)[None] < np.array([[11], [8], [9]])


def prompt(patches=4):
    """[3, 11] ids with as many image tokens each, inside, at the start, and apart; of four, and as many of the id after it."""
    ids = np.random.default_rng(1).integers(1, 34, (3, 11))
    for row, start in enumerate((2, 0, 3)):
        ids[row, start : start + patches] = PLACE
    if patches == 4:
        ids[0, 6:10] = ids[1, 4:8] = PLACE + 1
        ids[2, :9] = [PLACE + 1] * 3 + [PLACE, PLACE, 5, PLACE, PLACE, PLACE + 1]
    return (ids * MASK).astype(np.int32)


def batch(model):
    """As many image tokens as the config asks for."""
    config, vision = model.config, model.config.vision_config
    cls = config.vision_feature_select_strategy == "full" and vision.model_type == VISION["model_type"]
    patches = (vision.image_size // vision.patch_size) ** 2 + cls
    image = PIXELS[:, : vision.image_size, : vision.image_size, : vision.num_channels]
    return {"image": image, "text": prompt(patches), "text_mask": MASK}


def text_as_before(**said):
    """The rotation by the names of version 4."""

    def config(config):
        text = {name: value for name, value in config["text_config"].items() if name != "rope_parameters"}
        return {**config, "text_config": text | said}

    return config


def as_version_4(model, tensors):
    return {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in tensors.items()}


WHOLE = Made("LlavaForConditionalGeneration", {"caption": "logits"})
BASE = Made("LlavaModel", {"caption": "last_hidden_state"})
SIGLIPS = {"vision_config.model_type": "siglip_vision_model", "vision_feature_select_strategy": "full"}
TOWER = "vision_tower.vision_model"
LISTED = {
    "language_model.lm_head.weight": (32064, 4096),
    "language_model.model.embed_tokens.weight": (32064, 4096),
    **stack("language_model.model.layers", 32, llama_layer(4096, 11008, 4096)),
    "language_model.model.norm.weight": (4096,),
    **linear("multi_modal_projector.linear_1", 4096, 1024),
    **linear("multi_modal_projector.linear_2", 4096, 4096),
    f"{TOWER}.embeddings.class_embedding": (1024,),
    f"{TOWER}.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    f"{TOWER}.embeddings.position_embedding.weight": (577, 1024),
    f"{TOWER}.embeddings.position_ids": (1, 577),
    **stack(f"{TOWER}.encoder.layers", 24, clip_layer(1024)),
    **linears(f"{TOWER}.{{pre_layrnorm post_layernorm}}", 1024),
}
CONFIG = {
    "ignore_index": -100,
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}

LLAVA = Case(
    "llava",
    sizes={"text_config": TEXT, "vision_config": VISION, "image_token_index": PLACE},
    batch=batch,
    models=(
        WHOLE,
        BASE,
        WHOLE.of({"tie_word_embeddings": True}),
        WHOLE.of(SIGLIPS),
        WHOLE.of(SIGLIPS | {"vision_config.vision_use_head": False}),
    ),
    honoured=(
        (
            WHOLE,
            {
                "image_token_index": 36,
                "projector_hidden_act": "relu",
                "multimodal_projector_bias": False,
                "vision_feature_select_strategy": "full",
                "vision_feature_layer": 1,
                "tie_word_embeddings": True,
                "text_config.vocab_size": 41,
                "text_config.hidden_size": 36,
                "text_config.intermediate_size": 20,
                "text_config.num_hidden_layers": 1,
                "text_config.num_attention_heads": 6,
                "text_config.num_key_value_heads": 1,
                "text_config.head_dim": 8,
                "text_config.rms_norm_eps": 1e-2,
                "text_config.tie_word_embeddings": True,
                "text_config.rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
                "text_config.rope_parameters.rope_theta": 100.0,
                "text_config.attention_bias": True,
                "text_config.mlp_bias": True,
                "vision_config.hidden_size": 12,
                "vision_config.intermediate_size": 28,
                "vision_config.num_hidden_layers": 4,
                "vision_config.num_attention_heads": 2,
                "vision_config.num_channels": 1,
                "vision_config.image_size": 4,
                "vision_config.patch_size": 8,
                "vision_config.hidden_act": "gelu",
                "vision_config.layer_norm_eps": 1e-2,
            },
        ),
    ),
    training=(
        (
            WHOLE,
            {
                "text_config.attention_dropout": (0.2, ("decoders.caption.attention_dropout",)),
                "vision_config.attention_dropout": (0.3, ("encoders.image.attention_dropout",)),
            },
        ),
    ),
    elsewhere=(
        *("text_config.rope_theta", "text_config.rope_scaling"),  # see `older`
        "text_config.max_position_embeddings",  # changes no answer: see test_llava.py
        "vision_config.vision_use_head",  # see `models`
    ),
    inert=(
        (
            WHOLE,
            {
                "image_seq_length": 9,
                "text_config.pretraining_tp": 2,
                "vision_config.projection_dim": 9,
                "vision_config.vocab_size": 9,
                "vision_config.initializer_factor": 2.0,
                "vision_config.initializer_range": 0.5,
                "text_config.max_position_embeddings": 99,
            },
        ),
    ),
    refused={
        "text_config.model_type": "qwen2",
        "text_config.hidden_act": "gelu",
        "text_config.original_max_position_embeddings": 9,
        "vision_config.model_type": "pixtral",
    },
    mistakes=(
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer=.-2, -1. is not supported here: give one number"),
        ({"vision_feature_layer": 4}, "take_layer=4: there are 3 layers"),
        ({"text_config.rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' is not supported here"),
    ),
    gradient=WHOLE.of({"text_config.attention_bias": True}),
    names={"version 4": (WHOLE, as_version_4), "in memory": (WHOLE, in_memory), "in memory, headless": (BASE, in_memory)},
    older={
        "rope_theta": Older(WHOLE, text_as_before(rope_theta=100.0), usual=dict),
        "rope_scaling": Older(WHOLE, text_as_before(rope_scaling={"type": "linear", "factor": 3.0}), usual=dict),
    },
    published=(  # llava-hf/llava-1.5-7b-hf, written by version 4
        Published(WHOLE.name, CONFIG, LISTED),
        Published(WHOLE.name, {**CONFIG, "vision_config": None}, LISTED),
    ),
    silent=("interpolate_pos_encoding",),
)
