"""ViLT beside HuggingFace's. It puts the patches in a random order, which changes no other token; here it is theirs."""

import contextlib
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
from safetensors.numpy import load_file, save_file

from mmjax.convert import load
from mmjax.convert.huggingface import build_model
from mmjax.core.errors import UserError

SIZES = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 13,
    "image_size": 24,
    "patch_size": 4,
}
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 37, (3, 9))
MASK = np.arange(9)[None] < np.array([[9], [5], [7]])
SEGMENTS = (np.arange(9)[None] >= np.array([[4], [3], [9]])).astype(np.int64)
PIXELS = RNG.normal(size=(3, 2, 20, 32, 3)).astype(np.float32)  # two images each
REAL = np.zeros((3, 2, 20, 32), bool)  # of them, by (rows, columns)
for place, (rows, columns) in zip(np.ndindex(3, 2), [(20, 32), (8, 32), (4, 12), (16, 4), (20, 8), (12, 24)], strict=True):
    REAL[place][:rows, :columns] = True
NLVR2 = "ViltForImagesAndTextClassification"


def make(name="ViltForMaskedLM", **changes):
    return randomise(getattr(hf, name)(hf.ViltConfig(**{**SIZES, **changes})))


@contextlib.contextmanager
def in_order():
    """Patches drawn in their order: real ones, then as many of the padding as the widest example needs."""
    drawn, torch.multinomial = torch.multinomial, lambda p, n, replacement=False: torch.arange(n) % p.shape[0]
    yield
    torch.multinomial = drawn


def theirs(model, field="logits", images=1, padded=True, pixels=PIXELS, **kwargs):
    pick = (lambda x: x[:, :2]) if images == 2 else (lambda x: x[:, 0])
    pixels = np.moveaxis(pick(pixels), -1, -3)
    text = {"input_ids": IDS, "attention_mask": MASK.astype(np.int64), "token_type_ids": SEGMENTS}
    mask = {"pixel_mask": torch.tensor(pick(REAL).astype(np.int64))} if padded else {}
    text = {name: torch.tensor(x) for name, x in text.items()}
    with in_order():
        return model(**text, **mask, pixel_values=torch.tensor(pixels.copy()), **kwargs)[field]


def words(model, params, text):
    return bound(model, params, text).encode("text")


def patches(model, params, image):
    return bound(model, params, image).encode("image")


def stream(model, params, tokens):
    return bound(model, params, {}).fuse("joint", tokens, key="x")


def layers(model, params, tokens):
    return hidden_states(model, params, "fuse", "joint", tokens)


def answer(model, params, joint):
    """What each head says of the single stream."""
    return {head: bound(model, params, {}).head(head, joint, key="x") for head in model.heads}


def ours(model, params, head="masked_lm", images=1, padded=True, pixels=PIXELS):
    """The logits of a head, or with `None` the single stream and the outputs of its layers."""
    pick = (lambda x: x[:, :2]) if images == 2 else (lambda x: x[:, 0])
    text = {"text": IDS.astype(np.int32), "text_mask": MASK, "text_segments": SEGMENTS.astype(np.int32)}
    image = {"image": pick(pixels)} | ({"image_mask": pick(REAL)} if padded else {})
    tokens = {
        "text": part(words, model, params, ("encoders.text",), text),
        "image": part(patches, model, params, ("encoders.image",), image),
    }
    joint = part(stream, model, params, ("fusions",), tokens)
    if head is None:
        return joint, part(layers, model, params, ("fusions",), tokens)
    tied = ("encoders.text",) if head == "masked_lm" else ()
    out = part(answer, model, params, ("heads", *tied), joint)[head]
    return out[:, :9] if head in PER_TOKEN else out


PER_TOKEN = ("masked_lm", "token_classes")
CLASSES = {
    "ViltModel": ("pooler", "pooler_output", {"modality_type_vocab_size": 3}),
    "ViltForMaskedLM": ("masked_lm", "logits", {}),
    "ViltForQuestionAnswering": ("classes", "logits", {"num_labels": 5}),
    "ViltForImageAndTextRetrieval": ("match", "logits", {}),
    "ViltForTokenClassification": ("token_classes", "logits", {"num_labels": 5}),
    NLVR2: ("classes", "logits", {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 4}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_and_bits(name, tmp_path):
    head, field, changes = CLASSES[name]
    images = changes.get("num_images", 1)
    reference = make(name, **changes)
    model, params = round_trip(reference, tmp_path)
    where = MASK if head in PER_TOKEN else None
    for padded in (True, False) if name == "ViltModel" else (True,):
        assert_close(ours(model, params, head, images, padded), theirs(reference, field, images, padded), where=where)


def test_layer_by_layer(tmp_path):
    """Of the real tokens: HuggingFace brings those of an image together, and we leave them in their places."""
    reference = make("ViltModel")
    model, params = load(save(reference, tmp_path / "hf"))
    fused, states = ours(model, params, None)
    expected = [*theirs(reference, "hidden_states", output_hidden_states=True)[1:], theirs(reference, "last_hidden_state")]
    real = np.asarray(fused.mask)
    for layer, state in zip(expected, [*states, fused.embeddings], strict=True):
        for row in range(3):
            count = real[row, 9:].sum()
            own = np.concatenate([np.asarray(state)[row, :9][MASK[row]], np.asarray(state)[row, 9:][real[row, 9:]]])
            assert_close(own, torch.cat([layer[row, :9][torch.tensor(MASK[row])], layer[row, 9 : 9 + count]]))


def test_gradient(tmp_path):
    changes = CLASSES[NLVR2][2]
    reference = make(NLVR2, **changes)
    model, params = load(save(reference, tmp_path / "hf"))
    weight = RNG.normal(size=(3, 4)).astype(np.float32)
    loss = (theirs(reference, images=2) * torch.tensor(weight)).sum()
    check_gradient(reference, loss, model, params, lambda p: (ours(model, p, "classes", 2) * weight).sum())


CHANGES = {
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
}
ELSEWHERE = {  # each in its own test
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "tie_word_embeddings",
    "num_images",
}


def test_every_field_is_honoured_or_refused():
    check_table("vilt", hf.ViltConfig())
    assert honoured_fields("vilt") == CHANGES.keys() | ELSEWHERE
    assert inert_fields("vilt") == set()
    assert refused_fields("vilt") == {"max_image_length"}


@pytest.mark.parametrize("half", [0, 1])
def test_each_honoured_field_is_ours(half, tmp_path):
    def logits(model):
        with torch.no_grad():
            return theirs(model, padded=False, pixels=PIXELS[..., : model.config.num_channels]).numpy()[MASK]

    def own(model, params):
        return np.asarray(ours(model, params, padded=False, pixels=PIXELS[..., : model.encoders["image"].channels]))[MASK]

    check_honoured(lambda changes: make(**changes), logits, own, dict(list(CHANGES.items())[half::2]), tmp_path)


def test_the_number_of_images_is_honoured(tmp_path):
    check_honoured(
        lambda changes: make(NLVR2, **{"modality_type_vocab_size": 3, "num_images": 2, **changes}),
        lambda m: theirs(m, images=m.config.num_images, padded=False).detach(),
        lambda m, p: ours(m, p, "classes", m.encoders["image"].images, padded=False),
        {"num_images": 1},
        tmp_path,
    )


def test_dropout_rates(tmp_path):
    model, _ = load(save(make(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2), tmp_path / "hf"))
    rates = [part.dropout for part in (*model.encoders.values(), *model.fusions.values())]
    assert rates == [0.3] * 3 and model.fusions["joint"].attention_dropout == 0.2


def test_files_with_two_word_tables_are_not_tied(tmp_path):
    """The public masked LM's: config.json as HuggingFace 5 writes it claims otherwise."""
    reference = make()
    table = torch.randn(reference.mlm_score.decoder.weight.shape, generator=torch.Generator().manual_seed(1))
    reference.mlm_score.decoder.weight = torch.nn.Parameter(0.2 * table)
    model, params = round_trip(reference, tmp_path)
    assert model.heads["masked_lm"].tied_to == ""
    assert_close(ours(model, params), theirs(reference), where=MASK)


def test_files_with_one_word_table_twice_are_tied(tmp_path):
    """As version 4 wrote them: the bias under its older name, a buffer, and a config that claims otherwise."""
    folder = save(make(), tmp_path / "hf")
    _, before = load(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["mlm_score.bias"] = tensors["mlm_score.decoder.bias"]
    tensors["mlm_score.decoder.weight"] = tensors["vilt.embeddings.text_embeddings.word_embeddings.weight"]
    tensors["vilt.embeddings.text_embeddings.position_ids"] = np.arange(13)[None]
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("dtype", "qkv_bias")}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False, "torch_dtype": "float32"}))
    model, params = load(folder)
    assert model.heads["masked_lm"].tied_to == "text" and model.fusions["joint"].qkv_bias
    assert jax.tree.all(jax.tree.map(np.array_equal, params, before))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_image_length": 200}, "max_image_length=200 is not supported by vilt here; it must be -1"),
        ({"image_size": [24, 16]}, r"image_size=\[24, 16\] is not supported by vilt here; it must be one number of pixels"),
        ({"patch_size": 5}, "image_size=24 is not supported here: patch_size=5 must divide it"),
        ({"architectures": [NLVR2]}, f"num_images=-1: {NLVR2} needs at least 1"),
        ({"architectures": [NLVR2], "num_images": 2}, "modality_type_vocab_size=2 is too small: the text and 2 images need 3"),
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported here"),
        ({"architectures": ["ViltForPreTraining"]}, "architectures='ViltForPreTraining' is not supported"),
    ],
)
def test_refusals(change, said):
    with pytest.raises(UserError, match=said):
        build_model({"model_type": "vilt", "architectures": ["ViltModel"], **SIZES, **change})


def public(**head):
    """dandelin/vilt-b32-*: written by version 4.16."""
    layer = {
        **{f"attention.attention.{n}": (768, 768) for n in ("query", "key", "value")},
        "attention.output.dense": (768, 768),
        "intermediate.dense": (3072, 768),
        "output.dense": (768, 3072),
        "layernorm_before": (768,),
        "layernorm_after": (768,),
    }
    modules = {
        "vilt.embeddings.text_embeddings.LayerNorm": (768,),
        "vilt.embeddings.patch_embeddings.projection": (768, 3, 32, 32),
        **{f"vilt.encoder.layer.{n}.{name}": shape for n in range(12) for name, shape in layer.items()},
        "vilt.layernorm": (768,),
        "vilt.pooler.dense": (768, 768),
        **head,
    }
    return {
        "vilt.embeddings.cls_token": (1, 1, 768),
        "vilt.embeddings.position_embeddings": (1, 145, 768),
        "vilt.embeddings.text_embeddings.position_ids": (1, 40),
        "vilt.embeddings.text_embeddings.word_embeddings.weight": (30522, 768),
        "vilt.embeddings.text_embeddings.position_embeddings.weight": (40, 768),
        "vilt.embeddings.text_embeddings.token_type_embeddings.weight": (2, 768),
        "vilt.embeddings.token_type_embeddings.weight": (2, 768),
        **{f"{name}.weight": shape for name, shape in modules.items()},
        **{f"{name}.bias": shape[:1] for name, shape in modules.items()},
    }


def test_the_public_checkpoints_map_completely():
    head = {"mlm_score.transform.dense": (768, 768), "mlm_score.transform.LayerNorm": (768,)}
    listed = public(**head, **{"mlm_score.decoder": (30522, 768)}) | {"mlm_score.bias": (30522,)}
    map_completely("vilt", "ViltForMaskedLM", {"tie_word_embeddings": False, "torch_dtype": "float32"}, listed)
    answers = {"classifier.0": (1536, 768), "classifier.1": (1536,), "classifier.3": (3129, 1536)}
    map_completely("vilt", "ViltForQuestionAnswering", {"id2label": {str(n): str(n) for n in range(3129)}}, public(**answers))
