"""Llama."""

from cases import MASK, Case, Layers, Made, Older, Published, words

from families.listed import llama_layer, stack

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 200,
}
LENGTH = "original_max_position_embeddings"
SCALED = {name: value for name, value in LLAMA3.items() if name not in ("rope_theta", LENGTH)}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
BATCH = {"text": words(pad=0), "text_mask": MASK}
LANGUAGE = Made("LlamaForCausalLM", {"caption": "logits"})
BASE = Made("LlamaModel", {"tokens.text": "last_hidden_state"}, {"mlp_bias": True})


def older(changes, usual=None, scaling=None, theta=10000.0, longest=13):
    """A file of version 4, which said the rotation by other keys; its answers differ from those of `usual`."""

    def config(changes):
        def rewrite(config):
            kept = {name: x for name, x in config.items() if name not in ("rope_parameters", "dtype", "rope_theta")}
            return kept | {"rope_scaling": None, "torch_dtype": "float32"} | changes

        return rewrite

    written = {"rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": longest}
    return Older(LANGUAGE, config(changes), usual=config(usual or {}), written=written)


LISTED = {
    "lm_head.weight": (32000, 2048),
    "model.embed_tokens.weight": (32000, 2048),
    **stack("model.layers", 22, {**llama_layer(2048, 5632, 256), "self_attn.rotary_emb.inv_freq": (32,)}),
    "model.norm.weight": (2048,),
}
CONFIG = {
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 32000,
}

LLAMA = Case(
    "llama",
    sizes={
        "vocab_size": 37,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 40,
        "max_position_embeddings": 13,
        "pad_token_id": 0,
    },
    batch=lambda model: BATCH,
    models=(
        BASE,
        LANGUAGE,
        LANGUAGE.of({"tie_word_embeddings": True, "attention_bias": True}),
        Made("LlamaForSequenceClassification", {"classes": "logits"}, {"num_labels": 5}),
    ),
    honoured=(
        (
            LANGUAGE,
            {
                "vocab_size": 41,
                "hidden_size": 36,
                "intermediate_size": 20,
                "num_hidden_layers": 2,
                "num_attention_heads": 6,
                "num_key_value_heads": 1,
                "head_dim": 6,
                "rms_norm_eps": 1e-2,
                "tie_word_embeddings": True,
                "attention_bias": True,
                "mlp_bias": True,
                "rope_parameters": LLAMA3,
                "rope_parameters.rope_theta": 100.0,
            },
        ),
        (LANGUAGE, {"num_key_value_heads": None, "rope_parameters": LINEAR}),
    ),
    training=((LANGUAGE, {"attention_dropout": (0.2, ("decoders.caption.attention_dropout",))}),),
    elsewhere=("rope_theta", "rope_scaling", "max_position_embeddings"),  # see `older`
    inert=((LANGUAGE, {"pretraining_tp": 2, "max_position_embeddings": 99}),),
    refused={"hidden_act": "gelu", LENGTH: 9},
    mistakes=(
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported by llama here; it must be 'silu' or 'swish'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_parameters.rope_type='dynamic' is not supported here"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters.rope_type='yarn' is not supported here"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing, which rope_type='linear' needs"),
        ({"partial_rotary_factor": 0.5}, "rope_parameters.partial_rotary_factor=0.5 is not supported here; use 1.0"),
        ({"architectures": ["LlamaForTokenClassification"]}, "architectures='LlamaForTokenClassification' is not supported"),
    ),
    layers=Layers(BASE, {"text": "hidden_states"}, normed=True),
    gradient=LANGUAGE.of({"attention_bias": True, "mlp_bias": True}),
    older={
        "rope_theta": older({"rope_theta": 70.0}, theta=70.0),
        "rope_scaling": older({"rope_scaling": {"type": "linear", "factor": 3.0}}, scaling={"type": "linear", "factor": 3.0}),
        "both": older(
            {"rope_theta": 500.0, "rope_scaling": {**SCALED, LENGTH: 200}}, scaling={**SCALED, LENGTH: 200}, theta=500.0
        ),
        "max_position_embeddings": older(  # a length counts where it is that of the scaling
            {"rope_scaling": SCALED, "max_position_embeddings": 99},
            usual={"rope_scaling": SCALED},
            scaling={**SCALED, LENGTH: 99},
            longest=99,
        ),
    },
    # TinyLlama/TinyLlama-1.1B, written by version 4, with the buffers that earlier versions kept.
    published=(Published("LlamaForCausalLM", CONFIG, LISTED),),
)
