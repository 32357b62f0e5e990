"""wav2vec 2.0 and HuBERT."""

import dataclasses

import numpy as np
import torch
from cases import Case, Layers, Made, Published

from families.listed import linear, linears, stack

SIZES = {
    "vocab_size": 17,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_dim": [8, 10, 12],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 20,
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout", "layerdrop"), 0.0),
}
LENGTHS, SAMPLES = (390, 250, 301), 390


def frames(config, samples):
    """How many frames so many samples make."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def batch(model):
    """Waveforms of mean 0 and variance 1, as the extractor makes them; of several lengths where HuggingFace's norms allow it:
    one over time spans their padding."""
    padded = model.config.feat_extract_norm == "layer"
    mask = np.arange(SAMPLES)[None] < np.array(LENGTHS if padded else (SAMPLES,) * 3)[:, None]
    x = np.where(mask, np.random.default_rng(0).normal(size=mask.shape), 0.0)
    count = mask.sum(axis=1, keepdims=True)
    x = np.where(mask, x - x.sum(axis=1, keepdims=True) / count, 0.0)
    x /= np.sqrt((x**2).sum(axis=1, keepdims=True) / count)
    real = np.array([[frames(model.config, int(n))] for n in count[:, 0]])
    found = {"audio": x.astype(np.float32), "frames": np.arange(frames(model.config, SAMPLES))[None] < real}
    return found | ({"audio_mask": mask} if padded else {})


def real(name, batch, length):
    """Frames that are real, of whatever has some."""
    return batch["frames"] if length == batch["frames"].shape[1] else None


STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}


def pretrained(model, batch):
    """What hidden frames are compared by: guesses, and the logits of what frames are."""
    x = torch.tensor(batch["audio"])
    logits = model.quantizer.weight_proj(model.wav2vec2(x).extract_features)
    return {"guesses": model(x).projected_states, "code_logits": logits}


PRETRAINING = Made("Wav2Vec2ForPreTraining", pretrained)
CODES = {"num_codevectors_per_group": 6, "num_codevector_groups": 3, "codevector_dim": 15, "proj_codevector_dim": 10}


def case(kind, model_type, fields, refused, inert, published, gradient):
    base = Made(f"{kind}Model", {"tokens.audio": "last_hidden_state"})
    letters = Made(f"{kind}ForCTC", {"ctc": "logits"})
    classes = Made(f"{kind}ForSequenceClassification", {"classes": "logits"})
    unmasked = {"mask_time_prob": 0.0}  # without a token for what is masked
    return Case(
        model_type,
        SIZES,
        batch,
        models=(
            base,
            letters.of({**unmasked, "num_conv_pos_embeddings": 5}),
            letters.of(STABLE),
            classes.of({"num_labels": 4}),
            classes.of({**STABLE, **unmasked}),
            letters.of(fields),
            *([PRETRAINING.of(CODES)] if gradient else []),
        ),
        # The others all at once, above: each alone would be compiled for itself.
        honoured=((letters, {"vocab_size": 19, "layer_norm_eps": 0.1}), (classes, {"classifier_proj_size": 14})),
        elsewhere=(*fields, *(CODES if gradient else ())),
        training=(
            (
                letters,
                {
                    "hidden_dropout": (0.3, ("encoders.audio.dropout",)),
                    "attention_dropout": (0.2, ("encoders.audio.attention_dropout",)),
                    "feat_proj_dropout": (0.2, ("encoders.audio.project_dropout",)),
                },
            ),
        ),
        inert=((letters, inert),),
        untried=("num_feat_extract_layers",),  # made of the others, or refused
        refused={"use_weighted_layer_sum": True, **refused},
        mistakes=(
            ({"conv_stride": [5, 2]}, r"num_feat_extract_layers=3 is not supported here with conv_dim=\[8, 10, 12\]"),
            ({"feat_extract_norm": "batch"}, "feat_extract_norm='batch' is not supported here; use one of 'group', 'layer'"),
            ({"architectures": [f"{kind}ForXVector"]}, f"architectures='{kind}ForXVector' is not supported for {model_type}"),
        ),
        layers=Layers(base.of(STABLE), {"audio": "hidden_states"}),
        gradient=letters.of(STABLE) if gradient else classes,
        steps=gradient,
        names={"as torch 1 wrote weight_norm": (letters, older)},
        published=(published,),
        real=real,
    )


def older(model, tensors):
    words = (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v"))
    renamed = dict(tensors)
    for new, old in words:
        renamed = {name.replace(new, old): x for name, x in renamed.items()}
    return renamed


FIELDS = {
    "hidden_size": 36,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "hidden_act": "relu",
    "feat_extract_norm": "layer",
    "feat_extract_activation": "relu",
    "conv_dim": [6, 10, 8],
    "conv_stride": [4, 2, 2],
    "conv_kernel": [9, 3, 2],
    "conv_bias": True,
    "num_conv_pos_embeddings": 7,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
}
INERT = {
    "activation_dropout": 0.1,
    "final_dropout": 0.1,
    "layerdrop": 0.1,
    "apply_spec_augment": False,
    "mask_time_prob": 0.5,
    "mask_time_length": 3,
    "mask_time_min_masks": 1,
    "mask_feature_prob": 0.5,
    "mask_feature_length": 3,
    "mask_feature_min_masks": 1,
    "ctc_loss_reduction": "mean",
    "ctc_zero_infinity": True,
}
OF_LOSS = {
    "feat_quantizer_dropout": 0.1,
    "contrastive_logits_temperature": 0.2,
    "num_negatives": 10,
    "diversity_loss_weight": 0.2,
}
UNUSED = {
    "adapter_kernel_size": 5,
    "adapter_stride": 1,
    "num_adapter_layers": 1,
    "output_hidden_size": 12,
    "tdnn_dim": [16, 8],
    "tdnn_kernel": [5, 3],
    "tdnn_dilation": [1, 2],
    "xvector_output_dim": 16,
}
KERNELS = (10, 3, 3, 3, 3, 2, 2)


def listed(prefix):
    """The base size, as 2021 wrote it: facebook/wav2vec2-base-960h, facebook/hubert-base-ls960 with a head."""
    layer = {
        **linears("attention.{q_proj k_proj v_proj out_proj}", 768, 768),
        **linears("{layer_norm final_layer_norm}", 768),
        **linear("feed_forward.intermediate_dense", 3072, 768),
        **linear("feed_forward.output_dense", 768, 3072),
    }
    found = {f"{prefix}.masked_spec_embed": (768,)}
    for n, kernel in enumerate(KERNELS):
        found |= linear(f"{prefix}.feature_extractor.conv_layers.{n}.conv", 512, 512 if n else 1, kernel, bias=False)
    position = f"{prefix}.encoder.pos_conv_embed.conv"
    return {
        **found,
        **linear(f"{prefix}.feature_extractor.conv_layers.0.layer_norm", 512),
        **linear(f"{prefix}.feature_projection.layer_norm", 512),
        **linear(f"{prefix}.feature_projection.projection", 768, 512),
        f"{position}.weight_g": (1, 1, 128),
        f"{position}.weight_v": (768, 48, 128),
        f"{position}.bias": (768,),
        **linear(f"{prefix}.encoder.layer_norm", 768),
        **stack(f"{prefix}.encoder.layers", 12, layer),
        **linear("lm_head", 32, 768),
    }


CONFIG = {
    "activation_dropout": 0.1,
    "apply_spec_augment": True,
    "attention_dropout": 0.1,
    "conv_bias": False,
    "conv_dim": [512] * 7,
    "conv_kernel": list(KERNELS),
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "do_stable_layer_norm": False,
    "feat_extract_activation": "gelu",
    "feat_extract_dropout": 0.0,
    "feat_extract_norm": "group",
    "feat_proj_dropout": 0.1,
    "final_dropout": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout": 0.1,
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "layerdrop": 0.1,
    "mask_time_prob": 0.05,
    "num_attention_heads": 12,
    "num_conv_pos_embedding_groups": 16,
    "num_conv_pos_embeddings": 128,
    "num_feat_extract_layers": 7,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "vocab_size": 32,
}
WAV2VEC2 = case(
    "Wav2Vec2",
    "wav2vec2",
    FIELDS,
    {"add_adapter": True, "adapter_attn_dim": 16},
    INERT | OF_LOSS | UNUSED,
    Published("Wav2Vec2ForCTC", CONFIG, listed("wav2vec2"), 94_396_320),
    True,
)
HUBERT = dataclasses.replace(
    case(
        "Hubert",
        "hubert",
        {**FIELDS, "feat_proj_layer_norm": False},
        {"conv_pos_batch_norm": True},
        INERT,
        Published("HubertForCTC", CONFIG, listed("hubert"), 94_396_320),
        False,
    ),
    layers=None,  # the layers are wav2vec 2.0's
)
