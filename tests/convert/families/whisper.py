"""Whisper."""

import numpy as np
import torch
from cases import MASK, Case, Layers, Made, Published, words

from families.listed import linear, linears, stack
from families.vit import LABELS

SIZES = {
    "vocab_size": 37,
    "d_model": 24,
    "num_mel_bins": 10,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 28,
    "max_source_positions": 12,
    "max_target_positions": 13,
    "classifier_proj_size": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}


def batch(model):
    """Features of as many frames as the class reads, which it takes for real."""
    shape = (3, 2 * model.config.max_source_positions, model.config.num_mel_bins)
    features = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    return {"audio": features, "text": words(), "text_mask": MASK}


def heard(batch):
    return torch.tensor(np.ascontiguousarray(batch["audio"].swapaxes(1, 2)))


def said(model, batch):
    ids, mask = (torch.tensor(batch[key].astype(np.int64)) for key in ("text", "text_mask"))
    return {"caption": model(heard(batch), decoder_input_ids=ids, decoder_attention_mask=mask).logits}


def classified(model, batch):
    return {"classes": model(heard(batch)).logits}


def encoder_states(model, batch):
    return {"audio": model.model.encoder(heard(batch), output_hidden_states=True).hidden_states[1:]}


SPEECH = Made("WhisperForConditionalGeneration", said)
CLASSES = Made("WhisperForAudioClassification", classified)
CHANGES = {
    "vocab_size": 41,
    "d_model": 36,
    "num_mel_bins": 12,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 44,
    "activation_function": "relu",
    "max_source_positions": 9,
    "max_target_positions": 10,
}
WITHOUT_EFFECT = {
    "mask_time_prob": 0.5,
    "mask_time_length": 3,
    "mask_time_min_masks": 1,
    "mask_feature_prob": 0.5,
    "mask_feature_length": 3,
    "mask_feature_min_masks": 1,
    "init_std": 0.5,
    "median_filter_width": 5,
    "suppress_tokens": [5],
    "begin_suppress_tokens": [6],
    "forced_decoder_ids": [[1, 7]],
    "decoder_start_token_id": 5,
}
NORMS = "{self_attn_layer_norm final_layer_norm}"


def layer(crossed):
    """Of tiny.en: 384 wide."""
    found = {**linears(NORMS, 384), **linear("fc1", 1536, 384), **linear("fc2", 384, 1536)}
    for name in ("self_attn", "encoder_attn")[: 1 + crossed]:
        found |= linears(f"{name}.{{q_proj v_proj out_proj}}", 384, 384) | linear(f"{name}.k_proj", 384, 384, bias=False)
    return found | (linear("encoder_attn_layer_norm", 384) if crossed else {})


PUBLISHED = {
    **linear("model.encoder.conv1", 384, 80, 3),
    **linear("model.encoder.conv2", 384, 384, 3),
    **linear("model.encoder.embed_positions", 1500, 384, bias=False),
    **stack("model.encoder.layers", 4, layer(False)),
    **linear("model.encoder.layer_norm", 384),
    **linear("model.decoder.embed_tokens", 51864, 384, bias=False),
    **linear("model.decoder.embed_positions", 448, 384, bias=False),
    **stack("model.decoder.layers", 4, layer(True)),
    **linear("model.decoder.layer_norm", 384),
}
WHISPER = Case(
    "whisper",
    sizes=SIZES,
    batch=batch,
    models=(SPEECH, SPEECH.of({"tie_word_embeddings": False}), SPEECH.of(CHANGES), CLASSES.of(LABELS)),
    honoured=(
        (SPEECH, CHANGES),
        (SPEECH.of({"tie_word_embeddings": False}), {"tie_word_embeddings": True}),
        (CLASSES, {"classifier_proj_size": 14}),
    ),
    training=(
        (
            SPEECH,
            {
                "dropout": (0.3, ("encoders.audio.dropout", "decoders.caption.dropout")),
                "attention_dropout": (0.2, ("encoders.audio.attention_dropout", "decoders.caption.attention_dropout")),
            },
        ),
    ),
    inert=((SPEECH, WITHOUT_EFFECT),),
    refused={
        "is_encoder_decoder": False,
        "activation_dropout": 0.1,
        "encoder_layerdrop": 0.1,
        "decoder_layerdrop": 0.1,
        "scale_embedding": True,
        "use_weighted_layer_sum": True,
        "apply_spec_augment": True,
    },
    mistakes=(
        ({"activation_function": "gelu_10"}, "activation_function='gelu_10' is not supported here"),
        ({"architectures": ["WhisperModel"]}, "architectures='WhisperModel' is not supported for whisper"),
    ),
    layers=Layers(SPEECH, encoder_states, normed=True),
    gradient=SPEECH,
    steps=True,
    published=(Published("WhisperForConditionalGeneration", {"vocab_size": 51864}, PUBLISHED, 37_760_256),),
)
