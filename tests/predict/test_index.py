"""A file of vectors: numpy reads it, nothing half written is left, the nearest are those of one big product."""

import json
import tracemalloc

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.predict import index as indexing
from mmjax.predict.index import Index, mapped, new_index


def unit(rows, width, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def written(path, vectors, names=None):
    with new_index(str(path)) as new:
        new.about = {"run": "here", "space": "dual"}
        for i, row in enumerate(vectors):
            new.add(str(i) if names is None else names[i], row)
    return str(path)


def test_numpy_reads_what_is_mapped(tmp_path):
    vectors, names = unit(5, 7), ["a.png", "ein Bär", "", "x" * 300, "日本"]
    path = written(tmp_path / "some.npz", vectors, names)
    with np.load(path) as found:
        assert sorted(found.files) == ["about", "names", "vectors"]
        np.testing.assert_array_equal(found["vectors"], vectors)
        assert found["names"].tolist() == names
        assert json.loads(found["about"].item()) == {"run": "here", "space": "dual"}
    index = Index(path)
    assert isinstance(index.vectors_NE, np.memmap) and isinstance(index.names, np.memmap)
    np.testing.assert_array_equal(index.vectors_NE, vectors)
    assert [str(name) for name in index.names] == names
    assert [p.name for p in tmp_path.iterdir()] == ["some.npz"]


def test_what_numpy_writes_is_mapped_too(tmp_path):
    arrays = {"a": np.arange(24.0).reshape(2, 3, 4), "b": np.asfortranarray(unit(3, 4)), "c": np.array("one")}
    np.savez(tmp_path / "own.npz", **arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(mapped(tmp_path / "own.npz", name), x)


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 16])
@pytest.mark.parametrize("top_k", [1, 5, 40, 0, 1000])
def test_the_nearest_are_those_of_one_product(tmp_path, monkeypatch, block, top_k):
    monkeypatch.setattr(indexing, "BLOCK", block)
    eighths = np.eye(8, dtype=np.float32)[
        np.random.default_rng(1).integers(0, 8, 100)
    ]  # products are exact, and many are equal
    for vectors in (unit(100, 8), eighths):
        index = Index(written(tmp_path / f"{len(list(tmp_path.iterdir()))}.npz", vectors))
        queries = np.concatenate([vectors[:3], np.eye(8, dtype=np.float32)[:2]])
        rows, cosines = index.nearest(queries, top_k)
        every = queries @ vectors.T
        order = np.argsort(-every, axis=1, kind="stable")[:, : top_k or None]
        np.testing.assert_allclose(cosines, np.take_along_axis(every, order, axis=1), atol=1e-6)
        if vectors is eighths:
            np.testing.assert_array_equal(rows, order)  # of equal ones the first
        else:
            np.testing.assert_allclose(np.take_along_axis(every, rows, axis=1), cosines, atol=1e-6)
            assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "BLOCK", 1024)
    vectors = unit(50_000, 32)
    index = Index(written(tmp_path / "large.npz", vectors))
    tracemalloc.start()
    index.nearest(vectors[:4], 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < vectors.nbytes / 10


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(ZeroDivisionError), new_index(str(tmp_path / "x.npz")) as new:
        new.add("one", unit(1, 4)[0])
        raise ZeroDivisionError
    with new_index(str(tmp_path / "x.npz")):
        pass  # nothing was added
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays_as_it_is(tmp_path):
    out = tmp_path / "x.npz"
    with pytest.raises(UserError, match="the file is there already"), new_index(str(out)) as new:
        new.add("one", unit(1, 4)[0])
        out.write_text("another's, written meanwhile")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["another's, written meanwhile"]
    with pytest.raises(UserError, match="the file is there already"), new_index(str(out)):
        pytest.fail("the block was run")
    with pytest.raises(UserError, match="there is no folder"), new_index(str(tmp_path / "no" / "x.npz")):
        pytest.fail("the block was run")


def compressed(path):
    np.savez_compressed(path, vectors=unit(3, 4), names=np.array(["a", "b", "c"]), about=np.array("{}"))


def without_names(path):
    np.savez(path, vectors=unit(3, 4), about=np.array("{}"))


def fewer_names(path):
    np.savez(path, vectors=unit(3, 4), names=np.array(["a"]), about=np.array("{}"))


def other_numbers(path):
    np.savez(path, vectors=unit(3, 4).astype(np.float64), names=np.array(["a", "b", "c"]), about=np.array("{}"))


def no_json(path):
    np.savez(path, vectors=unit(3, 4), names=np.array(["a", "b", "c"]), about=np.array("run"))


def cut(path):
    written(path, unit(3, 4))
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("make", [compressed, without_names, fewer_names, other_numbers, no_json, cut])
def test_a_file_that_embed_has_not_written_is_refused(tmp_path, make):
    make(tmp_path / "x.npz")
    with pytest.raises(UserError, match=r"--index .*x\.npz: mmjax embed has not written this file, or it is damaged"):
        Index(str(tmp_path / "x.npz"))
    with pytest.raises(UserError, match="there is no such file"):
        Index(str(tmp_path / "y.npz"))
