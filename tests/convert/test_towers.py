"""Models of our own leave as the HuggingFace class that they are, or tower by tower."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import torch
import transformers as hf
from parity import assert_close, bound, compiled

from mmjax.cli import main
from mmjax.convert import save_hf
from mmjax.convert.api import save_params
from mmjax.convert.towers import same_class, towers
from mmjax.core.trees import map_with_path
from mmjax.models import Multimodal, param_shapes
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier
from mmjax.train.config_file import load_config
from mmjax.train.run import Run, environment

SIZES = {"width": 16, "depth": 2, "heads": 2}
IMAGE = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
IDS = np.array([[5, 9, 3, 7, 0, 0], [2, 8, 4, 6, 1, 3]])
MASK = IDS > 0


def params_of(model):
    """Noise, around 1 for scales."""
    rng = np.random.default_rng(1)

    def noise(path, x):
        return jnp.asarray(rng.normal(size=x.shape) * 0.2 + path.endswith("/scale"), jnp.float32)

    return map_with_path(noise, param_shapes(model))


def ours(activation="gelu"):
    text = TextTransformer(vocab_size=11, max_length=6, activation=activation, **SIZES)
    image = ViT(image_size=(8, 8), patch=(4, 4), activation=activation, **SIZES)
    return Multimodal(
        encoders={"image": image, "text": text}, fusions={"dual": Dual(width=16), "cross": Cross(**{**SIZES, "depth": 1})}
    )


def test_each_tower_is_a_class_of_its_own(tmp_path):
    model = ours()
    params = params_of(model)
    assert same_class(model) is None
    found, left = towers(model, params)
    assert {m: t.architecture for m, t in found.items()} == {"image": "SiglipVisionModel", "text": "SiglipTextModel"}
    assert left == ["fusions.cross", "fusions.dual"]
    for modality, tower in found.items():
        save_hf(tower.model, tower.params, tmp_path / modality)
    batch = {"image": IMAGE, "text": IDS.astype(np.int32), "text_mask": MASK}
    encode = lambda params: [bound(model, params, batch).encode(m).embeddings for m in ("image", "text")]  # noqa: E731
    pictures, words = compiled(encode)(params)
    vision = hf.AutoModel.from_pretrained(tmp_path / "image").eval()
    text = hf.SiglipTextModel.from_pretrained(tmp_path / "text").eval()
    with torch.no_grad():
        pixels = torch.tensor(IMAGE.transpose(0, 3, 1, 2))
        assert_close(pictures, vision(pixel_values=pixels).last_hidden_state)
        read = text(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK.astype(np.int64))).last_hidden_state
        assert_close(words, read, where=MASK)


def test_a_model_that_is_a_class_as_a_whole_is_found():
    image = ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, **SIZES)
    model = Multimodal(encoders={"image": image}, heads={"classes": Classifier(classes=5, input="image", pool="cls")})
    found = same_class(model)
    assert found is not None and found[1] == "ViTForImageClassification"


def test_what_no_class_is_has_no_tower():
    text = TextTransformer(vocab_size=11, max_length=6, norm="rmsnorm", **SIZES)
    assert towers(Multimodal(encoders={"text": text}), {"encoders_text": {}}) == ({}, ["encoders.text"])


def digits_run(path):
    """What `mmjax train digits` leaves, of a small model with weights of noise."""
    e = load_config("digits")
    size = {"width": 16, "depth": 1}
    encoders = {name: encoder.copy(**size) for name, encoder in e.model.encoders.items()}
    model = e.model.copy(encoders=encoders, fusions={"dual": e.model.fusions["dual"]}, decoders={}, heads={})
    run = Run(path)
    run.open(dataclasses.replace(e, model=model, tasks={"contrastive": e.tasks["contrastive"]}, evaluate={}))
    run.write_json("environment.json", environment())
    run.keep_tokenizers({"": e.tokenizer.train(e.data["train"].texts())})
    save_params(run, params_of(model))


def test_digits_leaves_tower_by_tower(tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "hf"
    digits_run(run)
    assert main(["convert", "to-hf", run, str(out)]) == 0
    said = capsys.readouterr()
    assert "image: SiglipVisionModel" in said.out and "text: SiglipTextModel" in said.out
    assert "left behind: fusions.dual" in said.err
    assert json.loads((out / "image" / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}
    assert len(hf.AutoTokenizer.from_pretrained(out / "text")("a photo of the digit three.")["input_ids"]) == 9
    config = hf.SiglipTextModel.from_pretrained(out / "text").config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)  # the run's own tokenizer's
