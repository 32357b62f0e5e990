"""T5, and mT5, which is read alike."""

import numpy as np
import torch
from cases import LENGTH, MASK, Case, Layers, Made, Published, words

from families.listed import linear, stack

SIZES = {
    "vocab_size": 37,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 2,  # transformers 5.24 generates with no more than num_layers
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 7,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
SAID = np.arange(LENGTH)[None] < np.array([[4], [9], [6]])
BATCH = {"text": words(2), "text_mask": MASK, "target": np.ascontiguousarray(words(2)[::-1, ::-1]), "target_mask": SAID}


def written(model, batch):
    text, mask, target, said = (
        torch.tensor(batch[key].astype(np.int64)) for key in ("text", "text_mask", "target", "target_mask")
    )
    answer = model(input_ids=text, attention_mask=mask, decoder_input_ids=target, decoder_attention_mask=said)
    return {"target": answer.logits}


def states(model, batch):
    text, mask = (torch.tensor(batch[key].astype(np.int64)) for key in ("text", "text_mask"))
    return {"text": model.encoder(input_ids=text, attention_mask=mask, output_hidden_states=True).hidden_states[1:]}


CHANGES = {
    "vocab_size": 41,
    "d_model": 36,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 6,
    "relative_attention_max_distance": 5,
    "layer_norm_epsilon": 1e-2,
}
WITHOUT_EFFECT = {"initializer_factor": 3.0, "classifier_dropout": 0.5}
RATES = {
    "dropout_rate": (
        0.3,
        tuple(
            f"{part}.{leaf}"
            for part in ("encoders.text", "decoders.target")
            for leaf in ("dropout", "attention_dropout", "mlp_dropout", "final_dropout")
        ),
    )
}
ELSEWHERE = ("n_positions", "decoder_start_token_id")  # test_t5.py
UNTRIED = ("is_encoder_decoder", "dense_act_fn", "is_gated_act")


def attention(name):
    return {key: shape for n in "qkvo" for key, shape in linear(f"{name}.{n}", 512, 512, bias=False).items()}


def layer(crossed):
    """Of t5-small: 512 wide, 8 heads of 64."""
    last = 1 + crossed
    found = {**attention("layer.0.SelfAttention"), **linear("layer.0.layer_norm", 512, bias=False)}
    if crossed:
        found |= attention("layer.1.EncDecAttention") | linear("layer.1.layer_norm", 512, bias=False)
    found |= linear(f"layer.{last}.DenseReluDense.wi", 2048, 512, bias=False)
    found |= linear(f"layer.{last}.DenseReluDense.wo", 512, 2048, bias=False)
    return found | linear(f"layer.{last}.layer_norm", 512, bias=False)


def side(name, crossed):
    relative = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias"
    found = {**stack(f"{name}.block", 6, layer(crossed)), **linear(relative, 32, 8, bias=False)}
    return found | linear(f"{name}.final_layer_norm", 512, bias=False)


# google-t5/t5-small, whose file has the word table under three names more and a table that no layer reads.
SMALL = {
    **linear("shared", 32128, 512, bias=False),
    **side("encoder", False),
    **side("decoder", True),
    **linear("encoder.embed_tokens", 32128, 512, bias=False),
    **linear("decoder.embed_tokens", 32128, 512, bias=False),
    **linear("lm_head", 32128, 512, bias=False),
    **linear("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias", 32, 8, bias=False),
}
WRITER = Made("T5ForConditionalGeneration", written)
ENCODER = Made("T5EncoderModel", {"tokens.text": "last_hidden_state"})
T5 = Case(
    "t5",
    sizes=SIZES,
    batch=lambda model: BATCH,
    models=(
        WRITER,
        WRITER.of({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
        WRITER.of({**CHANGES, "feed_forward_proj": "gated-silu"}),
        ENCODER,
    ),
    honoured=(
        (
            WRITER,
            {
                **CHANGES,
                "feed_forward_proj": "gated-relu",
                "tie_word_embeddings": False,
                "scale_decoder_outputs": False,
            },
        ),
    ),
    training=((WRITER, RATES),),
    inert=((WRITER, WITHOUT_EFFECT),),
    refused={"is_decoder": True},
    mistakes=(
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj='gated-mish' is not supported here"),
        ({"architectures": ["T5Model"]}, "architectures='T5Model' is not supported for t5"),
        ({"relative_attention_num_buckets": 2}, "relative_buckets=2 and relative_distance=7: use at least 4 buckets"),
    ),
    layers=Layers(WRITER, states, normed=True),
    gradient=WRITER,
    steps=True,
    published=(
        Published("T5ForConditionalGeneration", {"n_positions": 512, "task_specific_params": {"summarization": {}}}, SMALL),
    ),
    elsewhere=ELSEWHERE,
    untried=UNTRIED,
)
MT5_WRITER = Made("MT5ForConditionalGeneration", written)
MT5 = Case(
    "mt5",
    sizes=SIZES,
    batch=lambda model: BATCH,
    models=(MT5_WRITER, Made("MT5EncoderModel", {"tokens.text": "last_hidden_state"})),
    honoured=((MT5_WRITER, {"feed_forward_proj": "relu"}),),
    training=((MT5_WRITER, RATES),),
    inert=((MT5_WRITER, WITHOUT_EFFECT),),
    refused={"is_decoder": True},
    elsewhere=(*ELSEWHERE, "tie_word_embeddings", *CHANGES),  # test_t5.py: they are T5's
    untried=UNTRIED,
)
