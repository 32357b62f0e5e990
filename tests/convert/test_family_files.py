"""Folders of every family: what is refused by name, what other versions wrote, what is public."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
from checks import check_folder, differ, each, expected, plain, said
from families import CASES
from parity import map_completely, save
from safetensors.numpy import load_file, save_file

from mmjax.convert import load, save_hf
from mmjax.convert.config_paths import get, put
from mmjax.core.errors import UserError


@pytest.fixture(scope="session")
def first(tmp_path_factory):
    """case -> the folder of its first model, for reading."""
    return functools.cache(lambda case: save(expected(case, case.models[0])[0], tmp_path_factory.mktemp(case.model_type)))


@pytest.mark.parametrize(
    ("case", "changes", "line"),
    each(
        *[
            (case, changes, line, (said(changes),))
            for case in CASES.values()
            for changes, line in (
                *[
                    ({name: value}, f"^{name}={value!r} is not supported by {case.model_type} here; it must be ")
                    for name, value in case.refused.items()
                ],
                *case.mistakes,
            )
        ]
    ),
)
def test_refusals(case, changes, line, first, tmp_path):
    folder = first(case)
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        put(config, path, value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(UserError, match=line):
        load(tmp_path)


@pytest.mark.parametrize(
    ("case", "made", "rename"),
    each(*[(case, made, rename, (label,)) for case in CASES.values() for label, (made, rename) in case.names.items()]),
)
def test_other_names_of_tensors(case, made, rename, tmp_path):
    """They hold the same parameters."""
    theirs, _, _ = expected(case, made)
    source = save(theirs, tmp_path / "hf")
    _, params = load(source)
    written = load_file(source / "model.safetensors")
    renamed = rename(theirs, written)
    assert renamed.keys() != written.keys()
    save_file(renamed, source / "model.safetensors")
    assert jax.tree.all(jax.tree.map(np.array_equal, load(source)[1], params))


@pytest.mark.parametrize(
    ("case", "older"),
    each(*[(case, older, (label,)) for case in CASES.values() for label, older in case.older.items()]),
)
def test_files_of_other_versions(case, older, tmp_path):
    theirs, batch, answers = expected(case, older.made)
    source = save(theirs, tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())

    def read(folder, config=None):
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        with torch.no_grad():
            return plain(case.theirs(older.made, type(theirs).from_pretrained(folder).eval(), batch))

    if older.usual is not None:
        before, answers = read(source, older.usual(config)), read(source, older.config(config))
        assert differ(case, batch, answers, before)
    (source / "config.json").write_text(json.dumps(older.config(config)))
    save_file(older.tensors(theirs, load_file(source / "model.safetensors")), source / "model.safetensors")
    model, params = check_folder(case, source, batch, answers)
    save_hf(model, params, tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: get(written, name, None) for name in older.written} == older.written
    again = read(tmp_path / "back")
    assert all(np.array_equal(again[name], x) for name, x in answers.items())


@pytest.mark.parametrize(
    ("case", "published"),
    each(*[(case, p, (p.name, str(n))) for case in CASES.values() for n, p in enumerate(case.published)]),
)
def test_public_checkpoints_map_completely(case, published):
    numbers = sum(int(np.prod(shape)) for shape in published.listed.values())
    assert published.numbers in (0, numbers)
    map_completely(case.model_type, published.name, published.config, published.listed)
