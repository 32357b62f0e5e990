"""What the `adapters` library does with bottlenecks, in an environment of its own: `python adapters_peer.py make|read DIR`.

make: of every case a base, an adapter with random numbers, the outputs, and what one step of AdamW makes of it, from PyTorch.
read: the outputs of every case's base with the folder `ours` beside it.
"""

import json
import pathlib
import sys
import warnings

import adapters
import numpy as np
import torch
import transformers
from adapters import BnConfig, DoubleSeqBnConfig, SeqBnConfig

SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
WORDS = {"vocab_size": 67, "max_position_embeddings": 24}
TOWER = {**SMALL, "hidden_act": "quick_gelu"}
IMAGE = {"image_size": 16, "patch_size": 8, "num_channels": 3}
CLIP = {
    "text_config": {**TOWER, **WORDS, "bos_token_id": 0, "eos_token_id": 66, "pad_token_id": 1},
    "vision_config": {**TOWER, **IMAGE, "hidden_size": 48, "num_attention_heads": 3},
    "projection_dim": 16,
}
MIXED = BnConfig(
    mh_adapter=True,
    output_adapter=True,
    non_linearity="gelu",
    reduction_factor={"0": 8, "default": 5},
    original_ln_before=True,
    leave_out=[1],
)
# Name -> class, its config, the adapter's.
CASES = {
    "bert-pfeiffer": ("BertForSequenceClassification", {**SMALL, **WORDS, "num_labels": 3}, SeqBnConfig(reduction_factor=8)),
    "bert-houlsby": ("BertModel", {**SMALL, **WORDS}, DoubleSeqBnConfig(reduction_factor=4)),
    "bert-mixed": ("BertForMaskedLM", {**SMALL, **WORDS}, MIXED),
    "roberta-houlsby": ("RobertaForSequenceClassification", {**SMALL, **WORDS, "num_labels": 4}, DoubleSeqBnConfig()),
    "gpt2-pfeiffer": (
        "GPT2LMHeadModel",
        {"n_layer": 3, "n_embd": 32, "n_head": 2, "n_positions": 24, "vocab_size": 67},
        SeqBnConfig(),
    ),
    "llama-mixed": ("LlamaForCausalLM", {**SMALL, **WORDS, "num_key_value_heads": 1}, MIXED),
    "clip-houlsby": ("CLIPModel", CLIP, DoubleSeqBnConfig(reduction_factor=8, non_linearity="tanh")),
    "clip-text": ("CLIPModel", CLIP, SeqBnConfig(leave_out=[3, 4, 5], non_linearity="quick_gelu")),
    "clip-text-alone": ("CLIPTextModelWithProjection", CLIP["text_config"], DoubleSeqBnConfig()),
    "clip-image-alone": ("CLIPVisionModelWithProjection", CLIP["vision_config"], MIXED),
    "vit-pfeiffer": ("ViTForImageClassification", {**SMALL, **IMAGE, "num_labels": 3}, SeqBnConfig(non_linearity="gelu_new")),
    "vit-houlsby": ("ViTModel", {**SMALL, **IMAGE}, DoubleSeqBnConfig()),
}
RATE = 1e-4


def inputs(model):
    rng, words, given = (
        np.random.default_rng(0),
        "text_config" in model.config.to_dict() or hasattr(model.config, "vocab_size"),
        {},
    )
    if words:
        ids = rng.integers(4, 66, (2, 9))
        ids[:, -1] = 66  # where a CLIP's text ends
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    if hasattr(model.config, "vision_config") or hasattr(model.config, "image_size"):
        given["pixel_values"] = torch.tensor(rng.normal(size=(2, 3, 16, 16)).astype(np.float32))
    return given


def outputs(model, given):
    found = model(**given)
    names = ("logits", "logits_per_image", "pooler_output", "text_embeds", "last_hidden_state")
    if type(model).__name__ == "CLIPVisionModelWithProjection":
        names = ("image_embeds",)
    elif type(model).__name__ == "CLIPModel":
        names = ("logits_per_image",)
    return {name: found[name] for name in names if name in found and found[name] is not None}


def total(found):
    """One number of all outputs, each with a weight of its own."""
    rng = np.random.default_rng(1)
    return sum((x * torch.tensor(rng.normal(size=x.shape).astype(np.float32))).sum() for x in found.values())


def numbers(tensors):
    return {name: x.detach().numpy() for name, x in tensors.items()}


def make(folder):
    for name, (kind, config, adapter) in CASES.items():
        torch.manual_seed(0)
        cls = getattr(transformers, kind)
        model = cls(cls.config_class(**config)).eval()
        with torch.no_grad():
            for path, x in model.named_parameters():
                x.add_(0.05 * torch.randn(x.shape) if "norm" in path.lower() or x.ndim == 1 else 0.1 * torch.randn(x.shape))
        model.save_pretrained(folder / name / "base")
        adapters.init(model)
        model.add_adapter("theirs", config=adapter)
        model.train_adapter("theirs")
        own = {path: x for path, x in model.named_parameters() if ".adapters.theirs." in path}
        with torch.no_grad():
            for x in own.values():
                x.copy_(0.3 * torch.randn(x.shape))
            for path, x in model.named_parameters():
                if path.startswith(("classifier", "score")):
                    x.add_(0.1 * torch.randn(x.shape))
        model.eval()
        given = inputs(model)
        safe = "bert" in name
        model.save_adapter(
            str(folder / name / "theirs"), "theirs", use_safetensors=safe, with_head=kind.endswith("Classification")
        )
        with torch.no_grad():
            found = outputs(model, given)
        torch.set_default_dtype(torch.float64)  # whose gradients are exact to what is compared
        model.double()
        double = {key: x.double() if x.is_floating_point() else x for key, x in given.items()}
        optimizer = torch.optim.AdamW(own.values(), RATE, weight_decay=0.01)
        total(outputs(model, double)).backward()
        gradients = {path: x.grad.clone() for path, x in own.items()}
        optimizer.step()
        np.savez(folder / name / "inputs.npz", **{k: v.numpy() for k, v in given.items()})
        np.savez(folder / name / "outputs.npz", **numbers(found))
        np.savez(folder / name / "gradients.npz", **numbers(gradients))
        np.savez(folder / name / "stepped.npz", **numbers(own))
        torch.set_default_dtype(torch.float32)


def read(folder):
    for name, (kind, _, _) in CASES.items():
        if not (folder / name / "ours").is_dir():
            continue
        model = getattr(transformers, kind).from_pretrained(folder / name / "base").eval()
        adapters.init(model)
        info = {}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            given = model.load_adapter(str(folder / name / "ours"), use_safetensors=True, set_active=True, loading_info=info)
        about = {"name": given, "missing": info.get("missing_keys", []), "unexpected": info.get("unexpected_keys", [])}
        if (folder / name / "ours" / "head_config.json").is_file():  # what the card says is run as its reader pastes it
            code = (folder / name / "ours" / "README.md").read_text().split("```python\n")[1].split("```")[0]
            code = code.replace("path/to/this/folder", str(folder / name / "ours"))
            named = {}
            exec(code.replace("path/to/the/base", str(folder / name / "base")), named)
            pasted, kept = outputs(named["base"].eval(), inputs(model)), outputs(model.eval(), inputs(model))
            assert all(torch.equal(pasted[key], x) for key, x in kept.items()), name
        about["labels"] = getattr(model.config, "id2label", None)
        (folder / name / "about.json").write_text(json.dumps(about))
        model.eval()
        with torch.no_grad():
            np.savez(folder / name / "read.npz", **numbers(outputs(model, inputs(model))))


if __name__ == "__main__":
    {"make": make, "read": read}[sys.argv[1]](pathlib.Path(sys.argv[2]))
