"""CLIP, and each of its towers alone."""

import jax
import numpy as np
from cases import MASK, PIXELS, Case, Layers, Made, Older, Published, given, image_config, words
from parity import bound

from families.listed import clip_layer, linear, linears, stack
from mmjax.objectives import Contrastive

END = 36  # the largest id, as in CLIP's vocabulary
TEXT = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 11,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 12,
    "patch_size": 4,
}
# The end token last; padded with the end token (OpenAI's tokenizer), and with 0 (Stable Diffusion 2's).
IDS = np.where(np.pad(MASK[:, 1:], ((0, 0), (0, 1))), words(high=END), np.int32(END))
IDS[2, 7:] = 0


def batch(model):
    """Images of another shape than the config's."""
    return {
        "text": IDS,
        "text_mask": MASK,
        "image": PIXELS[:, :8, :20, : getattr(image_config(model.config), "num_channels", 3)],
    }


def loss(**options):
    """HuggingFace's own loss, and `Contrastive` with these options."""

    def their_loss(model, batch):
        arguments = given(model, batch, options.get("without", ()))
        return model(**arguments, return_loss=True).loss

    def our_loss(model, params, batch):
        forward = bound(model, params, batch)
        found = Contrastive(options.get("kind", "softmax"))(forward, forward.batch, jax.random.key(0))
        return found.sum / found.count

    return their_loss, our_loss


def said_twice(config):
    """Files of 2022: `text_config_dict` wins over `text_config`, with its defaults."""
    old = {name: value for name, value in config.items() if name != "dtype"} | {"torch_dtype": config["dtype"]}
    old |= {"text_config_dict": config["text_config"], "vision_config_dict": None}
    return old | {"text_config": {"hidden_size": 512, "hidden_act": "relu", "layer_norm_eps": 1e-2}}


STYLE = {
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-2,
}
BOTH = Made("CLIPModel", {"dual": "logits_per_image"})
UNREAD = Made("CLIPForImageClassification", {"classes": "logits"}, {"num_labels": 5})
INITIAL = {"initializer_range": 0.5, "initializer_factor": 2.0}


def rate(group, modality, value):
    prefix = f"{group}." if group else ""
    return {f"{prefix}attention_dropout": (value, (f"encoders.{modality}.attention_dropout",))}


def tower(name, width, norm):
    return stack(f"{name}.encoder.layers", 12, clip_layer(width)) | linear(f"{name}.{norm}", width)


LISTED = {
    "logit_scale": (),
    "text_model.embeddings.position_embedding.weight": (77, 512),
    "text_model.embeddings.position_ids": (1, 77),
    "text_model.embeddings.token_embedding.weight": (49408, 512),
    **tower("text_model", 512, "final_layer_norm"),
    "text_projection.weight": (512, 512),
    "vision_model.embeddings.class_embedding": (768,),
    "vision_model.embeddings.patch_embedding.weight": (768, 3, 32, 32),
    "vision_model.embeddings.position_embedding.weight": (50, 768),
    "vision_model.embeddings.position_ids": (1, 50),
    **tower("vision_model", 768, "post_layernorm"),
    **linears("vision_model.{pre_layrnorm}", 768),
    "visual_projection.weight": (512, 768),
}

CLIP = Case(
    "clip",
    sizes={"text_config": TEXT, "vision_config": VISION, "projection_dim": 18},
    batch=batch,
    models=(
        # A factor above 100, which some checkpoints have.
        Made("CLIPModel", {"dual": "logits_per_image"}, weights={"logit_scale": 4.8}),
        UNREAD,
    ),
    honoured=(
        (
            BOTH,
            {
                "projection_dim": 14,
                "text_config.vocab_size": 41,
                "text_config.max_position_embeddings": 9,
                "text_config.hidden_size": 36,
                **{f"text_config.{name}": value for name, value in STYLE.items()},
                "vision_config.num_channels": 2,
                "vision_config.image_size": 16,
                "vision_config.patch_size": 2,
                "vision_config.hidden_size": 36,
                **{f"vision_config.{name}": value for name, value in STYLE.items()},
            },
        ),
    ),
    training=((BOTH, rate("text_config", "text", 0.3) | rate("vision_config", "image", 0.2)),),
    inert=(
        (
            BOTH,
            {
                "text_config.eos_token_id": 2,
                **{f"{g}.{name}": value for g in ("text_config", "vision_config") for name, value in INITIAL.items()},
                **{f"{g}.projection_dim": 7 for g in ("text_config", "vision_config")},
                "logit_scale_init_value": 1.0,
                "initializer_factor": 2.0,
            },
        ),
    ),
    mistakes=(
        ({"vision_config.image_size": [12, 16]}, "image_size=.12, 16. is not supported here: give one number"),
        ({"vision_config.patch_size": 5}, "image_size=12 is not supported here: patch_size=5 must divide it"),
        ({"vision_config.hidden_act": "gelu_10"}, "vision_config.hidden_act='gelu_10' is not supported here"),
    ),
    layers=Layers(
        BOTH, {"image": "vision_model_output.hidden_states", "text": "text_model_output.hidden_states"}
    ),
    gradient=BOTH,
    loss=loss(),
    steps=True,
    images=((BOTH, ((12, 12),)),),
    older={"groups said twice": Older(BOTH.of({"text_config.hidden_act": "gelu"}), said_twice, written={
        "text_config_dict": None,
        "text_config.hidden_size": 24,
    })},
    published=(  # openai/clip-vit-base-patch32: with position_ids in both towers
        Published("CLIPModel", {"text_config_dict": None, "vision_config_dict": None, "torch_dtype": "float32"}, LISTED),
    ),
)  # fmt: skip
TEXT_PROJECTED = Made("CLIPTextModelWithProjection", {"projection": "text_embeds", "tokens.text": "last_hidden_state"})
CLIP_TEXT = Case(
    "clip_text_model",
    sizes=TEXT | {"projection_dim": 18},
    batch=batch,
    models=(TEXT_PROJECTED, Made("CLIPTextModel", {"pooler": "pooler_output", "tokens.text": "last_hidden_state"})),
    honoured=((TEXT_PROJECTED, {"projection_dim": 14}),),
    inherits=(CLIP, "text_config"),
    inert=((TEXT_PROJECTED, INITIAL | {"eos_token_id": 2}),),
)
IMAGE_PROJECTED = Made("CLIPVisionModelWithProjection", {"projection": "image_embeds"})
CLIP_VISION = Case(
    "clip_vision_model",
    sizes=VISION | {"projection_dim": 18},
    batch=batch,
    models=(IMAGE_PROJECTED, Made("CLIPVisionModel", {"pooler": "pooler_output"})),
    honoured=((IMAGE_PROJECTED, {"projection_dim": 14}),),
    inherits=(CLIP, "vision_config"),
    inert=((IMAGE_PROJECTED, INITIAL),),
)
