"""Llama beside HuggingFace's."""

import json

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
    hidden_states,
    honoured_fields,
    inert_fields,
    map_completely,
    part,
    randomise,
    refused_fields,
    round_trip,
    save,
)

from mmjax.convert import load, save_hf
from mmjax.core.errors import UserError

SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 40,
    "max_position_embeddings": 13,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 200,
}
RNG = np.random.default_rng(0)
MASK = np.arange(9)[None] < np.array([[9], [5], [7]])
IDS = RNG.integers(1, 37, (3, 9)) * MASK
INPUTS = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(MASK.astype(np.int64))}
BATCH = {"text": IDS.astype(np.int32), "text_mask": MASK}


def make(name="LlamaForCausalLM", **changes):
    if "rope_parameters.rope_theta" in changes:
        changes["rope_parameters"] = {"rope_type": "default", "rope_theta": changes.pop("rope_parameters.rope_theta")}
    return randomise(getattr(hf, name)(hf.LlamaConfig(**{**SIZES, **changes})))


def logits(model, params):
    return bound(model, params, BATCH).decode("caption", BATCH)


def ours(model, params):
    return part(logits, model, params, ("decoders.caption",))


@pytest.mark.parametrize("tied", [True, False])
def test_language_model(tied, tmp_path):
    theirs = make(tie_word_embeddings=tied, attention_bias=tied)
    model, params = round_trip(theirs, tmp_path)
    assert_close(ours(model, params), theirs(**INPUTS).logits, where=MASK)


def test_layer_by_layer(tmp_path):
    theirs = make("LlamaModel", mlp_bias=True)
    model, params = round_trip(theirs, tmp_path)
    states = hidden_states(model, params, "encode", "text", BATCH["text"], MASK)
    out = theirs(**INPUTS, output_hidden_states=True)
    assert len(states) == 3
    for layer, state in zip(out.hidden_states[1:-1], states[:-1], strict=True):
        assert_close(state, layer, where=MASK)
    final = part(lambda m, p: bound(m, p, BATCH).encode("text").embeddings, model, params, ("encoders.text",))
    assert_close(final, out.last_hidden_state, where=MASK)


def test_classification_of_the_last_real_token(tmp_path):
    theirs = make("LlamaForSequenceClassification", num_labels=5)
    model, params = round_trip(theirs, tmp_path)
    forward = bound(model, params, BATCH)
    assert_close(forward.head("classes", forward.encode("text"), key="x"), theirs(**INPUTS).logits)


def test_gradient(tmp_path):
    theirs = make(attention_bias=True, mlp_bias=True)
    model, params = load(save(theirs, tmp_path / "hf"))
    weight = RNG.normal(size=(3, 9, 37)).astype(np.float32) * MASK[..., None]
    loss = (theirs(**INPUTS).logits * torch.tensor(weight)).sum()
    check_gradient(theirs, loss, model, params, lambda p: (ours(model, p) * weight).sum())


CHANGES = {
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
}
AGAIN = {"num_key_value_heads": None, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}}
LENGTH = "original_max_position_embeddings"
SCALED = {k: v for k, v in LLAMA3.items() if k not in ("rope_theta", LENGTH)}
# What files of version 4 say, beside which the other is the change; a length counts where it is that of the scaling.
OLDER = {
    "rope_theta": ({}, {"rope_theta": 70.0}),
    "rope_scaling": ({}, {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    "both": ({}, {"rope_theta": 500.0, "rope_scaling": {**SCALED, LENGTH: 200}}),
    "max_position_embeddings": ({"rope_scaling": SCALED}, {"rope_scaling": SCALED, "max_position_embeddings": 99}),
}


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("llama", hf.LlamaConfig())
    assert honoured_fields("llama") == CHANGES.keys() | OLDER.keys() - {"both"} | {"attention_dropout"}
    assert inert_fields("llama") == {"pretraining_tp"}
    assert refused_fields("llama") == {"hidden_act", "original_max_position_embeddings"}
    keep = lambda x: np.asarray(x.detach() if hasattr(x, "detach") else x)[MASK]  # noqa: E731
    build = lambda changes: make(**changes)  # noqa: E731
    for changes, folder in ((CHANGES, "once"), (AGAIN, "again")):
        check_honoured(build, lambda m: keep(m(**INPUTS).logits), lambda m, p: keep(ours(m, p)), changes, tmp_path / folder)
    inert = {"pretraining_tp": 2, "max_position_embeddings": 99}
    check_inert(build, lambda m: keep(m(**INPUTS).logits), inert)


def test_attention_dropout(tmp_path):
    theirs = make(attention_dropout=0.2)
    model, _ = load(save(theirs, tmp_path / "hf"))
    assert model.decoders["caption"].attention_dropout == 0.2
    assert not torch.equal(theirs.train()(**INPUTS).logits, theirs.eval()(**INPUTS).logits)


def older(folder, changes):
    """Give config.json the keys of version 4, with these changes; HuggingFace's logits then."""
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in ("rope_parameters", "dtype", "rope_theta")}
    (folder / "config.json").write_text(json.dumps(kept | {"rope_scaling": None, "torch_dtype": "float32"} | changes))
    return hf.LlamaForCausalLM.from_pretrained(folder).eval()(**INPUTS).logits


@pytest.mark.parametrize("case", OLDER)
def test_older_keys_mean_the_same_and_are_kept(case, tmp_path):
    usual, changes = OLDER[case]
    folder = save(make(), tmp_path / "hf")
    before, theirs = older(folder, usual), older(folder, changes)
    assert (theirs - before).abs().max() > 1e-4 * before.abs().max()
    model, params = load(folder)
    assert_close(ours(model, params), theirs, where=MASK)
    save_hf(model, params, tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["rope_theta"] == changes.get("rope_theta", 10000.0)
    scaling = changes.get("rope_scaling")
    assert written["rope_scaling"] == (scaling if "max_position_embeddings" not in changes else {**SCALED, LENGTH: 99})
    assert written["max_position_embeddings"] == changes.get("max_position_embeddings", 13)
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(again(**INPUTS).logits, theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported by llama here; it must be 'silu' or 'swish'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_parameters.rope_type='dynamic' is not supported here"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters.rope_type='yarn' is not supported here"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing, which rope_type='linear' needs"),
        ({"partial_rotary_factor": 0.5}, "rope_parameters.partial_rotary_factor=0.5 is not supported here; use 1.0"),
        ({"architectures": ["LlamaForTokenClassification"]}, "architectures='LlamaForTokenClassification' is not supported"),
    ],
)
def test_refusals(change, said, tmp_path):
    folder = save(make(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        load(folder)


def test_the_public_checkpoint_maps_completely():
    """TinyLlama/TinyLlama-1.1B, written by version 4, with the buffers that earlier versions kept."""
    layer = {
        "input_layernorm.weight": (2048,),
        "mlp.down_proj.weight": (2048, 5632),
        "mlp.gate_proj.weight": (5632, 2048),
        "mlp.up_proj.weight": (5632, 2048),
        "post_attention_layernorm.weight": (2048,),
        "self_attn.k_proj.weight": (256, 2048),
        "self_attn.o_proj.weight": (2048, 2048),
        "self_attn.q_proj.weight": (2048, 2048),
        "self_attn.rotary_emb.inv_freq": (32,),
        "self_attn.v_proj.weight": (256, 2048),
    }
    listed = {
        "lm_head.weight": (32000, 2048),
        "model.embed_tokens.weight": (32000, 2048),
        **{f"model.layers.{n}.{name}": shape for n in range(22) for name, shape in layer.items()},
        "model.norm.weight": (2048,),
    }
    config = {
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
    map_completely("llama", "LlamaForCausalLM", config, listed)
