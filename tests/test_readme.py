"""The README's code blocks, run as they are printed, in their order; and every `mmjax` command of the other pages, parsed.

`reader.py` says how. With `-m slow` the same blocks run with the real `mmjax`, but for what `NOT_RUN` names. A new block is
picked up by itself, or fails.
"""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import jax
import pytest
from reader import BLOCKS, NEEDS_TORCH, README, ROOT, THEIRS, TORCH, Ran, Reader, blocks, parse

from mmjax.parallel.mesh import Mesh
from mmjax.train.config_file import shipped_configs

PAGES = sorted([README, *(ROOT / "docs").glob("*.md")])


@pytest.fixture(scope="module", params=["stand-in", pytest.param("real", marks=pytest.mark.slow)])
def reader(request, tmp_path_factory, quick_compiles):
    """A reader, on a machine of one device."""
    build, kept = Mesh.build, (jax.config.jax_platforms, list(sys.path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
        yield Reader(tmp_path_factory.mktemp("reader"), request.param == "real")
    jax.config.update("jax_platforms", kept[0])
    sys.path[:] = kept[1]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.number} {block.language}")
def test_a_block_runs_as_it_is_printed(reader, block):
    if block.section in NEEDS_TORCH and not TORCH:
        pytest.skip("torch writes the model and runs the pipeline here: pip install torch")
    ended = reader.read(block)
    if block.section == "To and from HuggingFace" and block.language == "python" and not block.file:
        ours = isinstance(ended[0], list)  # an input's, where theirs are of the one picture
        labels = {answer["label"] for answer in (ended[0] if ours else ended)}
        assert labels == {"ant", "bee", "cat"} if not ours else len(labels) == 2 and labels < {"ant", "bee", "cat"}
    if block.section == "From a notebook":
        assert len(ended) == 3  # a shape [N, T, D]


def ran(reader: Reader, words: str) -> list[Ran]:
    """The runs of a command, after all blocks."""
    reader.read(BLOCKS[-1])
    found = [one for one in reader.ran if " ".join([one.tool, *one.words]) == words]
    assert found, f"the README has no {words}"
    return found


def test_the_commands_do_what_the_text_says(reader):
    if reader.real:
        pytest.skip("what they said is read where the stand-in hears it")
    first, *again = ran(reader, "mmjax train digits")
    assert first.out.startswith('{"prompted/accuracy": ')
    assert {"config.json", "metrics.jsonl", "tensorboard", "checkpoints"} <= {
        p.name for p in (reader.folder / "runs/digits").iterdir()
    }
    assert len(again) == 2
    (long,) = ran(
        reader, "mmjax train digits --steps 3000 --workdir runs/long --weighting pcgrad --model.encoders.image.depth 4"
    )
    assert (long.experiment.steps, long.experiment.model.encoders["image"].depth) == (3000, 4)
    assert type(long.experiment.weighting).__name__ == "PCGrad"
    assert "--model" in ran(reader, "mmjax train digits --help")[0].out
    assert "prompted/accuracy" in json.loads(ran(reader, "mmjax evaluate runs/digits")[0].out.splitlines()[-1])
    assert "image" in ran(reader, "mmjax data inspect digits")[0].out
    (photos,) = ran(reader, "mmjax train folder")
    assert photos.experiment.data["train"].source.path == "my/photos"
    theirs = [one for one in reader.ran if "their_package.module:TheirObjective" in one.words]
    (hooked,) = [one for one in reader.ran if "runs/hooked" in one.words]
    assert set(hooked.experiment.hooks) == {"norm", "budget"}
    assert "norm/encoders_image" in (reader.folder / "runs/hooked/metrics.jsonl").read_text()
    workdir = theirs[0].words[theirs[0].words.index("--workdir") + 1]
    assert "distance" in (reader.folder / workdir / "metrics.jsonl").read_text()
    assert not (ROOT / "runs").exists() or "here" not in os.listdir(ROOT / "runs")


def commands(page: Path) -> list[list[str]]:
    """The words of each `mmjax` command of a page, in its blocks, its text and the lines of tpu_scripts that start one."""
    text = page.read_text()
    lines = [line for block in blocks(text) if block.language == "sh" for line in block.text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(mmjax [^`\n]* --[^`\n]+)`", text)
    found = []
    for line in lines:
        for part in re.split(r"&&|\|\||;", line):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words = words[1:]
            if words[:1] == ["mmjax"]:
                found.append(words[1:])
            elif words and words[0].startswith("tpu_scripts/"):
                config = next((number for number, word in enumerate(words) if word in shipped_configs()), None)
                found += [["train", *words[config:]]] if config else []
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "module.py").write_text(THEIRS)
    for words in commands(page):
        if any(word.endswith(".py") or word.isupper() for word in words):
            continue  # the reader's own file, or a place that a page leaves open
        parse(words)
