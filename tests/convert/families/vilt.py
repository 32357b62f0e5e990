"""ViLT. HuggingFace puts the patches in a random order, which changes no other token; here it is theirs."""

import contextlib

import numpy as np
import torch
from cases import LENGTH, MASK, SEGMENTS, Case, Layers, Made, Older, Published, answered, given, layered, words

from families.listed import linear, linears, stack, vit_layer

SEVERAL = "ViltForImagesAndTextClassification"
PIXELS = np.random.default_rng(2).normal(size=(3, 2, 20, 32, 3)).astype(np.float32)  # two images each
REAL = np.zeros((3, 2, 20, 32), bool)  # of them, by (rows, columns)
for place, (rows, columns) in zip(np.ndindex(3, 2), [(20, 32), (8, 32), (4, 12), (16, 4), (20, 8), (12, 24)], strict=True):
    REAL[place][:rows, :columns] = True


def batch(model):
    """A text and an image, or as many as the model reads, of which some pixels are padding."""
    images = model.config.num_images if type(model).__name__ == SEVERAL else 0
    which = slice(0, images) if images > 1 else 0
    pixels = PIXELS[:, which, ..., : model.config.num_channels]
    batch = {"text": words(), "text_mask": MASK, "text_segments": SEGMENTS, "image": pixels, "image_mask": REAL[:, which]}
    return all_real(batch) if images == 1 else batch  # HuggingFace's class of several images takes no mask of one


def all_real(batch):
    return {name: x for name, x in batch.items() if name != "image_mask"}


@contextlib.contextmanager
def in_order():
    """Patches drawn in their order: real ones, then as many of the padding as the widest example needs."""
    drawn, torch.multinomial = torch.multinomial, lambda p, n, replacement=False: torch.arange(n) % p.shape[0]
    yield
    torch.multinomial = drawn


def run(model, batch, **more):
    with in_order():
        return model(**given(model, batch, ("interpolate_pos_encoding",)), **more)


def says(ours, field="logits"):
    return lambda model, batch: {ours: run(model, batch)[field]}


def pooled(model, batch):
    """Of the image with its padding, and with all pixels taken for real."""
    return {"pooler": run(model, batch).pooler_output, "pooler, all real": run(model, all_real(batch)).pooler_output}


def ours(model, params, batch, names):
    found = answered(model, params, batch, [name for name in names if ", all real" not in name])
    if "pooler, all real" in names:
        found["pooler, all real"] = answered(model, params, all_real(batch), ["pooler"])["pooler"]
    return found


def real_tokens(states, images):
    """[L] arrays [N, D]: of each layer [B, T, D] the real words, and of each image the tokens that `images` picks."""

    def pick(x):
        return [*[x[row, :LENGTH][MASK[row]] for row in range(3)], *[x[row, LENGTH:][images[row]] for row in range(3)]]

    return [np.concatenate(pick(np.asarray(x))) for x in states]


def their_states(model, batch):
    """HuggingFace brings the real tokens of an image together, after its class token."""
    out = run(model, batch, output_hidden_states=True)
    states = [x.detach() for x in (*out.hidden_states[1:], out.last_hidden_state)]
    return {"joint": real_tokens(states, [slice(0, real.sum()) for real in real_patches(batch)])}


def our_states(model, params, batch):
    """We leave them in their places."""
    states = layered(model, params, batch, "joint")
    states.append(answered(model, params, batch, ["tokens.joint"])["tokens.joint"])
    return {"joint": real_tokens(states, real_patches(batch))}


def real_patches(batch):
    """[3, 1 + P] bool: the class token, and the patches with real pixels."""
    return np.pad(batch["image_mask"][:, ::4, ::4].reshape(3, -1), ((0, 0), (1, 0)), constant_values=True)


def tied_twice(model, tensors):
    """As version 4 wrote them: the bias under its older name, the word table again, a buffer."""
    old = {name: x for name, x in tensors.items() if name != "mlm_score.decoder.bias"}
    old |= {"mlm_score.bias": tensors["mlm_score.decoder.bias"], "mlm_score.decoder.bias": tensors["mlm_score.decoder.bias"]}
    old["mlm_score.decoder.weight"] = tensors["vilt.embeddings.text_embeddings.word_embeddings.weight"]
    return old | {"vilt.embeddings.text_embeddings.position_ids": np.arange(13)[None]}


def claims_otherwise(config):
    kept = {name: value for name, value in config.items() if name not in ("dtype", "qkv_bias")}
    return kept | {"tie_word_embeddings": False, "torch_dtype": "float32"}


MASKED_LM = Made("ViltForMaskedLM", says("masked_lm"))
BASE = Made("ViltModel", pooled)
NLVR2 = Made(SEVERAL, says("classes"), {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 4})


def public(head):
    """dandelin/vilt-b32-*: written by version 4.16."""
    return {
        "vilt.embeddings.cls_token": (1, 1, 768),
        "vilt.embeddings.position_embeddings": (1, 145, 768),
        "vilt.embeddings.text_embeddings.position_ids": (1, 40),
        "vilt.embeddings.text_embeddings.word_embeddings.weight": (30522, 768),
        "vilt.embeddings.text_embeddings.position_embeddings.weight": (40, 768),
        "vilt.embeddings.text_embeddings.token_type_embeddings.weight": (2, 768),
        "vilt.embeddings.token_type_embeddings.weight": (2, 768),
        **linears("{vilt.embeddings.text_embeddings.LayerNorm vilt.layernorm}", 768),
        **linear("vilt.embeddings.patch_embeddings.projection", 768, 3, 32, 32),
        **stack("vilt.encoder.layer", 12, vit_layer()),
        **linear("vilt.pooler.dense", 768, 768),
        **head,
    }


WORDS = {
    **linear("mlm_score.transform.dense", 768, 768),
    **linear("mlm_score.transform.LayerNorm", 768),
    **linear("mlm_score.decoder", 30522, 768),
    "mlm_score.bias": (30522,),
}
REPLIES = linear("classifier.0", 1536, 768) | linear("classifier.1", 1536) | linear("classifier.3", 3129, 1536)

VILT = Case(
    "vilt",
    sizes={
        "vocab_size": 37,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 13,
        "image_size": 24,
        "patch_size": 4,
    },
    batch=batch,
    models=(
        BASE.of({"modality_type_vocab_size": 3}),
        MASKED_LM,
        Made("ViltForQuestionAnswering", says("classes"), {"num_labels": 5}),
        Made("ViltForImageAndTextRetrieval", says("match")),
        Made("ViltForTokenClassification", says("token_classes"), {"num_labels": 5}),
        NLVR2,
    ),
    honoured=(
        (
            MASKED_LM,
            {
                "vocab_size": 41,
                "type_vocab_size": 3,
                "modality_type_vocab_size": 4,
                "max_position_embeddings": 9,
                "hidden_size": 36,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 20,
                "hidden_act": "gelu_new",
                "layer_norm_eps": 1e-2,
                "image_size": 16,
                "patch_size": 2,
                "num_channels": 1,
                "qkv_bias": False,
            },
        ),
        (NLVR2, {"num_images": 1}),
    ),
    training=(
        (
            BASE,
            {
                "hidden_dropout_prob": (
                    0.3,
                    tuple(f"{part}.dropout" for part in ("encoders.text", "encoders.image", "fusions.joint")),
                ),
                "attention_probs_dropout_prob": (0.2, ("fusions.joint.attention_dropout",)),
            },
        ),
    ),
    elsewhere=("tie_word_embeddings",),  # see `older`, and test_vilt.py
    refused={"max_image_length": 200},
    mistakes=(
        ({"image_size": [24, 16]}, r"image_size=\[24, 16\] is not supported by vilt here; it must be one number of pixels"),
        ({"patch_size": 5}, "image_size=24 is not supported here: patch_size=5 must divide it"),
        ({"architectures": [SEVERAL]}, f"num_images=-1: {SEVERAL} needs at least 1"),
        (
            {"architectures": [SEVERAL], "num_images": 2, "modality_type_vocab_size": 2},
            "modality_type_vocab_size=2 is too small: the text and 2 images need 3",
        ),
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported here"),
        ({"architectures": ["ViltForPreTraining"]}, "architectures='ViltForPreTraining' is not supported"),
    ),
    layers=Layers(BASE, their_states, ours=our_states),
    gradient=NLVR2,
    older={"one word table twice": Older(MASKED_LM, claims_otherwise, tied_twice, written={"tie_word_embeddings": True})},
    published=(
        Published("ViltForMaskedLM", {"tie_word_embeddings": False, "torch_dtype": "float32"}, public(WORDS)),
        Published("ViltForQuestionAnswering", {"id2label": {str(n): str(n) for n in range(3129)}}, public(REPLIES)),
    ),
    ours=ours,
)
