"""`mmjax embed` and `mmjax predict --index`: vectors of a run's shared space, and which of them are nearest."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import mmjax
from mmjax.cli import main
from mmjax.convert.api import save_params
from mmjax.core.errors import UserError
from mmjax.data import Digits
from mmjax.models import init_params
from mmjax.predict.answers import Input
from mmjax.predict.embed import neighbours
from mmjax.predict.index import Index
from mmjax.train.run import Run

TEXTS = ["the number one", "a seven", "zero"]


def made(path, seed=0, **changes):
    """A run as it stands before its first step."""
    e = tiny.experiment(**changes)
    path.mkdir()
    run, params = Run(path), init_params(e.model, jax.random.key(seed))
    run.write_config(e)
    run.keep_tokenizer(e.tokenizer.train(iter(TEXTS)))
    save_params(run, params)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("embed") / "run")


@pytest.fixture(scope="module")
def ask(run):
    return mmjax.Predictor(run, batch_size=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, records = tmp_path_factory.mktemp("images"), Digits("validation").build()
    for i in range(6):
        Image.fromarray(records[i]["image"]).save(folder / f"{i}.png")
    (folder / "3x.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def index(run, files):
    out = files.parent / f"{files.name}.npz"
    assert main(["embed", str(run), str(files), "--out", str(out), "--batch_size", "4"]) == 1  # one is no image
    return out


def test_images_are_written_and_what_is_none_is_left_out(ask, files, index, capsys):
    good = [str(files / f"{i}.png") for i in range(6)]
    with np.load(index) as found:
        assert found["names"].tolist() == good
        np.testing.assert_allclose(found["vectors"], ask.embed_image(good), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found["vectors"], axis=1), 1, atol=1e-6)
        assert found["vectors"].dtype == np.float32
        about = json.loads(found["about"].item())
    assert (about["run"], about["space"], about["modality"]) == (ask.work.path, "dual", "image")
    out = files.parent / "again.npz"
    assert main(["embed", ask.work.path, str(files), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"mmjax: left out: {files}/3x.png: ")
    assert printed.out.strip() == f"{out}: 6 vectors of 16 numbers, in the space of fusions.dual"


def test_texts_find_images_and_images_find_texts(run, ask, files, index, capsys):
    good = [str(files / f"{i}.png") for i in range(6)]
    cosines = ask.similarity(good, TEXTS)
    assert main(["predict", str(run), *TEXTS, "--text", "--index", str(index), "--top_k", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    for row, own in zip(rows, cosines.T, strict=True):
        assert [one["name"] for one in row["nearest"]] == [good[i] for i in np.argsort(-own, kind="stable")[:2]]
        np.testing.assert_allclose([one["cosine"] for one in row["nearest"]], np.sort(own)[::-1][:2], atol=1e-5)

    texts = files.parent / "texts.npz"
    assert main(["embed", str(run), *TEXTS, "--text", "--out", str(texts)]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), str(files), "--index", str(texts), "--top_k", "0"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("error" in row) for row in rows] == [False] * 4 + [True] + [False] * 2
    for row, own in zip([row for row in rows if "nearest" in row], cosines, strict=True):
        assert {one["name"]: pytest.approx(one["cosine"], abs=1e-5) for one in row["nearest"]} == dict(
            zip(TEXTS, own, strict=True)
        )


def test_an_input_is_nearest_to_itself(ask, files, index):
    good = [str(files / f"{i}.png") for i in range(6)]
    for row in neighbours(ask, Index(str(index)), [Input(path) for path in good], "image", 1):
        (one,) = row["nearest"]
        assert (one["name"], one["cosine"]) == (row["image"], pytest.approx(1, abs=1e-5))


def test_an_index_of_another_run_is_refused_by_name(run, ask, files, index, tmp_path, capsys):
    other = made(tmp_path / "other", seed=1)
    words = ["predict", str(other), "zero", "--text", "--index", str(index)]
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"its vectors are of {run}, fusions.dual, and these of {other}, fusions.dual; make one of this run" in said
    # The same place, after more training: what is there is told by its parameters.
    place = tmp_path / "place"
    shutil.copytree(run, place)
    assert main(["embed", str(place), "zero", "--text", "--out", str(tmp_path / "x.npz")]) == 0
    shutil.rmtree(place)
    shutil.copytree(other, place)
    capsys.readouterr()
    assert main(["predict", str(place), "zero", "--text", "--index", str(tmp_path / "x.npz")]) == 2
    assert f"its vectors are of {place} as it was before its parameters changed" in capsys.readouterr().err


def test_a_copy_of_the_run_is_the_same(run, index, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "copy")
    assert main(["predict", str(tmp_path / "copy"), "zero", "--text", "--index", str(index)]) == 0
    assert len(json.loads(capsys.readouterr().out)["nearest"]) == 5


def test_a_vector_that_is_no_number_is_not_written(ask, index, monkeypatch):
    monkeypatch.setattr(ask, "embed_text", lambda texts: np.full((len(texts), 4), np.nan, np.float32))
    with pytest.raises(UserError, match="among the vectors of 1 texts one holds NaN"):
        list(neighbours(ask, Index(str(index)), [Input("zero")], "text", 1))


def test_where_nothing_can_be_read_there_is_no_file(run, files, tmp_path, capsys):
    out = tmp_path / "x.npz"
    assert main(["embed", str(run), str(files / "3x.png"), "--out", str(out)]) == 1
    assert f"nothing could be read, so there is no {out}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_shared_space_is_one_line(tmp_path, files, capsys):
    path = made(tmp_path / "run", model=tiny.small_model().copy(fusions={}), tasks=tiny.tasks("classify"))
    assert main(["embed", str(path), str(files), "--out", str(tmp_path / "x.npz")]) == 2
    assert "image has no space that it shares with another modality" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embed"], "embed takes a run, what to embed, and --out: mmjax embed RUN INPUT ... --out FILE.npz"),
        (["embed", "run", "x.png"], "embed takes a run, what to embed, and --out"),
        (["embed", "run", "--out", "x.npz"], "embed takes a run, what to embed, and --out"),
        (["embed", "run", "x.png", "--outt", "x.npz"], "embed has no --outt (did you mean '--out'?)"),
        (["embed", "no_such_run", "x.png", "--out", "{}/x.npz"], "no_such_run"),
        (["embed", "run", "x.png", "--out", "{}"], "the file is there already"),
        (["predict", "run", "x.png", "--index", "{}/x.npz"], "there is no such file; mmjax embed writes one"),
        (["predict", "run", "x.png", "--index", "x.npz", "--classes", "a,b"], "leave --question and --classes out"),
    ],
)
def test_mistaken_words_are_one_line(words, said, capsys, tmp_path):
    assert main([word.format(tmp_path) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not list(tmp_path.iterdir())
