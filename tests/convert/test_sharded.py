"""Weights go to their places on a mesh one by one, and leave from there."""

import jax
import numpy as np
import pytest
import transformers as hf
from parity import randomise, save
from safetensors.numpy import load_file

import mmjax
from mmjax.convert.api import from_hf
from mmjax.convert.huggingface import read_model
from mmjax.convert.weights import Weights
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.rules import shardings

MESH = Mesh(data=1, fsdp=4, tensor=2)
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    theirs = hf.BertForMaskedLM(hf.BertConfig(**SIZES, max_position_embeddings=12, tie_word_embeddings=False))
    return save(randomise(theirs), tmp_path_factory.mktemp("sharded") / "hf")


@pytest.mark.parametrize("kind", ["huggingface", "run"])
def test_each_device_holds_its_part(kind, folder, tmp_path):
    source = folder
    if kind == "run":
        source = tmp_path / "run"
        from_hf(folder, source)
    model, params = mmjax.load(source, mesh=MESH)
    mesh = MESH.build()
    found, whole = leaves_by_path(params), leaves_by_path(mmjax.load(folder)[1])
    assert found.keys() == whole.keys() and model == mmjax.load(folder)[0]
    for path, wanted in leaves_by_path(shardings(params, mesh)).items():
        assert found[path].sharding == wanted, path
        np.testing.assert_array_equal(found[path], whole[path], err_msg=path)
    words = found["encoders_text/words/table"]
    assert {shard.data.shape for shard in words.addressable_shards} == {(20, 4)}
    shard = words.addressable_shards[5]
    np.testing.assert_array_equal(shard.data, np.asarray(whole["encoders_text/words/table"])[shard.index])
    own = sum(x.addressable_shards[0].data.nbytes for x in found.values())
    assert own < 0.25 * sum(x.nbytes for x in whole.values())


def test_what_is_split_is_written_whole(folder, tmp_path):
    model, params = mmjax.load(folder, mesh=MESH.build())
    mmjax.save_hf(model, params, tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())


def test_a_parameter_is_placed_before_the_next_is_read(folder, monkeypatch):
    """So the host never holds more than one: what was read and not yet placed is always one parameter's."""
    waiting, most, placed = [], 0, []
    read = Weights.read
    monkeypatch.setattr(Weights, "read", lambda self, name: waiting.append(name) or read(self, name))

    def put(path, x):
        nonlocal most
        most = max(most, len(waiting))
        assert x.nbytes == 4 * x.size and (len(waiting) == 2) == ("/layers/" in path), (path, waiting)
        waiting.clear()
        placed.append(path)
        return x

    _, params, _ = read_model(folder, put)
    assert most == SIZES["num_hidden_layers"] and not waiting
    assert sorted(placed) == sorted(leaves_by_path(params))


def test_a_mesh_that_the_devices_do_not_make_is_refused(folder):
    assert jax.device_count() == 8
    with pytest.raises(UserError, match=r"mesh \(data=1, fsdp=3, tensor=1\) does not multiply to the 8 devices here"):
        mmjax.load(folder, mesh=Mesh(data=1, fsdp=3))
