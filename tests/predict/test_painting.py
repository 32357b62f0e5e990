"""A masked autoencoder at work: what it paints is what `transformers`' model of the same weights paints, put into pixels."""

import json

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image

import mmjax
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Digits
from mmjax.models import Multimodal
from mmjax.models.decoders import PixelDecoder
from mmjax.objectives import MaskedImage
from mmjax.train import Checkpoint, Task, train


@pytest.fixture(scope="module", params=[False, True])
def folder(request, tmp_path_factory):
    """A ViT-MAE; with the second parameter it paints normalised patches."""
    path = tmp_path_factory.mktemp("mae")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    other = {f"decoder_{name}": value for name, value in sizes.items()}
    config = transformers.ViTMAEConfig(**sizes, **other, image_size=16, patch_size=4, norm_pix_loss=request.param)
    torch.manual_seed(0)
    transformers.ViTMAEForPreTraining(config).save_pretrained(path)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}, resample=2).save_pretrained(path)
    return path


def test_pictures_are_those_of_transformers(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    ask = mmjax.Predictor(folder)
    found = ask.paint(list(pixels), numbers=[0, 1, 2])
    hf = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
    inputs = transformers.ViTImageProcessor.from_pretrained(folder)(list(pixels), return_tensors="pt")["pixel_values"]
    for image, one, given in zip(inputs, found, pixels, strict=True):
        np.testing.assert_array_equal(one.whole, given)
        hidden = (one.seen == 128).all(-1).reshape(4, 4, 4, 4).transpose(0, 2, 1, 3).reshape(16, 16).all(-1)
        assert hidden.sum() == 12
        with torch.no_grad():
            out = hf(image[None], noise=torch.tensor(hidden, dtype=torch.float32)[None])
        assert float(out.loss) == pytest.approx(one.error, rel=1e-4)
        patches = out.logits
        if hf.config.norm_pix_loss:
            own = hf.patchify(image[None])
            patches = patches * (own.var(-1, keepdim=True) + 1e-6) ** 0.5 + own.mean(-1, keepdim=True)
        painted = hf.unpatchify(patches)[0].permute(1, 2, 0).numpy() * 0.5 + 0.5
        wanted = np.rint(np.clip(painted * 255, 0, 255)).astype(int)
        there = np.repeat(np.repeat(hidden.reshape(4, 4), 4, 0), 4, 1)
        assert np.abs(one.painted.astype(int) - wanted)[there].max() <= 1
        np.testing.assert_array_equal(one.painted[~there], given[~there])


def test_what_is_hidden_of_a_picture_depends_on_its_number_and_the_seed(folder):
    pixels = [np.full((16, 16, 3), 200, np.uint8)] * 3
    ask = mmjax.Predictor(folder)
    first, second, third = (one.seen for one in ask.paint(pixels))
    assert (first != second).any() and (second != third).any()
    (alone,) = ask.paint(pixels[:1], numbers=[2])
    np.testing.assert_array_equal(alone.seen, third)
    assert any((one.seen != own).any() for one, own in zip(ask.paint(pixels, seed=1), (first, second, third), strict=True))
    assert np.mean(ask.paint(pixels, mask_ratio=0.5)[0].seen == 128) == 0.5


def test_a_run_that_learned_to_paint_writes_pictures(tmp_path, capsys):
    model = Multimodal(
        encoders={"image": tiny.vit()},
        decoders={"pixels": PixelDecoder(image_size=(8, 8), patch=(4, 4), **tiny.SIZE)},
    )
    task = Task(MaskedImage(patch=(4, 4), mask_ratio=0.5))
    run = tmp_path / "run"
    train(tiny.experiment(model=model, tasks={"paint": task}, steps=2, evaluate={}, checkpoint=Checkpoint(every=2)), run)
    records = Digits("test").build()
    for n in range(3):
        Image.fromarray(records[n]["image"]).save(tmp_path / f"{n}.png")
    (tmp_path / "1.png").write_bytes(b"none")
    words = ["predict", str(run), *(str(tmp_path / f"{n}.png") for n in range(3))]
    assert main(words) == 2
    assert "paints pictures: say by --pictures DIR where they go" in capsys.readouterr().err
    assert main([*words, "--pictures", str(tmp_path / "painted")]) == 1
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [sorted(row) for row in rows] == [
        ["hidden_error", "image", "picture"],
        ["error", "image"],
        ["hidden_error", "image", "picture"],
    ]
    assert [row["picture"].rsplit("/")[-1] for row in rows if "picture" in row] == ["000000_0.png", "000002_2.png"]
    picture = np.asarray(Image.open(rows[0]["picture"]))
    assert picture.shape == (8, 24, 3)
    np.testing.assert_array_equal(picture[:, 16:], records[0]["image"])
    assert main([*words, "--pictures", str(tmp_path / "painted")]) == 2
    assert "000000_0.png is there already" in capsys.readouterr().err
    with pytest.raises(UserError, match="no decoder writes texts"):
        mmjax.Predictor(run).generate(images=records[0]["image"])
