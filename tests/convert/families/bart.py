"""BART."""

import numpy as np
import torch
from cases import LENGTH, MASK, Case, Layers, Made, Published, words

from families.listed import linear, linears, stack
from families.t5 import written

SIZES = {
    "vocab_size": 37,
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 13,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
SAID = np.arange(LENGTH)[None] < np.array([[4], [9], [6]])
BATCH = {"text": words(3), "text_mask": MASK, "target": np.ascontiguousarray(words(3)[::-1, ::-1]), "target_mask": SAID}
WRITER = Made("BartForConditionalGeneration", written)


def states(model, batch):
    text, mask = (torch.tensor(batch[key].astype(np.int64)) for key in ("text", "text_mask"))
    return {"text": model.model.encoder(input_ids=text, attention_mask=mask, output_hidden_states=True).hidden_states[1:]}


CHANGES = {
    "vocab_size": 41,
    "d_model": 36,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 44,
    "activation_function": "relu",
    "max_position_embeddings": 10,
    "scale_embedding": True,
}
WITHOUT_EFFECT = {
    "force_bos_token_to_be_generated": True,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 5,
    "classifier_dropout": 0.5,
    "classif_dropout": 0.5,
    "init_std": 0.5,
}


def both(leaf):
    return (f"encoders.text.{leaf}", f"decoders.target.{leaf}")


def layer(crossed):
    """Of bart-large-cnn: 1024 wide."""
    found = {
        **linears("{self_attn_layer_norm final_layer_norm}", 1024),
        **linear("fc1", 4096, 1024),
        **linear("fc2", 1024, 4096),
    }
    for name in ("self_attn", "encoder_attn")[: 1 + crossed]:
        found |= linears(f"{name}.{{q_proj k_proj v_proj out_proj}}", 1024, 1024)
    return found | (linear("encoder_attn_layer_norm", 1024) if crossed else {})


def side(name, crossed):
    found = {**stack(f"model.{name}.layers", 12, layer(crossed)), **linear(f"model.{name}.layernorm_embedding", 1024)}
    found |= linear(f"model.{name}.embed_positions", 1026, 1024, bias=False)
    return found | linear(f"model.{name}.embed_tokens", 50264, 1024, bias=False)


CNN = {
    "final_logits_bias": (1, 50264),
    **linear("model.shared", 50264, 1024, bias=False),
    **side("encoder", False),
    **side("decoder", True),
    **linear("lm_head", 50264, 1024, bias=False),
}
CNN_CONFIG = {
    **dict.fromkeys(("add_bias_logits", "add_final_layer_norm", "normalize_before", "static_position_embeddings"), False),
    "vocab_size": 50264,
    "normalize_embedding": True,
    "extra_pos_embeddings": 2,
    "force_bos_token_to_be_generated": True,
}
BART = Case(
    "bart",
    sizes=SIZES,
    batch=lambda model: BATCH,
    models=(WRITER, WRITER.of(CHANGES)),
    honoured=((WRITER, CHANGES),),
    training=(
        (
            WRITER,
            {
                "dropout": (0.3, both("dropout")),
                "attention_dropout": (0.2, both("attention_dropout")),
                "activation_dropout": (0.4, both("mlp_dropout")),
            },
        ),
    ),
    inert=((WRITER, WITHOUT_EFFECT),),
    refused={
        "is_encoder_decoder": False,
        "is_decoder": True,
        "tie_word_embeddings": False,
        "encoder_layerdrop": 0.1,
        "decoder_layerdrop": 0.1,
        "add_bias_logits": True,
        "add_final_layer_norm": True,
        "normalize_before": True,
        "normalize_embedding": False,
        "static_position_embeddings": True,
        "extra_pos_embeddings": 1,
    },
    mistakes=(({"architectures": ["BartModel"]}, "architectures='BartModel' is not supported for bart"),),
    layers=Layers(WRITER, states),
    gradient=WRITER,
    steps=True,
    published=(Published("BartForConditionalGeneration", CNN_CONFIG, CNN),),
    elsewhere=("decoder_start_token_id",),  # test_bart.py
)
