"""One optimizer step from the same weights on the same batch leaves the same weights as PyTorch's, SGD and AdamW."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
import test_bert
import test_blip
import test_clip
import test_convert_vit
import torch
from parity import bound, compiled, hf_named, save

from mmjax.convert import load
from mmjax.train import SGD, AdamW

# AdamW's at a fine-tuning rate: its first step moves every weight by the rate, whatever the size of the gradient, and so makes
# the rounding of a gradient that almost cancels as large as that of any other.
SGD_RATE, ADAMW_RATE = 1e-3, 1e-4
SAME = {"schedule": "constant", "clip_norm": 0.0, "no_decay": ()}
OPTIMIZERS = {
    "sgd": (SGD(learning_rate=SGD_RATE, momentum=0.0, **SAME), lambda p: torch.optim.SGD(p, SGD_RATE)),
    "adamw": (
        AdamW(learning_rate=ADAMW_RATE, weight_decay=0.01, **SAME),
        lambda p: torch.optim.AdamW(p, ADAMW_RATE, weight_decay=0.01),
    ),
}
# Their gradient is zero in exact arithmetic, and AdamW makes whole steps of what rounding leaves of it.
KEY_BIAS = re.compile(r"key\.bias$|k_proj\.bias$|qkv\.bias$")


def bert():
    theirs = test_bert.make("BertForSequenceClassification", num_labels=5)
    return theirs, lambda: theirs(**test_bert.INPUTS).logits, lambda m, p: test_bert.ours(m, p, "classes")


def vit():
    theirs, image = test_convert_vit.make("ViTForImageClassification", num_labels=5), test_convert_vit.IMAGE

    def ours(model, params):
        forward = bound(model, params, {"image": image})
        return forward.head("classes", forward.encode("image"), key="x")

    return theirs, lambda: theirs(pixel_values=torch.tensor(image.transpose(0, 3, 1, 2))).logits, ours


def clip():
    theirs = test_clip.make("CLIPModel")

    def ours(model, params):
        forward = bound(model, params, test_clip.BATCH)
        return forward.scalar("dual", "scale") * forward.embed("image") @ forward.embed("text").T

    return theirs, lambda: theirs(**test_clip.PIXELS, **test_clip.WORDS).logits_per_image, ours


def blip():
    theirs = test_blip.make(test_blip.RETRIEVAL)

    def logits():
        matched = theirs(**test_blip.INPUTS).itm_score
        return torch.cat([matched.flatten(), theirs(**test_blip.INPUTS, use_itm_head=False).itm_score.flatten()])

    def ours(model, params):
        return jnp.concatenate([x.ravel() for x in test_blip.retrieval(model, params)])

    return theirs, logits, ours


@pytest.mark.parametrize("family", [bert, vit, clip, blip])
def test_the_weights_after_one_step(family, tmp_path):
    theirs, their_logits, our_logits = family()
    model, params = load(save(theirs, tmp_path / "hf"))
    weights = torch.linspace(-1, 2, their_logits().numel())
    start = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    theirs.zero_grad()
    (their_logits().flatten() * weights).sum().backward()
    fixed = jnp.asarray(weights.numpy())
    gradient = compiled(jax.grad(lambda p: (our_logits(model, p).ravel() * fixed).sum()))(params)
    for name, (ours, torchs) in OPTIMIZERS.items():
        with torch.no_grad():
            for key, p in theirs.named_parameters():
                p.copy_(start[key])
        torchs(theirs.parameters()).step()
        tx = ours.build(params, 1)

        def step(gradient, params, tx=tx):
            with jax.numpy_dtype_promotion("standard"):
                updates, _ = tx.update(gradient, tx.init(params), params)
                return optax.apply_updates(params, updates)

        found = hf_named(model, compiled(step)(gradient, params), theirs)
        for key, p in theirs.named_parameters():
            if name == "adamw" and KEY_BIAS.search(key):
                continue
            wrong = float((torch.tensor(found[key]) - p.detach()).abs().max() / p.detach().abs().max())
            assert wrong <= 1e-5, f"{name}: {key} differs by {wrong:.1e}"
            moved = p.grad is not None and SGD_RATE * float(p.grad.abs().max()) > 1e-5
            assert not moved or not torch.equal(p.detach(), start[key]), key
