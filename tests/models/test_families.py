"""Published families are configurations: tiny random HuggingFace models, their weights copied, give the same hidden states."""

import jax
import jax.numpy as jnp
import numpy as np
from pytorch import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Dual

D, H, K, F, L, V, T = 16, 2, 8, 32, 2, 50, 7
SIZE = {"width": D, "depth": L, "heads": H, "mlp_width": F}
THEIRS = {"hidden_size": D, "num_hidden_layers": L, "num_attention_heads": H, "intermediate_size": F}

IDS = np.random.default_rng(0).integers(1, V - 1, (3, T))
MASK = np.arange(T)[None] < np.array([[7], [4], [5]])
IMAGE = np.random.default_rng(1).normal(size=(3, 8, 12, 3)).astype(np.float32)


def made(architecture, config, **words):
    """Their model, its weights to be drawn; torch is used first, so that the test is skipped without it."""
    torch.manual_seed(0)
    return architecture(config, **words)


def drawn(model):
    """Every weight drawn with standard deviation 0.2, and all of them by name."""
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return {name: w.detach().numpy() for name, w in model.eval().named_parameters()}


def run(model, **inputs):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(x) for name, x in inputs.items()})


def assert_close(ours, theirs, mask=None):
    ours, theirs = np.asarray(ours), theirs.numpy()
    if mask is not None:
        ours, theirs = ours[mask], theirs[mask]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 2e-5


def norm(w, name):
    return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def linear(w, name, into=(-1,), out=(-1,)):
    return {"kernel": w[f"{name}.weight"].T.reshape(*into, *out), "bias": w[f"{name}.bias"].reshape(out)}


def block(w, qkv, out, attention_norm, up, down, mlp_norm):
    attention = {ours: linear(w, theirs, (D,), (H, K)) for ours, theirs in zip("qkv", qkv, strict=True)}
    return {
        "attention": attention | {"out": linear(w, out, (H, K), (D,))},
        "attention_norm": norm(w, attention_norm),
        "mlp": {"up": linear(w, up, (D,)), "down": linear(w, down, (F,))},
        "mlp_norm": norm(w, mlp_norm),
    }


def stacked(layer):
    return jax.tree.map(lambda *weights: np.stack(weights), *[layer(i) for i in range(L)])


def table(w, name):
    return {"table": w[f"{name}.weight"]}


def patches(weight_DCHW):
    return weight_DCHW.transpose(2, 3, 1, 0).reshape(-1, D)


def test_bert():
    theirs = made(BertModel, BertConfig(vocab_size=V, max_position_embeddings=T, **THEIRS), add_pooling_layer=False)
    w = drawn(theirs)

    def layer(i):
        p = f"encoder.layer.{i}."
        qkv = [f"{p}attention.self.{name}" for name in ("query", "key", "value")]
        out, up, down = p + "attention.output.dense", p + "intermediate.dense", p + "output.dense"
        return block(w, qkv, out, p + "attention.output.LayerNorm", up, down, p + "output.LayerNorm")

    params = {
        "words": table(w, "embeddings.word_embeddings"),
        "position": table(w, "embeddings.position_embeddings"),
        "segment": table(w, "embeddings.token_type_embeddings"),
        "embed_norm": norm(w, "embeddings.LayerNorm"),
        "stack": {"layers": stacked(layer)},
    }
    post = {"norm_placement": "post", "norm_epsilon": 1e-12, "embed_norm": True}
    model = TextTransformer(vocab_size=V, max_length=T, segments=2, **post, **SIZE)
    segments = (np.arange(T)[None] >= 3).astype(np.int64).repeat(3, axis=0)
    hidden = jax.jit(model.apply)({"params": params}, jnp.asarray(IDS), MASK, jnp.asarray(segments)).embeddings
    expected = run(theirs, input_ids=IDS, attention_mask=MASK.astype(np.int64), token_type_ids=segments)
    assert_close(hidden, expected.last_hidden_state, MASK)


def test_gpt2():
    config = GPT2Config(
        vocab_size=V, n_positions=T, n_embd=D, n_layer=L, n_head=H, n_inner=F, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    theirs = made(GPT2LMHeadModel, config)
    w = drawn(theirs)

    def layer(i):
        p = f"transformer.h.{i}."
        own = {}
        for j, name in enumerate("qkv"):
            own[f"{name}.weight"] = w[p + "attn.c_attn.weight"][:, j * D : (j + 1) * D].T
            own[f"{name}.bias"] = w[p + "attn.c_attn.bias"][j * D : (j + 1) * D]
        for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):  # GPT-2 keeps its kernels the way we do
            own |= {f"{name}.weight": w[f"{p}{name}.weight"].T, f"{name}.bias": w[f"{p}{name}.bias"]}
        own |= {name: w[p + name] for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")}
        return block(own, "qkv", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")

    params = {
        "words": table(w, "transformer.wte"),
        "position": table(w, "transformer.wpe"),
        "stack": {"layers": stacked(layer), "final_norm": norm(w, "transformer.ln_f")},
    }
    model = TextDecoder(vocab_size=V, max_length=T, context=(), activation="gelu_tanh", norm_epsilon=1e-5, tied=True, **SIZE)
    logits = jax.jit(lambda p, ids, mask: model.apply({"params": p}, ids, mask, method="decode"))(params, IDS, MASK)
    assert_close(logits, run(theirs, input_ids=IDS, attention_mask=MASK.astype(np.int64)).logits, MASK)


def test_vit():
    config = ViTConfig(image_size=(8, 12), patch_size=(4, 2), **THEIRS)
    theirs = made(ViTModel, config, add_pooling_layer=False)
    w = drawn(theirs)
    names = set(w)

    def layer(i):
        def named(*choices):  # the names differ between releases of transformers
            return next(n for n in choices if f"{n}.weight" in names)

        p = next(p for p in (f"encoder.layer.{i}.", f"layers.{i}.") if any(n.startswith(p) for n in names))
        qkv = [
            named(f"{p}attention.attention.{long}", f"{p}attention.{short}")
            for long, short in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
        ]
        out = named(f"{p}attention.output.dense", f"{p}attention.o_proj")
        up, down = named(f"{p}intermediate.dense", f"{p}mlp.fc1"), named(f"{p}output.dense", f"{p}mlp.fc2")
        return block(w, qkv, out, p + "layernorm_before", up, down, p + "layernorm_after")

    projection = "embeddings.patch_embeddings.projection"
    params = {
        "cls": w["embeddings.cls_token"][0],
        "position": {"table": w["embeddings.position_embeddings"][0]},
        "project_patches": {"kernel": patches(w[f"{projection}.weight"]), "bias": w[f"{projection}.bias"]},
        "stack": {"layers": stacked(layer), "final_norm": norm(w, "layernorm")},
    }
    model = ViT(image_size=(8, 12), patch=(4, 2), cls_token=True, norm_epsilon=1e-12, **SIZE)
    hidden = jax.jit(model.apply)({"params": params}, IMAGE).embeddings
    assert_close(hidden, run(theirs, pixel_values=IMAGE.transpose(0, 3, 1, 2)).last_hidden_state)


def clip():
    text = {
        "vocab_size": V,
        "max_position_embeddings": T,
        "eos_token_id": V - 1,
        "bos_token_id": 0,
        "pad_token_id": 0,
        **THEIRS,
    }
    image = {"image_size": 8, "patch_size": 4, **THEIRS}
    theirs = made(CLIPModel, CLIPConfig(text_config=text, vision_config=image, projection_dim=6))
    w = drawn(theirs)

    def layers(tower):
        def layer(i):
            p = f"{tower}.encoder.layers.{i}."
            qkv = [f"{p}self_attn.{name}_proj" for name in "qkv"]
            names = [p + name for name in ("self_attn.out_proj", "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")]
            return block(w, qkv, *names)

        return stacked(layer)

    params = {
        "encoders_text": {
            "words": table(w, "text_model.embeddings.token_embedding"),
            "position": table(w, "text_model.embeddings.position_embedding"),
            "stack": {"layers": layers("text_model"), "final_norm": norm(w, "text_model.final_layer_norm")},
        },
        "encoders_image": {
            "cls": w["vision_model.embeddings.class_embedding"][None],
            "position": table(w, "vision_model.embeddings.position_embedding"),
            "project_patches": {
                "kernel": patches(w["vision_model.embeddings.patch_embedding.weight"]),
                "bias": np.zeros(D, np.float32),
            },
            "embed_norm": norm(w, "vision_model.pre_layrnorm"),
            "stack": {"layers": layers("vision_model"), "final_norm": norm(w, "vision_model.post_layernorm")},
        },
        "fusions_dual": {
            "project_image": {"kernel": w["visual_projection.weight"].T},
            "project_text": {"kernel": w["text_projection.weight"].T},
            "scale_logit": w["logit_scale"],
            "bias_logit": np.float32(0),
        },
    }
    return theirs, params


def test_clip():
    theirs, params = clip()
    size = {"activation": "quick_gelu", "norm_epsilon": 1e-5, **SIZE}
    model = Multimodal(
        encoders={
            "image": ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, embed_norm=True, **size),
            "text": TextTransformer(vocab_size=V, max_length=T, causal=True, **size),
        },
        fusions={"dual": Dual(width=6, pool={"image": "cls", "text": "last"})},
    )
    ids = np.where(MASK, IDS, 0)
    ids[np.arange(3), MASK.sum(axis=1) - 1] = V - 1
    image = np.ascontiguousarray(IMAGE[:, :, :8])

    @jax.jit
    def ours(params, batch):
        forward = BoundForward(model, params, batch)
        embedded = [forward.embed(m) for m in ("image", "text")]
        return forward.encode("text").embeddings, *embedded, forward.scalar("dual", "scale") * embedded[0] @ embedded[1].T

    hidden, image_BE, text_BE, logits = ours(params, {"image": image, "text": ids, "text_mask": MASK})
    expected = run(theirs, input_ids=ids, pixel_values=image.transpose(0, 3, 1, 2), attention_mask=MASK.astype(np.int64))
    assert_close(hidden, expected.text_model_output.last_hidden_state, MASK)
    assert_close(image_BE, expected.image_embeds)
    assert_close(text_BE, expected.text_embeds)
    assert_close(logits, expected.logits_per_image)
