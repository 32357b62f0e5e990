"""BERT."""

import torch
from cases import MASK, SEGMENTS, Case, Layers, Made, Published, given, words

from families.listed import bert_layer, linear, stack

BATCH = {"text": words(), "text_mask": MASK, "text_segments": SEGMENTS}
MASKED_LM = Made("BertForMaskedLM", {"masked_lm": "logits"})
BASE = Made("BertModel", {"pooler": "pooler_output"})
BOTH = Made("BertForPreTraining", {"masked_lm": "prediction_logits", "next_sentence": "seq_relationship_logits"})
RATES = {
    "hidden_dropout_prob": (0.3, ("encoders.text.dropout",)),
    "attention_probs_dropout_prob": (0.2, ("encoders.text.attention_dropout",)),
}
NORM = ("gamma", "beta")
LISTED = {
    **{f"bert.embeddings.LayerNorm.{name}": (768,) for name in NORM},
    "bert.embeddings.position_embeddings.weight": (512, 768),
    "bert.embeddings.token_type_embeddings.weight": (2, 768),
    "bert.embeddings.word_embeddings.weight": (30522, 768),
    **stack("bert.encoder.layer", 12, bert_layer(NORM)),
    **linear("bert.pooler.dense", 768, 768),
    "cls.predictions.bias": (30522,),
    **{f"cls.predictions.transform.LayerNorm.{name}": (768,) for name in NORM},
    **linear("cls.predictions.transform.dense", 768, 768),
    **linear("cls.seq_relationship", 2, 768),
}


def spans(model, batch):
    """Both logits of each token."""
    found = model(**given(model, batch))
    return {"spans": torch.stack([found.start_logits, found.end_logits], -1)}


BERT = Case(
    "bert",
    sizes={
        "vocab_size": 37,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 13,
    },
    batch=lambda model: BATCH,
    models=(
        BASE,
        MASKED_LM,
        Made("BertForNextSentencePrediction", {"next_sentence": "logits"}),
        Made("BertForSequenceClassification", {"classes": "logits"}, {"num_labels": 5}),
        Made("BertForTokenClassification", {"token_classes": "logits"}, {"num_labels": 5}),
        Made("BertForQuestionAnswering", spans),
        BOTH,
        BOTH.of({"tie_word_embeddings": False}),
    ),
    honoured=(
        (
            MASKED_LM,
            {
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
            },
        ),
    ),
    training=((MASKED_LM, RATES),),
    inert=((MASKED_LM, {"classifier_dropout": 0.5}),),
    refused={"position_embedding_type": "relative_key", "is_decoder": True, "add_cross_attention": True},
    mistakes=(
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported here"),
        ({"architectures": ["BertForQuestionAnswering"], "id2label": {"0": "a", "1": "b", "2": "c"}}, "num_labels=3: a class"),
        ({"architectures": ["BertLMHeadModel"]}, "architectures='BertLMHeadModel' is not supported for bert"),
    ),
    layers=Layers(BASE, {"text": "hidden_states"}),
    gradient=BOTH,
    steps=True,
    # google-bert/bert-base-uncased: written by an early version, with gamma and beta and every head of pretraining.
    published=(Published("BertForPreTraining", {}, LISTED),),
)
