"""RoBERTa; what it shares with BERT is shown there."""

import numpy as np
from cases import LENGTH, MASK, Case, Layers, Made, Older, Published, words

from families.bert import RATES, spans
from families.listed import bert_layer, linear, linears, stack

SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 15,
    "layer_norm_eps": 1e-5,
}
SEGMENTS = (np.arange(LENGTH)[None] >= np.full((3, 1), 4)).astype(np.int32)
BATCH = {"text": words(5, pad=1), "text_mask": MASK, "text_segments": SEGMENTS}
MASKED_LM = Made("RobertaForMaskedLM", {"masked_lm": "logits"})
BASE = Made("RobertaModel", {"pooler": "pooler_output"})
KEPT = SIZES.keys() - {"max_position_embeddings"} | {"model_type", "architectures"}
LISTED = {
    "roberta.embeddings.position_ids": (1, 514),
    "roberta.embeddings.word_embeddings.weight": (50265, 768),
    "roberta.embeddings.position_embeddings.weight": (514, 768),
    "roberta.embeddings.token_type_embeddings.weight": (1, 768),
    **linear("roberta.embeddings.LayerNorm", 768),
    **stack("roberta.encoder.layer", 12, bert_layer()),
    **linears("{roberta.pooler.dense lm_head.dense}", 768, 768),
    "lm_head.bias": (50265,),
    **linear("lm_head.layer_norm", 768),
    "lm_head.decoder.weight": (50265, 768),
}

ROBERTA = Case(
    "roberta",
    sizes=SIZES,
    batch=lambda model: BATCH,
    models=(
        BASE,
        MASKED_LM,
        MASKED_LM.of({"tie_word_embeddings": False}),
        Made("RobertaForSequenceClassification", {"classes": "logits"}, {"num_labels": 5}),
        Made("RobertaForTokenClassification", {"token_classes": "logits"}, {"num_labels": 5}),
        Made("RobertaForQuestionAnswering", spans),
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
                "hidden_act": "relu",
                "max_position_embeddings": 11,
                "type_vocab_size": 3,
                "layer_norm_eps": 1e-2,
                "tie_word_embeddings": False,
                "pad_token_id": 4,
            },
        ),
    ),
    training=((MASKED_LM, RATES),),
    inert=((MASKED_LM, {"classifier_dropout": 0.5}),),
    refused={"position_embedding_type": "relative_key", "is_decoder": True, "add_cross_attention": True},
    mistakes=(
        ({"pad_token_id": None}, r"pad_token_id=None: positions count from it, so it must be in \[0, 14\)"),
        ({"architectures": ["RobertaForCausalLM"]}, "architectures='RobertaForCausalLM' is not supported for roberta"),
    ),
    layers=Layers(BASE, {"text": "hidden_states"}),
    gradient=MASKED_LM,
    older={
        "a config that does not say its defaults": Older(
            MASKED_LM.of({"max_position_embeddings": 512, "type_vocab_size": 2}),
            lambda config: {name: value for name, value in config.items() if name in KEPT} | {"torch_dtype": "float32"},
            written={"max_position_embeddings": 512},
        )
    },
    published=(  # FacebookAI/roberta-base: the tied output written out, a pooler that no task trained, a buffer of positions
        Published("RobertaForMaskedLM", {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}, LISTED),
    ),
)
