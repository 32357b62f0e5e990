"""VideoMAE, both sides given the same tubelets to hide."""

import numpy as np
import torch
from cases import Case, Layers, Made, Published, answered
from parity import bound, compiled, hidden_states

from families.listed import linear, linears, stack
from families.vit import LABELS
from mmjax.convert.videomae import objective

PIXELS = np.random.default_rng(3).normal(size=(3, 8, 24, 24, 4)).astype(np.float32)
NOISE = np.random.default_rng(0).random((3, 200)).astype(np.float32)


def pair(value):
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def batch(model):
    """Videos of the config's own size."""
    c = model.config
    height, width = pair(c.image_size)
    return {"video": PIXELS[:, : c.num_frames, :height, :width, : c.num_channels]}


def seen(batch):
    return torch.tensor(np.moveaxis(batch["video"], -1, 2))


def noise(spec, batch):
    """For each place; the same at all times, as tubes are."""
    grid = spec.grid(batch["video"])
    return NOISE[:, : grid[1] * grid[2]]


def hidden(model, batch):
    """[B, P] bool of our objective, for HuggingFace's side."""
    c = model.config
    (height, width), (ph, pw), times = pair(c.image_size), pair(c.patch_size), c.num_frames // c.tubelet_size
    places = height // ph * (width // pw)
    order = np.argsort(np.argsort(NOISE[:, :places], axis=1), axis=1)
    return torch.tensor(np.tile(order >= max(1, int(places * 0.1 + 1e-6)), (1, times)))


def run(model, batch, **more):
    return model(seen(batch), bool_masked_pos=hidden(model, batch), **more)


def painted(model, batch):
    """The loss, and the pixels of what was hidden, by place."""
    out = run(model, batch)
    mask = hidden(model, batch)
    whole = torch.zeros(*mask.shape, out.logits.shape[-1])
    whole[mask] = out.logits.reshape(-1, out.logits.shape[-1])
    return {"loss": out.loss, "pixels": whole}


def ours(model, params, batch, names):
    if "pixels" not in names:
        return answered(model, params, batch, names)
    spec = objective(model)

    def paint(params):
        loss, pixels = spec.paint(bound(model, params, batch), noise(spec, batch))
        hides = spec.choose(noise(spec, batch), spec.grid(batch["video"])[0])[1]
        return {"loss": loss.sum / loss.count, "pixels": pixels * hides[..., None].astype(pixels.dtype)}

    return compiled(paint)(params)


def whole(model, batch):
    return {"tokens.video": model(seen(batch)).last_hidden_state}


def classified(model, batch):
    return {"classes": model(seen(batch)).logits}


BASE = Made("VideoMAEModel", whole)
CLASSES = Made("VideoMAEForVideoClassification", classified)
PAINT = Made("VideoMAEForPreTraining", painted)
CHANGES = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-2,
    "num_frames": 8,
    "tubelet_size": 1,
    "qv_bias": False,
    "use_mean_pooling": False,
    "image_size": 24,
    "patch_size": 8,
    "num_channels": 1,
}
PAINTED = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 20,
    "norm_pix_loss": False,
}
RATES = {
    f"{field}_prob": (value, (f"encoders.video.{leaf}", f"decoders.pixels.{leaf}"))
    for field, value, leaf in (("hidden_dropout", 0.3, "dropout"), ("attention_probs_dropout", 0.2, "attention_dropout"))
}


def published(model, tensors):
    """What transformers 5 calls tensors in memory."""
    return {name: x.detach().numpy() for name, x in model.state_dict().items()}


def layer(width):
    """Of a public file: the biases of queries and values lie beside their layers."""
    return {
        **linears("layernorm_{before after}", width),
        **linears("attention.attention.{query key value}", width, width, bias=False),
        "attention.attention.q_bias": (width,),
        "attention.attention.v_bias": (width,),
        **linear("attention.output.dense", width, width),
        **linear("intermediate.dense", 4 * width, width),
        **linear("output.dense", width, 4 * width),
    }


ENCODER = {
    **linear("videomae.embeddings.patch_embeddings.projection", 768, 3, 2, 16, 16),
    **stack("videomae.encoder.layer", 12, layer(768)),
}
CONFIG = {
    "attention_probs_dropout_prob": 0.0,
    "decoder_hidden_size": 384,
    "decoder_intermediate_size": 1536,
    "decoder_num_attention_heads": 6,
    "decoder_num_hidden_layers": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "norm_pix_loss": True,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_frames": 16,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "tubelet_size": 2,
}

VIDEOMAE = Case(
    "videomae",
    sizes={
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "image_size": 16,
        "patch_size": 4,
        "num_frames": 4,
        "tubelet_size": 2,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 28,
    },
    batch=batch,
    models=(
        BASE,
        BASE.of({"image_size": [8, 20], "patch_size": [4, 5], "use_mean_pooling": False, "num_frames": 6, "tubelet_size": 3}),
        CLASSES.of({"num_labels": 5}),
        CLASSES.of({"num_labels": 0, "use_mean_pooling": False, "qv_bias": False}),
        PAINT,
        PAINT.of({**CHANGES, "num_channels": 3, "norm_pix_loss": False, "patch_size": 4, "image_size": [16, 24]}),
    ),
    honoured=((BASE, CHANGES), (PAINT, PAINTED)),
    training=((PAINT, RATES),),
    mistakes=(
        ({"image_size": 18}, "image_size=18 is not supported here: patch_size=4 must divide it"),
        ({"num_frames": 5}, "num_frames=5 is not supported here: tubelet_size=2 must divide it"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        ({"architectures": ["VideoMAEForX"]}, "architectures='VideoMAEForX' is not supported for videomae"),
        (
            {"architectures": ["VideoMAEForPreTraining"], "patch_size": [4, 8]},
            r"patch_size=\[4, 8\] is not supported by VideoMAEForPreTraining; it must be a square",
        ),
    ),
    layers=Layers(
        BASE,
        lambda model, batch: {"video": model(seen(batch), output_hidden_states=True).hidden_states[1:]},
        ours=lambda model, params, batch: {"video": hidden_states(model, params, "encode", "video", {"": batch["video"]})},
    ),
    gradient=PAINT,
    loss=(
        lambda model, batch: run(model, batch).loss,
        lambda model, params, batch: ours(model, params, batch, ("loss", "pixels"))["loss"],
    ),
    steps=True,
    names={"in memory": (CLASSES, published)},
    published=(  # MCG-NJU/videomae-base and videomae-base-finetuned-kinetics, with the config.json that they have
        Published(
            "VideoMAEForPreTraining",
            {**CONFIG, "use_mean_pooling": True},
            {
                **ENCODER,
                **linear("encoder_to_decoder", 384, 768, bias=False),
                "mask_token": (1, 1, 384),
                **stack("decoder.decoder_layers", 4, layer(384)),
                **linear("decoder.norm", 384),
                **linear("decoder.head", 1536, 384),
            },
            94_209_408,
        ),
        Published(
            "VideoMAEForVideoClassification",
            {**CONFIG, **LABELS, "use_mean_pooling": True},
            {**ENCODER, **linear("fc_norm", 768), **linear("classifier", 1000, 768)},
            86_996_200,
        ),
    ),
    ours=ours,
)
