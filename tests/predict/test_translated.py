"""Translation with a picture: a text and an image are read, another text written by a tokenizer of its own."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import mmjax
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import Scenes
from mmjax.parallel.mesh import Mesh
from mmjax.train import train
from mmjax.train.config_file import apply_flags, load_config

FLAGS = """--steps 3 --evaluate_every 3 --log.progress false --log.tensorboard false --optimizer.warmup_steps 0
--data.train.source.count 64 --data.train.batch_size 8 --data.validation.source.count 6 --data.test.source.count 6
--model.encoders.image.depth 1 --model.encoders.image.width 16 --model.encoders.text.width 16 --model.decoders.chinese.width 16
--model.encoders.image.heads 2 --model.encoders.text.heads 2 --model.decoders.chinese.heads 2"""
COUNT = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home, build = tmp_path_factory.mktemp("translate"), Mesh.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
        train(apply_flags(load_config("translate"), FLAGS.split()), home / "run")
        assert main(["evaluate", str(home / "run"), "--predictions", str(home / "told.jsonl")]) == 0
    return home


def written(home):
    """The test scenes as files, and the lines that name them."""
    scenes = Scenes("test", COUNT, text="masked").build()
    lines = []
    for n in range(COUNT):
        Image.fromarray(scenes[n]["image"]).save(home / f"{n}.png")
        lines.append({"image": f"{n}.png", "text": scenes[n]["text"]})
    (home / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return scenes, lines


def test_what_is_predicted_is_what_was_evaluated(run, capsys):
    _, lines = written(run)
    told = {row["index"]: row["text"] for row in map(json.loads, (run / "told.jsonl").read_text().splitlines())}
    assert set("".join(told.values())) <= set("零一二三四五六七八九红绿蓝黄白色左右上下有个的和") and any(told.values())
    ask = mmjax.Predictor(run / "run")
    images, texts = [str(run / line["image"]) for line in lines], [line["text"] for line in lines]
    assert ask.generate(texts, images) == [told[n] for n in range(COUNT)]
    capsys.readouterr()
    assert main(["predict", str(run / "run"), str(run / "lines.jsonl")]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["chinese"], one["text"]) for one in said] == [(told[n], texts[n]) for n in range(COUNT)]
    (likely,) = ask.score(texts[:1], ["左上有"], images[:1])
    assert likely["tokens"] == 4 and likely["log_likelihood"] < 0  # its first token, which the decoder's own start foretells
    with pytest.raises(UserError, match=r"decoders\.chinese looks at an image, and there is none"):
        ask.generate(texts)


def test_a_source_token_is_no_target_token(run):
    """Each side has the words of its own language."""
    ask = mmjax.Predictor(run / "run")
    source, target = ask.work.tokenizer, ask.work.writer("chinese")
    assert source.vocab_size != target.vocab_size and ask.work.writer("text") is source
    ids = target.encode(["左上有一个红色的三"], 12)["ids"][0]
    assert target.decode(ids) == "左上有一个红色的三" and not np.array_equal(
        ids, source.encode(["左上有一个红色的三"], 12)["ids"][0]
    )
