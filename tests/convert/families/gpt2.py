"""GPT-2."""

import jax
import numpy as np
import torch
from cases import MASK, Case, Layers, Made, Older, Published, given, words
from parity import bound

from families.listed import linear, stack
from mmjax.objectives import CausalLM

BATCH = {"text": words(pad=0), "text_mask": MASK}
LANGUAGE = Made("GPT2LMHeadModel", {"caption": "logits"})
BASE = Made("GPT2Model", {"tokens.text": "last_hidden_state"})


def rates(part):
    names = {"resid_pdrop": (0.3, "dropout"), "embd_pdrop": (0.2, "embed_dropout"), "attn_pdrop": (0.4, "attention_dropout")}
    return {field: (value, (f"{part}.{leaf}",)) for field, (value, leaf) in names.items()}


def their_loss(model, batch):
    labels = torch.tensor(np.where(MASK, batch["text"], -100).astype(np.int64))
    return model(**given(model, batch), labels=labels).loss


def our_loss(model, params, batch):
    """Of `CausalLM` without context, which is HuggingFace's own."""
    forward = bound(model, params, batch)
    loss = CausalLM(context=())(forward, forward.batch, jax.random.key(0))
    return loss.sum / loss.count


def earlier_config(config):
    """What has a default is not said, and the rest by other names."""
    names = {"n_embd": "hidden_size", "n_head": "num_attention_heads"}
    kept = {"vocab_size", "n_embd", "n_head", "n_positions", "model_type", "architectures"}
    return {names.get(name, name): value for name, value in config.items() if name in kept} | {"n_ctx": 13}


def earlier_tensors(model, tensors):
    """No prefix, the causal mask as buffers, the tied output written out."""
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    for n in range(12):
        tensors[f"h.{n}.attn.bias"] = np.tril(np.ones((13, 13), np.float32))[None, None]
        tensors[f"h.{n}.attn.masked_bias"] = np.array(-1e4, np.float32)
    return tensors | {"lm_head.weight": tensors["wte.weight"]}


LAYER = {
    **linear("ln_1", 768),
    "attn.bias": (1, 1, 1024, 1024),
    "attn.c_attn.weight": (768, 2304),
    "attn.c_attn.bias": (2304,),
    **linear("attn.c_proj", 768, 768),
    **linear("ln_2", 768),
    "mlp.c_fc.weight": (768, 3072),
    "mlp.c_fc.bias": (3072,),
    "mlp.c_proj.weight": (3072, 768),
    "mlp.c_proj.bias": (768,),
}
LISTED = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768), **stack("h", 12, LAYER), **linear("ln_f", 768)}

GPT2 = Case(
    "gpt2",
    sizes={"vocab_size": 37, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 13, "pad_token_id": 0},
    batch=lambda model: BATCH,
    models=(
        BASE,
        LANGUAGE,
        LANGUAGE.of({"tie_word_embeddings": False}),
        LANGUAGE.of({"reorder_and_upcast_attn": True, "attn_implementation": "eager"}),
        Made("GPT2ForSequenceClassification", {"classes": "logits"}, {"num_labels": 5}),
        Made("GPT2ForTokenClassification", {"token_classes": "logits"}, {"num_labels": 5}),
    ),
    honoured=(
        (
            LANGUAGE,
            {
                "vocab_size": 41,
                "n_embd": 36,
                "n_layer": 2,
                "n_head": 4,
                "n_inner": 20,
                "activation_function": "relu",
                "n_positions": 9,
                "layer_norm_epsilon": 1e-2,
                "tie_word_embeddings": False,
            },
        ),
    ),
    training=((LANGUAGE, rates("decoders.caption")), (BASE, rates("encoders.text"))),
    inert=(
        (
            LANGUAGE,
            {
                "reorder_and_upcast_attn": True,
                "classifier_dropout": 0.5,
                "summary_type": "mean",
                "summary_use_proj": False,
                "summary_activation": "tanh",
                "summary_proj_to_labels": False,
                "summary_first_dropout": 0.5,
            },
        ),
    ),
    refused={"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True},
    layers=Layers(BASE, {"text": "hidden_states"}, normed=True),
    gradient=LANGUAGE.of({"tie_word_embeddings": False}),
    loss=(their_loss, our_loss),
    older={"files of version 2": Older(LANGUAGE.of({"n_layer": 12}), earlier_config, earlier_tensors)},
    published=(  # openai-community/gpt2: names without a prefix, the causal mask as a buffer
        Published(
            "GPT2LMHeadModel",
            {"n_ctx": 1024, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
            LISTED,
        ),
    ),
)
