"""RoBERTa beside HuggingFace's; what it shares with BERT is shown there."""

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
    compiled,
    hidden_states,
    honoured_fields,
    inert_fields,
    map_completely,
    randomise,
    round_trip,
    save,
)

from mmjax.convert import load, save_hf
from mmjax.core.errors import UserError

SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 15,
    "layer_norm_eps": 1e-5,
}
RNG = np.random.default_rng(0)
MASK = np.arange(9)[None] < np.array([[9], [5], [7]])
IDS = np.where(MASK, RNG.integers(5, 37, (3, 9)), 1)
SEGMENTS = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1]]).repeat(3, axis=0)
INPUTS = {
    "input_ids": torch.tensor(IDS),
    "attention_mask": torch.tensor(MASK.astype(np.int64)),
    "token_type_ids": torch.tensor(SEGMENTS),
}
BATCH = {"text": IDS.astype(np.int32), "text_mask": MASK, "text_segments": SEGMENTS.astype(np.int32)}
HEADS = {
    "RobertaModel": ("pooler", "pooler_output"),
    "RobertaForSequenceClassification": ("classes", "logits"),
    "RobertaForTokenClassification": ("token_classes", "logits"),
}


def make(name="RobertaForMaskedLM", **changes):
    return randomise(getattr(hf, name)(hf.RobertaConfig(**{**SIZES, **changes})))


def ours(model, params, head="masked_lm"):
    def run(params):
        forward = bound(model, params, BATCH)
        return forward.head(head, forward.encode("text"), key="x")

    return compiled(run)(params)


@pytest.mark.parametrize("name", HEADS)
def test_outputs_and_bits(name, tmp_path):
    theirs = make(name, **({"num_labels": 5} if "Classification" in name else {}))
    model, params = round_trip(theirs, tmp_path)
    head, field = HEADS[name]
    assert_close(ours(model, params, head), theirs(**INPUTS)[field], where=MASK if head == "token_classes" else None)


@pytest.mark.parametrize("tied", [True, False])
def test_masked_lm(tied, tmp_path):
    theirs = make(tie_word_embeddings=tied)
    model, params = round_trip(theirs, tmp_path)
    assert_close(ours(model, params), theirs(**INPUTS).logits, where=MASK)


def test_layer_by_layer(tmp_path):
    theirs = make("RobertaModel")
    model, params = load(save(theirs, tmp_path / "hf"))
    states = hidden_states(model, params, "encode", "text", BATCH["text"], MASK, BATCH["text_segments"])
    for layer, state in zip(theirs(**INPUTS, output_hidden_states=True).hidden_states[1:], states, strict=True):
        assert_close(state, layer, where=MASK)


def test_gradient(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    weight = RNG.normal(size=(3, 9, 37)).astype(np.float32) * MASK[..., None]
    loss = (theirs(**INPUTS).logits * torch.tensor(weight)).sum()
    check_gradient(theirs, loss, model, params, lambda p: (ours(model, p) * weight).sum())


def test_the_longest_text(tmp_path):
    """15 rows of positions, of which the padding id's and the one before it are no token's."""
    theirs = make("RobertaModel")
    model, params = round_trip(theirs, tmp_path)
    assert (model.encoders["text"].max_length, model.encoders["text"].position_offset) == (13, 2)
    ids = RNG.integers(5, 37, (2, 13))
    tokens = bound(model, params, {"text": ids.astype(np.int32)}).encode("text")
    assert_close(tokens.embeddings, theirs(torch.tensor(ids)).last_hidden_state)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["max_position_embeddings"] == 15
    with pytest.raises(UserError, match="a text of 14 tokens is longer than the model's max_length=13"):
        bound(model, params, {"text": np.zeros((1, 14), np.int32)}).encode("text")


CHANGES = {
    "vocab_size": 41,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "hidden_act": "relu",
    "max_position_embeddings": 11,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-2,
    "tie_word_embeddings": False,
    "pad_token_id": 4,
}
TRAINING = {"hidden_dropout_prob", "attention_probs_dropout_prob"}


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("roberta", hf.RobertaConfig())
    assert honoured_fields("roberta") == CHANGES.keys() | TRAINING
    assert inert_fields("roberta") == {"classifier_dropout"}
    keep = lambda x: np.asarray(x.detach() if hasattr(x, "detach") else x)[MASK]  # noqa: E731
    build = lambda changes: make(**changes)  # noqa: E731
    together = {name: value for name, value in CHANGES.items() if name != "pad_token_id"}
    for changes in (together, {"pad_token_id": CHANGES["pad_token_id"]}):  # a text may not be longer than both leave
        outputs = lambda m: keep(m(**INPUTS).logits)  # noqa: E731
        check_honoured(build, outputs, lambda m, p: keep(ours(m, p)), changes, tmp_path / str(len(changes)))
    check_inert(build, lambda m: keep(m(**INPUTS).logits), {"classifier_dropout": 0.5})
    model, _ = load(save(make(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2), tmp_path / "dropout"))
    assert (model.encoders["text"].dropout, model.encoders["text"].attention_dropout) == (0.3, 0.2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type='relative_key' is not supported by roberta here",
        ),
        ({"is_decoder": True}, "is_decoder=True is not supported by roberta here; it must be False"),
        ({"pad_token_id": None}, r"pad_token_id=None: positions count from it, so it must be in \[0, 14\)"),
        ({"architectures": ["RobertaForCausalLM"]}, "architectures='RobertaForCausalLM' is not supported for roberta"),
    ],
)
def test_refusals(change, said, tmp_path):
    folder = save(make(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        load(folder)


def test_a_config_without_defaults_is_read_and_written(tmp_path):
    """As old files are: what is not said is the default."""
    theirs = make(max_position_embeddings=512, type_vocab_size=2)
    folder = save(theirs, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    kept = SIZES.keys() - {"max_position_embeddings"} | {"model_type", "architectures"}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k in kept} | {"torch_dtype": "float32"}))
    model, params = load(folder)
    assert model.encoders["text"].max_length == 510
    assert_close(ours(model, params), theirs(**INPUTS).logits, where=MASK)
    save_hf(model, params, tmp_path / "back")
    assert hf.RobertaForMaskedLM.from_pretrained(tmp_path / "back").config.max_position_embeddings == 512


def test_the_public_checkpoint_maps_completely():
    """FacebookAI/roberta-base: the tied output written out, a pooler that no task trained, a buffer of positions."""
    layer = {
        **{f"attention.self.{n}.weight": (768, 768) for n in ("query", "key", "value")},
        **{f"attention.self.{n}.bias": (768,) for n in ("query", "key", "value")},
        "attention.output.dense.weight": (768, 768),
        "attention.output.dense.bias": (768,),
        "attention.output.LayerNorm.weight": (768,),
        "attention.output.LayerNorm.bias": (768,),
        "intermediate.dense.weight": (3072, 768),
        "intermediate.dense.bias": (3072,),
        "output.dense.weight": (768, 3072),
        "output.dense.bias": (768,),
        "output.LayerNorm.weight": (768,),
        "output.LayerNorm.bias": (768,),
    }
    listed = {
        "roberta.embeddings.position_ids": (1, 514),
        "roberta.embeddings.word_embeddings.weight": (50265, 768),
        "roberta.embeddings.position_embeddings.weight": (514, 768),
        "roberta.embeddings.token_type_embeddings.weight": (1, 768),
        "roberta.embeddings.LayerNorm.weight": (768,),
        "roberta.embeddings.LayerNorm.bias": (768,),
        **{f"roberta.encoder.layer.{n}.{name}": shape for n in range(12) for name, shape in layer.items()},
        "roberta.pooler.dense.weight": (768, 768),
        "roberta.pooler.dense.bias": (768,),
        "lm_head.bias": (50265,),
        "lm_head.dense.weight": (768, 768),
        "lm_head.dense.bias": (768,),
        "lm_head.layer_norm.weight": (768,),
        "lm_head.layer_norm.bias": (768,),
        "lm_head.decoder.weight": (50265, 768),
    }
    config = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    map_completely("roberta", "RobertaForMaskedLM", config, listed)
