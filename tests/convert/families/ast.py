"""The Audio Spectrogram Transformer."""

import numpy as np
from cases import Case, Layers, Made, Published

from families.listed import linear, stack, vit_layer

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "patch_size": 4,
    "frequency_stride": 3,
    "time_stride": 2,
    "max_length": 15,
    "num_mel_bins": 11,
}


def batch(model):
    """Features of as many frames as the class reads."""
    shape = (3, model.config.max_length, model.config.num_mel_bins)
    return {"audio": np.random.default_rng(0).normal(size=shape).astype(np.float32)}


BASE = Made("ASTModel", {"pooler": "pooler_output", "tokens.audio": "last_hidden_state"})
CLASSES = Made("ASTForAudioClassification", {"classes": "logits"})
NAME = "audio_spectrogram_transformer"
# MIT/ast-finetuned-audioset-10-10-0.4593
LISTED = {
    f"{NAME}.embeddings.cls_token": (1, 1, 768),
    f"{NAME}.embeddings.distillation_token": (1, 1, 768),
    f"{NAME}.embeddings.position_embeddings": (1, 1214, 768),
    **linear(f"{NAME}.embeddings.patch_embeddings.projection", 768, 1, 16, 16),
    **stack(f"{NAME}.encoder.layer", 12, vit_layer()),
    **linear(f"{NAME}.layernorm", 768),
    **linear("classifier.layernorm", 768),
    **linear("classifier.dense", 527, 768),
}
CONFIG = {
    "attention_probs_dropout_prob": 0.0,
    "frequency_stride": 10,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "id2label": {str(n): f"label {n}" for n in range(527)},
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_length": 1024,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "num_mel_bins": 128,
    "patch_size": 16,
    "qkv_bias": True,
    "time_stride": 10,
    "transformers_version": "4.25.0.dev0",
}
OTHERS = {
    "hidden_size": 36,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "hidden_act": "relu",
    "qkv_bias": False,
    "patch_size": 5,
    "frequency_stride": 2,
    "max_length": 12,
    "num_mel_bins": 9,
}
AST = Case(
    "audio-spectrogram-transformer",
    SIZES,
    batch,
    models=(BASE, CLASSES.of({"num_labels": 5}), CLASSES.of(OTHERS), CLASSES.of({"num_labels": 0})),
    honoured=((CLASSES, {"layer_norm_eps": 0.1, "time_stride": 3}),),
    elsewhere=tuple(OTHERS),  # all at once, above: each alone would be compiled for itself
    training=(
        (
            CLASSES,
            {
                "hidden_dropout_prob": (0.3, ("encoders.audio.dropout",)),
                "attention_probs_dropout_prob": (0.2, ("encoders.audio.attention_dropout",)),
            },
        ),
    ),
    mistakes=(
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported here"),
        (
            {"architectures": ["ASTForPreTraining"]},
            "architectures='ASTForPreTraining' is not supported for audio-spectrogram-transformer",
        ),
    ),
    layers=Layers(BASE, {"audio": "hidden_states"}),
    gradient=CLASSES,
    steps=True,
    published=(Published("ASTForAudioClassification", CONFIG, LISTED),),
)
