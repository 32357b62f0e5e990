"""BERT beside HuggingFace's."""

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

from mmjax.convert import load
from mmjax.core.errors import UserError

SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 13,
}
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 37, (3, 9))
MASK = np.arange(9)[None] < np.array([[9], [5], [7]])
SEGMENTS = (np.arange(9)[None] >= np.array([[4], [3], [9]])).astype(np.int64)
INPUTS = {
    "input_ids": torch.tensor(IDS),
    "attention_mask": torch.tensor(MASK.astype(np.int64)),
    "token_type_ids": torch.tensor(SEGMENTS),
}
BATCH = {"text": IDS.astype(np.int32), "text_mask": MASK, "text_segments": SEGMENTS.astype(np.int32)}
HEADS = {
    "BertModel": ("pooler", "pooler_output"),
    "BertForMaskedLM": ("masked_lm", "logits"),
    "BertForNextSentencePrediction": ("next_sentence", "logits"),
    "BertForSequenceClassification": ("classes", "logits"),
    "BertForTokenClassification": ("token_classes", "logits"),
}


def make(name="BertForMaskedLM", **changes):
    return randomise(getattr(hf, name)(hf.BertConfig(**{**SIZES, **changes})))


def ours(model, params, head="masked_lm"):
    def run(params):
        forward = bound(model, params, BATCH)
        return forward.head(head, forward.encode("text"), key="x")

    return compiled(run)(params)


@pytest.mark.parametrize("name", HEADS)
def test_outputs_and_bits(name, tmp_path):
    labels = {"num_labels": 5} if "Classification" in name else {}
    theirs = make(name, **labels)
    model, params = round_trip(theirs, tmp_path)
    head, field = HEADS[name]
    token_level = head in ("masked_lm", "token_classes")
    assert_close(ours(model, params, head), theirs(**INPUTS)[field], where=MASK if token_level else None)


@pytest.mark.parametrize("tied", [True, False])
def test_pretraining_has_both_heads(tied, tmp_path):
    theirs = make("BertForPreTraining", tie_word_embeddings=tied)
    model, params = round_trip(theirs, tmp_path)
    out = theirs(**INPUTS)
    assert_close(ours(model, params), out.prediction_logits, where=MASK)
    assert_close(ours(model, params, "next_sentence"), out.seq_relationship_logits)


def test_layer_by_layer(tmp_path):
    theirs = make("BertModel")
    model, params = load(save(theirs, tmp_path / "hf"))
    states = hidden_states(
        model, params, "encode", "text", *(np.asarray(BATCH[f"text{k}"]) for k in ("", "_mask", "_segments"))
    )
    for layer, state in zip(theirs(**INPUTS, output_hidden_states=True).hidden_states[1:], states, strict=True):
        assert_close(state, layer, where=MASK)


def test_gradient(tmp_path):
    theirs = make("BertForPreTraining")
    model, params = load(save(theirs, tmp_path / "hf"))
    weight = RNG.normal(size=(3, 9, 37)).astype(np.float32) * MASK[..., None]
    out = theirs(**INPUTS)
    loss = (out.prediction_logits * torch.tensor(weight)).sum() + out.seq_relationship_logits[:, 0].square().sum()

    def our_loss(p):
        return (ours(model, p) * weight).sum() + (ours(model, p, "next_sentence")[:, 0] ** 2).sum()

    check_gradient(theirs, loss, model, params, our_loss)


CHANGES = {
    "vocab_size": 41,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 9,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-2,
    "tie_word_embeddings": False,
}
TRAINING = {"hidden_dropout_prob", "attention_probs_dropout_prob"}  # see test_dropout_rates


def test_every_field_is_honoured_refused_or_inert(tmp_path):
    check_table("bert", hf.BertConfig())
    assert honoured_fields("bert") == CHANGES.keys() | TRAINING
    assert inert_fields("bert") == {"classifier_dropout"}
    keep = lambda x: np.asarray(x.detach() if hasattr(x, "detach") else x)[MASK]  # noqa: E731
    build = lambda changes: make(**changes)  # noqa: E731
    check_honoured(build, lambda m: keep(m(**INPUTS).logits), lambda m, p: keep(ours(m, p)), CHANGES, tmp_path)
    check_inert(build, lambda m: keep(m(**INPUTS).logits), {"classifier_dropout": 0.5})


def test_dropout_rates(tmp_path):
    model, _ = load(save(make(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2), tmp_path / "hf"))
    assert (model.encoders["text"].dropout, model.encoders["text"].attention_dropout) == (0.3, 0.2)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"])
def test_activations(act, tmp_path):
    theirs = make(hidden_act=act)
    model, params = load(save(theirs, tmp_path / "hf"))
    assert_close(ours(model, params), theirs(**INPUTS).logits, where=MASK)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported by bert here"),
        ({"is_decoder": True}, "is_decoder=True is not supported by bert here; it must be False"),
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported here"),
        ({"architectures": ["BertLMHeadModel"]}, "architectures='BertLMHeadModel' is not supported for bert"),
    ],
)
def test_refusals(change, said, tmp_path):
    import json

    folder = save(make(), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        load(folder)


def test_the_public_checkpoint_maps_completely():
    """google-bert/bert-base-uncased: written by an early version, with gamma and beta and every head of pretraining."""
    layer = {
        **{
            f"attention.self.{n}.{p}": s
            for n in ("query", "key", "value")
            for p, s in (("weight", (768, 768)), ("bias", (768,)))
        },
        "attention.output.dense.weight": (768, 768),
        "attention.output.dense.bias": (768,),
        "attention.output.LayerNorm.gamma": (768,),
        "attention.output.LayerNorm.beta": (768,),
        "intermediate.dense.weight": (3072, 768),
        "intermediate.dense.bias": (3072,),
        "output.dense.weight": (768, 3072),
        "output.dense.bias": (768,),
        "output.LayerNorm.gamma": (768,),
        "output.LayerNorm.beta": (768,),
    }
    listed = {
        "bert.embeddings.LayerNorm.beta": (768,),
        "bert.embeddings.LayerNorm.gamma": (768,),
        "bert.embeddings.position_embeddings.weight": (512, 768),
        "bert.embeddings.token_type_embeddings.weight": (2, 768),
        "bert.embeddings.word_embeddings.weight": (30522, 768),
        **{f"bert.encoder.layer.{n}.{name}": shape for n in range(12) for name, shape in layer.items()},
        "bert.pooler.dense.bias": (768,),
        "bert.pooler.dense.weight": (768, 768),
        "cls.predictions.bias": (30522,),
        "cls.predictions.transform.LayerNorm.beta": (768,),
        "cls.predictions.transform.LayerNorm.gamma": (768,),
        "cls.predictions.transform.dense.bias": (768,),
        "cls.predictions.transform.dense.weight": (768, 768),
        "cls.seq_relationship.bias": (2,),
        "cls.seq_relationship.weight": (2, 768),
    }
    map_completely("bert", "BertForPreTraining", {}, listed)
