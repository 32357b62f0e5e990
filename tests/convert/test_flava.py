"""FLAVA's codebook, its configs of old, and an image of another size."""

import json

import pytest
import torch
import transformers
from cases import PIXELS
from families.flava import BASE, FLAVA, PRETRAINING, WIDTHS
from parity import assert_close, bound, part, round_trip, save

from mmjax.convert import load, save_hf


def test_the_codebook_is_kept(tmp_path):
    theirs = FLAVA.make(PRETRAINING.of({"init_codebook": True}))
    model, _ = round_trip(theirs, tmp_path)
    codebook = {name: tuple(x.shape) for name, x in theirs.state_dict().items() if name.startswith("image_codebook.")}
    assert model.unread == codebook and len(codebook) == 74


def test_a_file_that_lacks_the_codebook_has_none(tmp_path):
    """config.json may promise one all the same: it does so by default."""
    folder = save(FLAVA.make(PRETRAINING), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({n: value for n, value in config.items() if n != "init_codebook"}))
    save_hf(*load(folder), tmp_path / "back")
    kind = transformers.FlavaForPreTraining
    back, info = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert back.image_codebook is None and not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("tied", [True, False])
def test_further_biases_are_kept_where_they_are_not_tied(tied, tmp_path):
    theirs = FLAVA.make(PRETRAINING.of({"tie_word_embeddings": tied}))
    assert len(load(save(theirs, tmp_path / "hf"))[0].unread) == (0 if tied else 4)


def test_another_size_of_image(tmp_path):
    """Of the image tower alone: the whole model reads its own size."""
    theirs = FLAVA.make(BASE.of({"image_config.image_size": 8, "image_config.patch_size": 4}))
    pixels = PIXELS[:, :16, :12, :3]
    model, params = load(save(theirs, tmp_path / "hf"))

    def normed(model, params):
        forward = bound(model, params, {"image": pixels})
        return forward.fuse("image_normed", {"image": forward.encode("image")}, key="x").embeddings

    ours = part(normed, model, params, ("encoders.image", "fusions.image_normed"))
    image = torch.tensor(pixels.transpose(0, 3, 1, 2))
    assert_close(ours, theirs.image_model(image, interpolate_pos_encoding=True).last_hidden_state)


def test_groups_said_twice_are_written_once(tmp_path):
    folder = save(FLAVA.make(PRETRAINING), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    old = {f"{group}_dict": config[group] for group in WIDTHS}
    spoilt = {group: {"hidden_size": 99} for group in WIDTHS}
    (folder / "config.json").write_text(json.dumps({**config, **old, **spoilt, "torch_dtype": "float32"}))
    save_hf(*load(folder), tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert not written.keys() & old.keys()
    assert {g: {f: written[g][f] for f in FLAVA.sizes[g]} for g in WIDTHS} == {g: FLAVA.sizes[g] for g in WIDTHS}
