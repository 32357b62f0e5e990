"""ViT-MAE, both sides given the same noise to mask by."""

import numpy as np
import torch
from cases import Case, Layers, Made, Published, given
from parity import bound, compiled, hidden_states

from families.listed import linear, stack, vit_layer
from families.vit import CONFIG, base, batch, in_memory
from mmjax.convert.vit_mae import objective

NOISE = np.random.default_rng(0).random((3, 140)).astype(np.float32)  # as much as the largest image has patches


def run(model, batch, **more):
    """HuggingFace's output."""
    height, width = batch["image"].shape[1:3]
    patch = model.config.patch_size
    return model(**given(model, batch), noise=torch.tensor(NOISE[:, : height // patch * (width // patch)]), **more)


def keep(model, batch):
    """The patches that are left, [3, K]."""
    spec = objective(model)
    return spec.choose(NOISE[:, : spec.patches(batch["image"]).shape[1]])[0]


def ours(model, params, batch, names):
    """What the encoder gives of the patches that are left; or the loss and the pixels."""
    spec = objective(model)
    noise = NOISE[:, : spec.patches(batch["image"]).shape[1]]

    def encode(params):
        kept = {"image_keep": spec.choose(noise)[0]}
        return {"seen": bound(model, params, batch).encode("image", kept, key="x").embeddings}

    def paint(params):
        loss, painted = spec.paint(bound(model, params, batch), noise)
        return {"loss": loss.sum / loss.count, "pixels": painted}

    return compiled(encode if "seen" in names else paint)(params)


def painted(model, batch):
    out = run(model, batch)
    return {"loss": out.loss, "pixels": out.logits}


BASE = Made("ViTMAEModel", lambda model, batch: {"seen": run(model, batch).last_hidden_state})
PAINT = Made("ViTMAEForPreTraining", painted)
RATES = {
    f"{field}_prob": (value, (f"encoders.image.{leaf}", f"decoders.pixels.{leaf}"))
    for field, value, leaf in (
        ("hidden_dropout", 0.3, "dropout"),
        ("attention_probs_dropout", 0.2, "attention_dropout"),
    )
}


def published(model, tensors):
    """What versions before 5 called tensors on disk."""
    return {name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): x for name, x in tensors.items()}


LISTED = {
    **base("vit", vit_layer()),
    "decoder.mask_token": (1, 1, 512),
    "decoder.decoder_pos_embed": (1, 197, 512),
    **linear("decoder.decoder_embed", 512, 768),
    **stack("decoder.decoder_layers", 8, vit_layer(512)),
    **linear("decoder.decoder_norm", 512),
    **linear("decoder.decoder_pred", 768, 512),
}
OWN = {
    "decoder_hidden_size": 512,
    "decoder_intermediate_size": 2048,
    "decoder_num_attention_heads": 16,
    "decoder_num_hidden_layers": 8,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "qkv_bias": True,
    "torch_dtype": "float32",
    "transformers_version": "4.16.0.dev0",
}

VIT_MAE = Case(
    "vit_mae",
    sizes={
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "image_size": 20,
        "patch_size": 4,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 28,
    },
    batch=batch,
    models=(BASE, PAINT, PAINT.of({"norm_pix_loss": True, "qkv_bias": False, "mask_ratio": 0.4})),
    honoured=(
        (
            PAINT,
            {
                "hidden_size": 36,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 20,
                "hidden_act": "gelu_new",
                "layer_norm_eps": 1e-2,
                "patch_size": 5,
                "qkv_bias": False,
                "decoder_hidden_size": 32,
                "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 4,
                "decoder_intermediate_size": 20,
                "mask_ratio": 0.5,
                "norm_pix_loss": True,
                "image_size": 12,
                "num_channels": 1,
            },
        ),
    ),
    training=((PAINT, RATES),),
    mistakes=(
        ({"image_size": [20, 12]}, r"image_size=\[20, 12\] is not supported by vit_mae here; it must be a square"),
        ({"patch_size": [4, 5]}, r"patch_size=\[4, 5\] is not supported by vit_mae here; it must be a square"),
        ({"image_size": 22}, "image_size=22 is not supported here: patch_size=4 must divide it"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported here"),
        ({"architectures": ["ViTMAEForX"]}, "architectures='ViTMAEForX' is not supported for vit_mae"),
    ),
    layers=Layers(
        BASE,
        lambda model, batch: {"image": run(model, batch, output_hidden_states=True).hidden_states[1:]},
        ours=lambda model, params, batch: {
            "image": hidden_states(model, params, "encode", "image", {"": batch["image"], "keep": keep(model, batch)})
        },
    ),
    gradient=PAINT.of({"norm_pix_loss": True}),
    loss=(
        lambda model, batch: run(model, batch).loss,
        lambda model, params, batch: ours(model, params, batch, ("loss",))["loss"],
    ),
    images=((BASE, ((12, 28),)), (PAINT, ((24, 16),))),
    names={"in memory": (PAINT, in_memory), "published": (PAINT, published)},
    # facebook/vit-mae-base, with the config.json it has.
    published=(Published("ViTMAEForPreTraining", CONFIG | OWN, LISTED, 111_907_840),),
    ours=ours,
)
