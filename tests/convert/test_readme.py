"""The README's way from HuggingFace through your folder back to `transformers`, run as it is written."""

import re
from pathlib import Path

import numpy as np
import transformers as hf
from parity import randomise, save
from PIL import Image

from mmjax.cli import main

README = Path(__file__).resolve().parents[2] / "README.md"
SMALL = "--steps 2 --evaluate_every 2 --checkpoint.every 2 --log.progress false --log.tensorboard false --mesh.data 8"


def test_from_huggingface_through_your_folder_to_a_pipeline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0)
    for number in range(45):
        path = tmp_path / "photos" / ("ant", "bee", "cat")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    config = hf.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    save(randomise(hf.ViTForImageClassification(config)), tmp_path / "vit")
    hf.ViTImageProcessorPil(size=16).save_pretrained(tmp_path / "vit")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "my_finetune.py").write_text(next(block for block in blocks if "def experiment" in block))
    assert main(["convert", "from-hf", "vit", "runs/vit"]) == 0
    assert main(["train", "my_finetune.py", "--workdir", "runs/tuned", *SMALL.split()]) == 0
    assert main(["convert", "to-hf", "runs/tuned", "tuned-for-transformers"]) == 0
    found = hf.pipeline("image-classification", model="tuned-for-transformers", use_fast=False)("photos/ant/0.png")
    assert {answer["label"] for answer in found} == {"ant", "bee", "cat"}
