"""GPT-2 beside HuggingFace's."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers as hf
from parity import (
    assert_close,
    bound,
    check_gradient,
    check_honoured,
    check_inert,
    check_table,
    compiled,
    hidden_states,
    honoured_fields,
    inert_fields,
    map_completely,
    randomise,
    refused_fields,
    round_trip,
    save,
)
from safetensors.numpy import load_file, save_file

from mmjax.convert import load
from mmjax.core.errors import UserError
from mmjax.objectives import CausalLM

SIZES = {"vocab_size": 37, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 13, "pad_token_id": 0}
RNG = np.random.default_rng(0)
MASK = np.arange(9)[None] < np.array([[9], [5], [7]])
IDS = np.where(MASK, RNG.integers(1, 37, (3, 9)), 0)
INPUTS = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(MASK.astype(np.int64))}
BATCH = {"text": IDS.astype(np.int32), "text_mask": MASK}
HEADS = {"GPT2ForSequenceClassification": "classes", "GPT2ForTokenClassification": "token_classes"}


def make(name="GPT2LMHeadModel", **changes):
    return randomise(getattr(hf, name)(hf.GPT2Config(**{**SIZES, **changes})))


def ours(model, params):
    return compiled(lambda params: bound(model, params, BATCH).decode("caption", BATCH))(params)


@pytest.mark.parametrize("name", HEADS)
def test_outputs_and_bits(name, tmp_path):
    theirs = make(name, num_labels=5)
    model, params = round_trip(theirs, tmp_path)

    def logits(params):
        forward = bound(model, params, BATCH)
        return forward.head(HEADS[name], forward.encode("text"), key="x")

    assert_close(compiled(logits)(params), theirs(**INPUTS).logits, where=MASK if HEADS[name] == "token_classes" else None)


@pytest.mark.parametrize("tied", [True, False])
def test_language_model(tied, tmp_path):
    theirs = make(tie_word_embeddings=tied)
    model, params = round_trip(theirs, tmp_path)
    assert not model.encoders
    assert_close(ours(model, params), theirs(**INPUTS).logits, where=MASK)


def test_layer_by_layer(tmp_path):
    """HuggingFace's last state is the one after the last norm."""
    theirs = make("GPT2Model")
    model, params = round_trip(theirs, tmp_path)
    states = hidden_states(model, params, "encode", "text", BATCH["text"], MASK)
    states[-1] = bound(model, params, BATCH).encode("text").embeddings
    for layer, state in zip(theirs(**INPUTS, output_hidden_states=True).hidden_states[1:], states, strict=True):
        assert_close(state, layer, where=MASK)


def test_gradient_of_the_objective(tmp_path):
    """The loss of `CausalLM` without context is HuggingFace's own."""
    theirs = make(tie_word_embeddings=False)
    model, params = load(save(theirs, tmp_path / "hf"))
    labels = torch.tensor(np.where(MASK, IDS, -100))

    def our_loss(p):
        forward = bound(model, p, BATCH)
        loss = CausalLM(context=())(forward, forward.batch, jax.random.key(0))
        return loss.sum / loss.count

    check_gradient(theirs, theirs(**INPUTS, labels=labels).loss, model, params, our_loss)


CHANGES = {
    "vocab_size": 41,
    "n_embd": 36,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 20,
    "activation_function": "relu",
    "n_positions": 9,
    "layer_norm_epsilon": 1e-2,
    "tie_word_embeddings": False,
}
TRAINING = {"resid_pdrop": 0.3, "embd_pdrop": 0.2, "attn_pdrop": 0.4}
INERT = {
    "reorder_and_upcast_attn": True,
    "classifier_dropout": 0.5,
    "summary_type": "mean",
    "summary_use_proj": False,
    "summary_activation": "tanh",
    "summary_proj_to_labels": False,
    "summary_first_dropout": 0.5,
}


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("gpt2", hf.GPT2Config())
    assert honoured_fields("gpt2") == CHANGES.keys() | TRAINING.keys()
    assert inert_fields("gpt2") == INERT.keys()
    keep = lambda x: np.asarray(x.detach() if hasattr(x, "detach") else x)[MASK]  # noqa: E731
    build = lambda changes: make(**changes)  # noqa: E731
    check_honoured(build, lambda m: keep(m(**INPUTS).logits), lambda m, p: keep(ours(m, p)), CHANGES, tmp_path)
    check_inert(build, lambda m: keep(m(**INPUTS).logits), INERT)
    for name, part in (("GPT2LMHeadModel", "decoders.caption"), ("GPT2Model", "encoders.text")):
        model, _ = load(save(make(name, **TRAINING), tmp_path / name))
        kind, _, key = part.partition(".")
        trunk = getattr(model, kind)[key]
        assert (trunk.dropout, trunk.embed_dropout, trunk.attention_dropout) == tuple(TRAINING.values())


def test_attention_upcast_and_reordered_is_ours(tmp_path):
    theirs = make(reorder_and_upcast_attn=True, attn_implementation="eager")
    assert_close(ours(*load(save(theirs, tmp_path / "hf"))), theirs(**INPUTS).logits, where=MASK)


REFUSED = {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True}


@pytest.mark.parametrize("field", REFUSED)
def test_refusals(field, tmp_path):
    assert refused_fields("gpt2") == REFUSED.keys()
    folder = save(make(), tmp_path / "hf")
    rewrite_config(folder, lambda config: config | {field: REFUSED[field]})
    with pytest.raises(UserError, match=f"{field}={REFUSED[field]} is not supported by gpt2 here; it must be"):
        load(folder)


def test_files_of_older_versions(tmp_path):
    """No prefix, the causal mask as buffers, the tied output written out; fields that are not said, or by other names."""
    theirs = make(n_layer=12)
    folder = save(theirs, tmp_path / "hf")
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    tensors |= {f"h.{n}.attn.bias": np.tril(np.ones((13, 13), np.float32))[None, None] for n in range(12)}
    tensors |= {f"h.{n}.attn.masked_bias": np.array(-1e4, np.float32) for n in range(12)}
    save_file(tensors | {"lm_head.weight": tensors["wte.weight"]}, folder / "model.safetensors")
    names = {"n_embd": "hidden_size", "n_head": "num_attention_heads"}
    kept = {"vocab_size", "n_embd", "n_head", "n_positions", "model_type", "architectures"}
    rewrite_config(folder, lambda c: {names.get(k, k): v for k, v in c.items() if k in kept} | {"n_ctx": 13})
    assert_close(ours(*load(folder)), theirs(**INPUTS).logits, where=MASK)


def rewrite_config(folder, change):
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def test_the_public_checkpoint_maps_completely():
    """openai-community/gpt2: names without a prefix, the causal mask as a buffer."""
    layer = {
        "ln_1.weight": (768,),
        "ln_1.bias": (768,),
        "attn.bias": (1, 1, 1024, 1024),
        "attn.c_attn.weight": (768, 2304),
        "attn.c_attn.bias": (2304,),
        "attn.c_proj.weight": (768, 768),
        "attn.c_proj.bias": (768,),
        "ln_2.weight": (768,),
        "ln_2.bias": (768,),
        "mlp.c_fc.weight": (768, 3072),
        "mlp.c_fc.bias": (3072,),
        "mlp.c_proj.weight": (3072, 768),
        "mlp.c_proj.bias": (768,),
    }
    listed = {
        "wte.weight": (50257, 768),
        "wpe.weight": (1024, 768),
        **{f"h.{n}.{name}": shape for n in range(12) for name, shape in layer.items()},
        "ln_f.weight": (768,),
        "ln_f.bias": (768,),
    }
    config = {"n_ctx": 1024, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}
    map_completely("gpt2", "GPT2LMHeadModel", config, listed)
