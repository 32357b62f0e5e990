"""Models of our own leave as the HuggingFace class that they are, or tower by tower; and SigLIP's towers by themselves."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers as hf
from parity import assert_close, bound, check_table, randomise, round_trip

from mmjax.cli import main
from mmjax.convert.towers import same_class, towers
from mmjax.models import Multimodal, init_params
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier

SIZES = {"width": 16, "depth": 2, "heads": 2}
IMAGE = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
IDS = np.array([[5, 9, 3, 7, 0, 0], [2, 8, 4, 6, 1, 3]])
MASK = IDS > 0


def params_of(model):
    """Initialised, and moved by noise so that zeros and ones show."""
    leaves, tree = jax.tree.flatten(init_params(model, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


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
    from mmjax.convert import save_hf

    for modality, tower in found.items():
        save_hf(tower.model, tower.params, tmp_path / modality)
    forward = bound(model, params, {"image": IMAGE, "text": IDS.astype(np.int32), "text_mask": MASK})
    vision = hf.AutoModel.from_pretrained(tmp_path / "image").eval()
    text = hf.SiglipTextModel.from_pretrained(tmp_path / "text").eval()
    with torch.no_grad():
        pixels = torch.tensor(IMAGE.transpose(0, 3, 1, 2))
        assert_close(forward.encode("image").embeddings, vision(pixel_values=pixels).last_hidden_state)
        read = text(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK.astype(np.int64))).last_hidden_state
        assert_close(forward.encode("text").embeddings, read, where=MASK)


def test_a_model_that_is_a_class_as_a_whole_is_found():
    image = ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, **SIZES)
    model = Multimodal(encoders={"image": image}, heads={"classes": Classifier(classes=5, input="image", pool="cls")})
    found = same_class(model)
    assert found is not None and found[1] == "ViTForImageClassification"


def test_what_no_class_is_has_no_tower():
    text = TextTransformer(vocab_size=11, max_length=6, norm="rmsnorm", **SIZES)
    assert towers(Multimodal(encoders={"text": text}), {"encoders_text": {}}) == ({}, ["encoders.text"])


@pytest.mark.parametrize("head", [True, False])
def test_siglips_vision_tower(head, tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    config = hf.SiglipVisionConfig(image_size=8, patch_size=4, vision_use_head=head, **sizes)
    check_table("siglip_vision_model", config)
    theirs = randomise(hf.SiglipVisionModel(config))
    model, params = round_trip(theirs, tmp_path)
    forward = bound(model, params, {"image": IMAGE})
    out = theirs(pixel_values=torch.tensor(IMAGE.transpose(0, 3, 1, 2)))
    assert_close(forward.encode("image").embeddings, out.last_hidden_state)
    if head:
        pooled = out.pooler_output / out.pooler_output.norm(dim=-1, keepdim=True)
        assert_close(forward.embed("image"), pooled)


def test_siglips_text_tower(tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    config = hf.SiglipTextConfig(vocab_size=11, max_position_embeddings=6, projection_size=10, **sizes)
    check_table("siglip_text_model", config)
    theirs = randomise(hf.SiglipTextModel(config))
    model, params = round_trip(theirs, tmp_path)
    forward = bound(model, params, {"text": IDS.astype(np.int32)})
    assert_close(forward.head("pooler", forward.encode("text"), key="x"), theirs(input_ids=torch.tensor(IDS)).pooler_output)


def test_digits_leaves_tower_by_tower(tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "hf"
    small = "--steps 1 --evaluate_every 0 --checkpoint.best= --log.tensorboard false --log.progress false --mesh.data 8"
    shrink = (
        "--model.encoders.image.depth 1 --model.encoders.image.width 16 --model.encoders.text.width 16 --evaluate.prompted none"
    )
    less = "--evaluate.retrieval none --tasks.caption none --tasks.matching none --tasks.masked_lm none"
    parts = "--model.heads.match none --model.heads.masked_lm none --model.decoders.caption none --model.fusions.cross none"
    assert main(["train", "digits", "--workdir", run, *f"{small} {shrink} {less} {parts}".split()]) == 0
    assert main(["convert", "to-hf", run, str(out)]) == 0
    said = capsys.readouterr()
    assert "image: SiglipVisionModel" in said.out and "text: SiglipTextModel" in said.out
    assert "left behind: fusions.dual" in said.err
    assert json.loads((out / "image" / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}
    assert len(hf.AutoTokenizer.from_pretrained(out / "text")("a photo of the digit three.")["input_ids"]) == 9
    assert hf.SiglipTextModel.from_pretrained(out / "text").config.bos_token_id is None
