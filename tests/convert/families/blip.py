"""BLIP."""

import numpy as np
import torch
from cases import MASK, PIXELS, Case, Layers, Made, Published, given, words

from families.listed import bert_layer, linear, linears, stack

TEXT = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 13,
    "bos_token_id": 1,
    "sep_token_id": 2,
}
VISION = {
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 12,
    "patch_size": 4,
}
BATCH = {
    "text": words(),
    "text_mask": MASK,
    "image": PIXELS[:, :8, :16, :3],  # another grid than the one of image_size
    "answer": words()[:, ::-1][:, :5].copy(),
    "answer_mask": np.arange(5)[None] < np.array([[2], [5], [4]]),
}


def scores(model, batch):
    """The logits of matching, and the cosines of all images with all texts."""
    arguments = given(model, batch)
    return {
        "match": model(**arguments).itm_score,
        "cosine": model(**arguments, use_itm_head=False).itm_score,
    }


def reply(model, batch):
    arguments = {name: x for name, x in given(model, batch).items() if name != "attention_mask"}
    mask = torch.tensor(batch["text_mask"].astype(np.int64))
    image = model.vision_model(arguments["pixel_values"], interpolate_pos_encoding=True)[0]
    question = model.text_encoder(arguments["input_ids"], mask, encoder_hidden_states=image)[0]
    answers, own = (torch.tensor(batch[key].astype(np.int64)) for key in ("answer", "answer_mask"))
    reads = {"encoder_hidden_states": question, "encoder_attention_mask": mask}
    return {"answer": model.text_decoder(answers, own, **reads).logits}


def their_states(model, batch):
    arguments = given(model, batch)
    vision = model.vision_model(arguments["pixel_values"], interpolate_pos_encoding=True, output_hidden_states=True)
    reads = {"encoder_hidden_states": vision.last_hidden_state, "output_hidden_states": True}
    text = model.text_encoder(arguments["input_ids"], arguments["attention_mask"], **reads)
    return {"image": vision.hidden_states[1:], "cross": text.hidden_states[1:]}


RETRIEVAL = Made("BlipForImageTextRetrieval", scores)
CAPTION = Made("BlipForConditionalGeneration", {"caption": "logits"})
ANSWER = Made("BlipForQuestionAnswering", reply)
UNTIED = {"tie_word_embeddings": False, "text_config.tie_word_embeddings": False}
SAME_WIDTH = {"text_config.hidden_size": 20, "text_config.num_attention_heads": 2}  # questions are read as images are
CHANGES = {
    "text_config.vocab_size": 41,
    "text_config.hidden_size": 36,
    "text_config.num_hidden_layers": 1,
    "text_config.num_attention_heads": 4,
    "text_config.intermediate_size": 20,
    "text_config.max_position_embeddings": 9,
    "text_config.hidden_act": "quick_gelu",
    "text_config.layer_norm_eps": 1e-2,
    "vision_config.hidden_size": 36,
    "vision_config.num_hidden_layers": 2,
    "vision_config.num_attention_heads": 4,
    "vision_config.intermediate_size": 16,
    "vision_config.image_size": 8,
    "vision_config.patch_size": 2,
    "vision_config.hidden_act": "relu",
    "vision_config.layer_norm_eps": 1e-2,
}
WITHOUT_EFFECT = {
    "text_config.encoder_hidden_size": 99,
    "text_config.projection_dim": 5,
    "text_config.label_smoothing": 0.1,
    "vision_config.projection_dim": 5,
    "projection_dim": 5,
    "logit_scale_init_value": 1.0,
    "label_smoothing": 0.1,
    "initializer_factor": 0.5,
}


def rates(*parts):
    return {
        "text_config.hidden_dropout_prob": (0.3, tuple(f"{part}.dropout" for part in parts)),
        "text_config.attention_probs_dropout_prob": (0.2, tuple(f"{part}.attention_dropout" for part in parts)),
        "vision_config.attention_dropout": (0.1, ("encoders.image.attention_dropout",)),
    }


def listed_text(prefix):
    """A text tower of 12 layers in a public file."""
    return {
        f"{prefix}embeddings.position_ids": (1, 512),
        f"{prefix}embeddings.word_embeddings.weight": (30524, 768),
        f"{prefix}embeddings.position_embeddings.weight": (512, 768),
        **linear(f"{prefix}embeddings.LayerNorm", 768),
        **stack(f"{prefix}encoder.layer", 12, bert_layer(parts=("attention", "crossattention"))),
    }


LAYER = {
    **linear("self_attn.qkv", 2304, 768),
    **linear("self_attn.projection", 768, 768),
    **linears("layer_norm{1 2}", 768),
    **linear("mlp.fc1", 3072, 768),
    **linear("mlp.fc2", 768, 3072),
}
IMAGE = {
    "vision_model.embeddings.class_embedding": (1, 1, 768),
    "vision_model.embeddings.position_embedding": (1, 577, 768),
    **linear("vision_model.embeddings.patch_embedding", 768, 3, 16, 16),
    **stack("vision_model.encoder.layers", 12, LAYER),
    **linear("vision_model.post_layernorm", 768),
}
CAPTIONS = {
    **listed_text("text_decoder.bert."),
    "text_decoder.cls.predictions.bias": (30524,),
    **linear("text_decoder.cls.predictions.transform.dense", 768, 768),
    **linear("text_decoder.cls.predictions.transform.LayerNorm", 768),
    **linear("text_decoder.cls.predictions.decoder", 30524, 768),
}
MATCHES = listed_text("text_encoder.") | linears("{vision_proj text_proj}", 256, 768) | linear("itm_head", 2, 768)
TWELVE = {"text_config": {"num_attention_heads": 12}}

BLIP = Case(
    "blip",
    sizes={"text_config": TEXT, "vision_config": VISION, "image_text_hidden_size": 10},
    batch=lambda model: BATCH,
    models=(
        RETRIEVAL,
        CAPTION,
        CAPTION.of(UNTIED),
        ANSWER.of(SAME_WIDTH),
        ANSWER.of(CHANGES | UNTIED | {"image_text_hidden_size": 14}),
    ),
    honoured=(
        (CAPTION, CHANGES),
        (CAPTION.of(UNTIED), dict.fromkeys(UNTIED, True)),
        (RETRIEVAL, {"image_text_hidden_size": 14}),
    ),
    training=(
        (RETRIEVAL, rates("encoders.text", "fusions.cross")),
        (CAPTION, rates("decoders.caption")),
        (ANSWER.of(SAME_WIDTH), rates("encoders.text", "fusions.cross", "decoders.answer")),
    ),
    inert=((RETRIEVAL, WITHOUT_EFFECT), (CAPTION, WITHOUT_EFFECT)),
    refused={"text_config.is_decoder": False},
    mistakes=(
        ({"text_config.hidden_act": "gelu_10"}, "text_config.hidden_act='gelu_10' is not supported here"),
        ({"vision_config.image_size": [384, 224]}, r"image_size=\[384, 224\] is not supported by blip here"),
        ({"vision_config.image_size": 10}, "image_size=10 is not supported by blip here: .*patch_size=4 must"),
        ({"architectures": ["BlipModel"]}, "architectures='BlipModel' is not supported for blip"),
    ),
    layers=Layers(RETRIEVAL, their_states),
    gradient=ANSWER.of(SAME_WIDTH),
    published=(  # Salesforce/blip-image-captioning-base, Salesforce/blip-itm-base-coco
        Published("BlipForConditionalGeneration", TWELVE, IMAGE | CAPTIONS),
        Published("BlipForImageTextRetrieval", TWELVE, IMAGE | MATCHES),
    ),
)
