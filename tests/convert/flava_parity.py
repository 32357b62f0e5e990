"""FLAVA's outputs, of HuggingFace's models and of ours, by the same names."""

import copy
import functools

import jax.numpy as jnp
import numpy as np
import torch
import transformers as hf
from parity import assert_close, bound, hidden_states, part, randomise

from mmjax.convert.vit import pair

STACK = {"hidden_size": 24, "num_attention_heads": 3, "layer_norm_eps": 1e-5, "num_hidden_layers": 2}
SIZES = {
    "text_config": STACK | {"vocab_size": 37, "max_position_embeddings": 13, "num_hidden_layers": 3, "intermediate_size": 20},
    "image_config": STACK | {"image_size": [8, 12], "patch_size": [4, 2], "vocab_size": 17, "intermediate_size": 28},
    "multimodal_config": STACK | {"intermediate_size": 16},
    "image_codebook_config": {"hidden_size": 8, "vocab_size": 17},
    "hidden_size": 24,
    "projection_dim": 14,
    "init_codebook": False,
}
WIDTHS = {"text_config": 18, "image_config": 36, "multimodal_config": 12}  # FlavaModel's may differ
RNG = np.random.default_rng(0)
T = 9
IDS, HIDDEN_IDS = RNG.integers(1, 37, (2, 3, T))
MASK = np.arange(T)[None] < np.array([[9], [5], [7]])
SEGMENTS = (np.arange(T)[None] >= np.array([[4], [3], [9]])).astype(np.int64)
PIXELS = RNG.normal(size=(3, 4, 16, 16)).astype(np.float32)
MASKED = RNG.random((3, 64)) < 0.4  # patches


def make(changes=None, name="FlavaForPreTraining"):
    """A value that is a dict is of the groups that are its keys ("" for none)."""
    config = copy.deepcopy(SIZES)
    for field, value in (changes or {}).items():
        *group, leaf = field.split(".")
        for where, own in (value if isinstance(value, dict) else {group[0] if group else "": value}).items():
            (config[where] if where else config)[leaf] = own
    return randomise(getattr(hf, name)(hf.FlavaConfig(**config)))


def picture(size, patch, channels):
    """Pixels [B, C, H, W] and which patches are masked [B, P]."""
    count = (size[0] // patch[0]) * (size[1] // patch[1])
    return PIXELS[:, :channels, : size[0], : size[1]], MASKED[:, :count]


def inputs(theirs):
    image = theirs.config.image_config
    pixels, masked = picture(pair(image.image_size), pair(image.patch_size), image.num_channels)
    text = {
        "input_ids": torch.tensor(IDS),
        "attention_mask": torch.tensor(MASK.astype(np.int64)),
        "token_type_ids": torch.tensor(SEGMENTS),
    }
    return text, {"pixel_values": torch.tensor(pixels)}, {"bool_masked_pos": torch.tensor(masked)}


def read_text(model, params, ids):
    """The text's tokens, and those after the tower's norm."""
    forward = bound(model, params, {"text": ids, "text_mask": MASK, "text_segments": SEGMENTS.astype(np.int32)})
    tokens = forward.encode("text")
    return tokens, forward.fuse("text_normed", {"text": tokens}, key="x")


def read_image(model, params, masked):
    """The image's tokens, and those after the tower's norm; `masked` [B, P] int32, or None for no patch."""
    image = model.encoders["image"]
    pixels, _ = picture(image.image_size, image.patch, image.channels)
    segments = {} if masked is None else {"image_segments": masked}
    forward = bound(model, params, {"image": pixels.transpose(0, 2, 3, 1), **segments})
    tokens = forward.encode("image")
    return tokens, forward.fuse("image_normed", {"image": tokens}, key="x")


def join(model, params, tokens):
    return bound(model, params, {}).fuse("joint", tokens, key="x")


def compare(model, params, tokens):
    """Each modality in the contrastive space, and its scale."""
    apply = model.copy(dtype="float32").apply
    unit = {m: apply({"params": params}, "dual", m, own, method="embed") for m, own in tokens.items()}
    return unit, bound(model, params, {}).scalar("dual", "scale")


@functools.cache
def head(name):
    return lambda model, params, tokens: bound(model, params, {}).head(name, tokens, key="x")


def towers(model, params, masked=True):
    """Tokens by modality, and by fusion the towers' normed and the joint ones: of masked inputs, or of plain ones."""
    image = model.encoders["image"]
    _, places = picture(image.image_size, image.patch, image.channels)
    places = places.astype(np.int32) * masked if image.mask_token else None
    ids = (HIDDEN_IDS if masked else IDS).astype(np.int32)
    text, text_normed = part(read_text, model, params, ("encoders.text", "fusions.text_normed"), ids)
    image, image_normed = part(read_image, model, params, ("encoders.image", "fusions.image_normed"), places)
    tokens = {"text": text, "image": image}
    joint = part(join, model, params, ("fusions.joint",), tokens)
    return tokens, {"text_normed": text_normed, "image_normed": image_normed, "joint": joint}


def contrast(model, params, tokens):
    return part(compare, model, params, ("fusions.dual", "fusions.image_normed", "fusions.text_normed"), tokens)


def heads(theirs):
    """Everything that FlavaForPreTraining predicts, by our names."""
    text, image, masked = inputs(theirs)
    text["input_ids_masked"] = torch.tensor(HIDDEN_IDS)
    both = theirs(**text, **image, **masked, return_loss=False)
    return {
        "match": both.itm_logits,
        "joint_masked_lm": both.mmm_text_logits,
        "joint_masked_image": both.mmm_image_logits,
        "dual": both.contrastive_logits_per_image,
        "masked_lm": theirs(**text, return_loss=False).mlm_logits,
        "masked_image": theirs(**image, **masked, return_loss=False).mim_logits,
    }


def our_heads(model, params):
    _, fused = towers(model, params)
    unit, scale = contrast(model, params, towers(model, params, masked=False)[0])
    names = ("match", "joint_masked_lm", "joint_masked_image", "masked_lm", "masked_image")
    out = {n: part(head(n), model, params, (f"heads.{n}",), fused[model.heads[n].input]) for n in names}
    joint = {
        "joint_masked_lm": out["joint_masked_lm"][:, 1 : 1 + T],
        "joint_masked_image": out["joint_masked_image"][:, 2 + T :],
    }
    return out | joint | {"dual": scale * (unit["image"] @ unit["text"].T)}


def base(theirs):
    """What FlavaModel gives."""
    text, image, _ = inputs(theirs)
    out = theirs(**text, **image)
    projected = {"text": theirs.get_text_features(**text), "image": theirs.get_image_features(**image)}
    return {
        "text_normed": out.text_embeddings,
        "image_normed": out.image_embeddings,
        "joint": out.multimodal_embeddings,
        "text_pooler": out.text_output.pooler_output,
        "image_pooler": out.image_output.pooler_output,
        "pooler": out.multimodal_output.pooler_output,
        **{f"{m} in dual": torch.nn.functional.normalize(x.pooler_output[:, 0], dim=-1) for m, x in projected.items()},
    }


def our_base(model, params):
    tokens, fused = towers(model, params, masked=False)
    unit, _ = contrast(model, params, tokens)
    poolers = ("text_pooler", "image_pooler", "pooler")
    return {
        **{name: own.embeddings for name, own in fused.items()},
        "joint": as_theirs(model, fused["joint"].embeddings),
        **{n: part(head(n), model, params, (f"heads.{n}",), fused[model.heads[n].input]) for n in poolers},
        **{f"{m} in dual": unit[m] for m in tokens},
    }


def as_theirs(model, x_BTD):
    """The joint tokens in HuggingFace's order, the text last."""
    if not model.fusions["joint"].cls_token:
        return x_BTD
    return jnp.concatenate([x_BTD[:, :1], x_BTD[:, 1 + T :], x_BTD[:, 1 : 1 + T]], axis=1)


def real(name, length):
    """Which tokens count: [B, T] of what has a text's, None where all do."""
    if name in ("masked_lm", "joint_masked_lm", "text_normed"):
        return MASK
    return np.pad(MASK, ((0, 0), (length - T, 0)), constant_values=True) if name == "joint" else None


def check_all(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(ours[name], value, where=real(name, value.shape[1]))


def flat(outputs):
    """All that counts in one row."""
    arrays = {n: np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for n, x in sorted(outputs.items())}
    kept = [x if (keep := real(n, x.shape[1])) is None else x[keep] for n, x in arrays.items()]
    return np.concatenate([x.ravel() for x in kept])


def states(model, params, tokens):
    """The outputs of each layer of each tower, and of the joint encoder."""
    image = model.encoders["image"]
    pixels, masked = picture(image.image_size, image.patch, image.channels)
    raw = {
        "text": (IDS.astype(np.int32), MASK, SEGMENTS.astype(np.int32)),
        "image": (pixels.transpose(0, 2, 3, 1), None, masked.astype(np.int32)),
    }
    joint = hidden_states(model, params, "fuse", "joint", tokens)
    return {
        **{m: hidden_states(model, params, "encode", m, *raw[m]) for m in raw},
        "multimodal": [as_theirs(model, x_BTD) for x_BTD in joint],
    }


def differ(one, other):
    return one.shape != other.shape or (one - other).abs().max() > 1e-4 * other.abs().max()
