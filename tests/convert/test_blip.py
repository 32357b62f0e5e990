"""BLIP beside HuggingFace's."""

import functools

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
from mmjax.convert.family import put
from mmjax.convert.huggingface import build_model
from mmjax.core.errors import UserError

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
UNTIED = {"tie_word_embeddings": False, "text_config.tie_word_embeddings": False}
SAME_WIDTH = {"text_config.hidden_size": 20, "text_config.num_attention_heads": 2}  # questions are read as images are
RETRIEVAL, CAPTION, ANSWER = "BlipForImageTextRetrieval", "BlipForConditionalGeneration", "BlipForQuestionAnswering"
RNG = np.random.default_rng(0)
IDS, ANSWERS = RNG.integers(1, 37, (3, 9)), RNG.integers(1, 37, (3, 5))
MASK = np.arange(9)[None] < np.array([[9], [5], [7]])
ANSWERS_MASK = np.arange(5)[None] < np.array([[2], [5], [4]])
IMAGE = RNG.normal(size=(3, 8, 16, 3)).astype(np.float32)  # another grid than the one of image_size
INPUTS = {
    "input_ids": torch.tensor(IDS),
    "attention_mask": torch.tensor(MASK.astype(np.int64)),
    "pixel_values": torch.tensor(IMAGE.transpose(0, 3, 1, 2)),
    "interpolate_pos_encoding": True,
}
BATCH = {"text": IDS.astype(np.int32), "text_mask": MASK, "image": IMAGE}
ANSWERED = {"text": ANSWERS.astype(np.int32), "text_mask": ANSWERS_MASK}


def make(name=RETRIEVAL, **changes):
    config = {"text_config": dict(TEXT), "vision_config": dict(VISION), "image_text_hidden_size": 10}
    for field, value in changes.items():
        group, _, leaf = field.rpartition(".")
        (config[group] if group else config)[leaf] = value
    return randomise(getattr(hf, name)(hf.BlipConfig(**config)))


def read_image(model, params):
    return bound(model, params, BATCH).encode("image")


def read_both(model, params, image):
    forward = bound(model, params, BATCH)
    return forward.fuse("cross", {"text": forward.encode("text"), "image": image}, key="x")


def match(model, params, image):
    """The logits of matching, and the cosines of all images with all texts."""
    forward, apply = bound(model, params, BATCH), model.copy(dtype="float32").apply
    unit_image = apply({"params": params}, "dual", "image", image, method="embed")
    return forward.head("match", read_both(model, params, image), key="x"), unit_image @ forward.embed("text").T


def describe(model, params, image):
    return bound(model, params, BATCH).decode("caption", BATCH, {"image": image})


def reply(model, params, question):
    return bound(model, params, {}).decode("answer", ANSWERED, {"cross": question})


IMAGE_PART, TEXT_PARTS = ("encoders.image",), ("encoders.text", "fusions.cross")


def images(model, params):
    return part(read_image, model, params, IMAGE_PART)


def retrieval(model, params):
    return part(match, model, params, (*TEXT_PARTS, "fusions.dual", "heads.match"), images(model, params))


def caption(model, params):
    return part(describe, model, params, ("decoders.caption",), images(model, params))


def answer(model, params):
    question = part(read_both, model, params, TEXT_PARTS, images(model, params))
    return part(reply, model, params, ("decoders.answer",), question)


def states(model, params, image):
    """The outputs of each layer of the image encoder, and of each that reads the text and the image."""
    tokens = {"text": bound(model, params, BATCH).encode("text"), "image": image}
    return hidden_states(model, params, "encode", "image", IMAGE), hidden_states(model, params, "fuse", "cross", tokens)


def their_answer(model):
    image = model.vision_model(INPUTS["pixel_values"], interpolate_pos_encoding=True)[0]
    question = model.text_encoder(INPUTS["input_ids"], INPUTS["attention_mask"], encoder_hidden_states=image)[0]
    answers, mask = torch.tensor(ANSWERS), torch.tensor(ANSWERS_MASK.astype(np.int64))
    reads = {"encoder_hidden_states": question, "encoder_attention_mask": INPUTS["attention_mask"]}
    return model.text_decoder(answers, mask, **reads).logits


def test_retrieval(tmp_path):
    theirs = make()
    model, params = round_trip(theirs, tmp_path)
    matching, cosines = retrieval(model, params)
    assert_close(matching, theirs(**INPUTS).itm_score)
    assert_close(cosines, theirs(**INPUTS, use_itm_head=False).itm_score)


def test_captioning(tmp_path):
    theirs = make(CAPTION)
    model, params = round_trip(theirs, tmp_path)
    assert model.decoders["caption"].tied
    assert_close(caption(model, params), theirs(**INPUTS).logits, where=MASK)


def test_an_output_matrix_of_its_own(tmp_path):  # its logits are in the test of all fields
    model, _ = round_trip(make(CAPTION, **UNTIED), tmp_path)
    assert not model.decoders["caption"].tied


def test_question_answering_and_its_gradient(tmp_path):
    theirs = make(ANSWER, **SAME_WIDTH)
    model, params = round_trip(theirs, tmp_path)
    weight = RNG.normal(size=(3, 5, 37)).astype(np.float32) * ANSWERS_MASK[..., None]
    loss = (their_answer(theirs) * torch.tensor(weight)).sum()
    check_gradient(theirs, loss, model, params, lambda p: (answer(model, p) * weight).sum())


def test_layer_by_layer(tmp_path):
    theirs = make()
    model, params = load(save(theirs, tmp_path / "hf"))
    vision = theirs.vision_model(INPUTS["pixel_values"], interpolate_pos_encoding=True, output_hidden_states=True)
    reads = {"encoder_hidden_states": vision.last_hidden_state, "output_hidden_states": True}
    text = theirs.text_encoder(INPUTS["input_ids"], INPUTS["attention_mask"], **reads)
    of_image, of_text = part(states, model, params, (*IMAGE_PART, *TEXT_PARTS), images(model, params))
    for layer, state in zip(vision.hidden_states[1:], of_image, strict=True):
        assert_close(state, layer)
    for layer, state in zip(text.hidden_states[1:], of_text, strict=True):
        assert_close(state, layer, where=MASK)


CHANGES = {
    "text_config.vocab_size": 41,
    "text_config.hidden_size": 36,
    "text_config.num_hidden_layers": 1,
    "text_config.num_attention_heads": 4,
    "text_config.intermediate_size": 20,
    "text_config.max_position_embeddings": 9,
    "text_config.hidden_act": "quick_gelu",
    "text_config.layer_norm_eps": 1e-2,
    "text_config.tie_word_embeddings": False,
    "tie_word_embeddings": False,
    "vision_config.hidden_size": 36,
    "vision_config.num_hidden_layers": 2,
    "vision_config.num_attention_heads": 4,
    "vision_config.intermediate_size": 16,
    "vision_config.image_size": 8,
    "vision_config.patch_size": 2,
    "vision_config.hidden_act": "relu",
    "vision_config.layer_norm_eps": 1e-2,
    "image_text_hidden_size": 14,
}
TRAINING = {
    "text_config.hidden_dropout_prob": 0.3,
    "text_config.attention_probs_dropout_prob": 0.2,
    "vision_config.attention_dropout": 0.1,
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


def their_scores(theirs, match=False):
    with torch.no_grad():
        return theirs(**INPUTS, use_itm_head=match).itm_score.numpy()


def captioner(changes):
    return make(CAPTION, **changes)


def their_captions(theirs):
    with torch.no_grad():
        return theirs(**INPUTS).logits.numpy()[MASK]


def our_captions(model, params):
    return np.asarray(caption(model, params))[MASK]


def test_every_field_is_honoured_refused_or_inert():
    check_table("blip", hf.BlipConfig())
    assert honoured_fields("blip") == CHANGES.keys() | TRAINING.keys()
    assert inert_fields("blip") == WITHOUT_EFFECT.keys()
    assert refused_fields("blip") == {"text_config.is_decoder"}


@pytest.mark.parametrize("group", ["text_config", "vision_config"])
def test_each_honoured_field_is_ours(group, tmp_path):
    alone = {field: value for field, value in CHANGES.items() if field.startswith(group) and field not in UNTIED}
    check_honoured(captioner, their_captions, our_captions, alone, tmp_path)


def test_each_flag_that_ties_is_ours(tmp_path):
    check_honoured(lambda c: captioner(UNTIED | c), their_captions, our_captions, dict.fromkeys(UNTIED, True), tmp_path)


def test_the_width_of_what_both_share_is_ours(tmp_path):
    own = {"image_text_hidden_size": CHANGES["image_text_hidden_size"]}
    check_honoured(lambda changes: make(**changes), their_scores, lambda *ours: retrieval(*ours)[1], own, tmp_path)


def test_all_of_them_together_are_ours(tmp_path):
    theirs = make(ANSWER, **CHANGES)
    model, params = load(save(theirs, tmp_path / "hf"))
    assert_close(answer(model, params), their_answer(theirs), where=ANSWERS_MASK)


def test_inert_fields_change_nothing():
    for match in (True, False):
        check_inert(lambda changes: make(**changes), functools.partial(their_scores, match=match), WITHOUT_EFFECT)
    check_inert(captioner, their_captions, WITHOUT_EFFECT)


def test_dropout_rates():
    for name in (RETRIEVAL, CAPTION, ANSWER):
        model = built(name, **TRAINING)
        text = [part for part in (*model.fusions.values(), *model.decoders.values()) if hasattr(part, "attention_dropout")]
        assert text and {(part.dropout, part.attention_dropout) for part in text} == {(0.3, 0.2)}
        assert (model.encoders["image"].dropout, model.encoders["image"].attention_dropout) == (0.0, 0.1)
        assert all(words.dropout == 0.3 for part, words in model.encoders.items() if part == "text")


def built(name, **changes):
    """Our model of a config as public files of version 4 have it: what they lack has its default."""
    config = {"model_type": "blip", "torch_dtype": "float32", "architectures": [name]}
    for field, value in changes.items():
        put(config, field, value)
    return build_model(config)[1]


def test_fields_that_are_not_there_have_their_defaults():
    model = built(CAPTION)
    decoder, image = model.decoders["caption"], model.encoders["image"]
    theirs = hf.BlipConfig()
    assert (decoder.width, decoder.depth, decoder.heads) == (768, 12, theirs.text_config.num_attention_heads)
    assert (decoder.norm_epsilon, decoder.max_length, decoder.tied) == (1e-12, 512, True)
    assert (image.image_size, image.patch, image.norm_epsilon) == ((384, 384), (16, 16), 1e-5)


@pytest.mark.parametrize(("top", "text"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_output_is_tied_unless_both_flags_say_no(top, text):
    flags = {"tie_word_embeddings": top, "text_config.tie_word_embeddings": text}
    decoder = make(CAPTION, **flags).text_decoder
    tied = decoder.cls.predictions.decoder.weight is decoder.bert.embeddings.word_embeddings.weight
    assert built(CAPTION, **flags).decoders["caption"].tied == tied == (top or text)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (RETRIEVAL, {"text_config.is_decoder": False}, "text_config.is_decoder=False is not supported by blip here"),
        (CAPTION, {"text_config.hidden_act": "gelu_10"}, "text_config.hidden_act='gelu_10' is not supported here"),
        (CAPTION, {"vision_config.image_size": (384, 224)}, r"image_size=\(384, 224\) is not supported by blip here"),
        (CAPTION, {"vision_config.image_size": 40}, "image_size=40 is not supported by blip here: .*patch_size=16 must"),
        ("BlipModel", {}, "architectures='BlipModel' is not supported for blip"),
    ],
)
def test_refusals(name, changes, said):
    with pytest.raises(UserError, match=said):
        built(name, **changes)


def test_a_frame_that_is_not_square_has_no_config(tmp_path):
    model, params = load(save(make(CAPTION), tmp_path / "hf"))
    wide = model.copy(encoders={"image": model.encoders["image"].copy(image_size=(12, 16))})
    with pytest.raises(UserError, match=r"vision_config.image_size=\(12, 16\): a BLIP config holds a square only"):
        save_hf(wide, params, tmp_path / "back")


def listed_text(prefix, width=768, words=30524):
    """A text tower of 12 layers in a public file."""
    attention = {
        **{f"self.{n}.{p}": s for n in ("query", "key", "value") for p, s in (("weight", (width, width)), ("bias", (width,)))},
        "output.dense.weight": (width, width),
        "output.dense.bias": (width,),
        "output.LayerNorm.weight": (width,),
        "output.LayerNorm.bias": (width,),
    }
    layer = {
        **{f"{part}.{name}": shape for part in ("attention", "crossattention") for name, shape in attention.items()},
        "intermediate.dense.weight": (4 * width, width),
        "intermediate.dense.bias": (4 * width,),
        "output.dense.weight": (width, 4 * width),
        "output.dense.bias": (width,),
        "output.LayerNorm.weight": (width,),
        "output.LayerNorm.bias": (width,),
    }
    return {
        f"{prefix}embeddings.position_ids": (1, 512),
        f"{prefix}embeddings.word_embeddings.weight": (words, width),
        f"{prefix}embeddings.position_embeddings.weight": (512, width),
        f"{prefix}embeddings.LayerNorm.weight": (width,),
        f"{prefix}embeddings.LayerNorm.bias": (width,),
        **{f"{prefix}encoder.layer.{n}.{name}": shape for n in range(12) for name, shape in layer.items()},
    }


LISTED_LAYER = {
    "self_attn.qkv.weight": (2304, 768),
    "self_attn.qkv.bias": (2304,),
    "self_attn.projection.weight": (768, 768),
    "self_attn.projection.bias": (768,),
    "layer_norm1.weight": (768,),
    "layer_norm1.bias": (768,),
    "mlp.fc1.weight": (3072, 768),
    "mlp.fc1.bias": (3072,),
    "mlp.fc2.weight": (768, 3072),
    "mlp.fc2.bias": (768,),
    "layer_norm2.weight": (768,),
    "layer_norm2.bias": (768,),
}
LISTED_IMAGE = {
    "vision_model.embeddings.class_embedding": (1, 1, 768),
    "vision_model.embeddings.position_embedding": (1, 577, 768),
    "vision_model.embeddings.patch_embedding.weight": (768, 3, 16, 16),
    "vision_model.embeddings.patch_embedding.bias": (768,),
    **{f"vision_model.encoder.layers.{n}.{name}": shape for n in range(12) for name, shape in LISTED_LAYER.items()},
    "vision_model.post_layernorm.weight": (768,),
    "vision_model.post_layernorm.bias": (768,),
}


def test_the_public_captioner_maps_completely():
    """Salesforce/blip-image-captioning-base."""
    head = "text_decoder.cls.predictions"
    listed = {
        **LISTED_IMAGE,
        **listed_text("text_decoder.bert."),
        f"{head}.bias": (30524,),
        f"{head}.transform.dense.weight": (768, 768),
        f"{head}.transform.dense.bias": (768,),
        f"{head}.transform.LayerNorm.weight": (768,),
        f"{head}.transform.LayerNorm.bias": (768,),
        f"{head}.decoder.weight": (30524, 768),
        f"{head}.decoder.bias": (30524,),
    }
    map_completely("blip", CAPTION, {"text_config": {"num_attention_heads": 12}}, listed)


def test_the_public_matcher_maps_completely():
    """Salesforce/blip-itm-base-coco."""
    projections = {"vision_proj": (256, 768), "text_proj": (256, 768), "itm_head": (2, 768)}
    listed = {
        **LISTED_IMAGE,
        **listed_text("text_encoder."),
        **{f"{name}.weight": shape for name, shape in projections.items()},
        **{f"{name}.bias": shape[:1] for name, shape in projections.items()},
    }
    map_completely("blip", RETRIEVAL, {"text_config": {"num_attention_heads": 12}}, listed)
