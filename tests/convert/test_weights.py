"""Weight files round trip bit for bit with safetensors, torch and transformers, and each damaged one is one clear line."""

import builtins
import json
import os
import pickle
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmjax.convert.weights import open_weights, write_weights
from mmjax.core.errors import UserError

HEADER = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def example_tensors():
    rng = np.random.default_rng(0)
    return {
        "matrix": rng.normal(size=(3, 5)).astype(np.float32),
        "half": rng.normal(size=(7,)).astype(np.float16),
        "brain": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5, np.float32),
        "brain_scalar": np.array(1.5, ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "position_ids": np.arange(5).reshape(1, 5),
        "flags": np.array([True, False, True]),
    }


def to_torch(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def write(folder, tensors, **options):
    plan = [(name, array.shape, array.dtype.name) for name, array in tensors.items()]
    write_weights(folder, plan, tensors.__getitem__, **options)


def assert_same_bits(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.tobytes() == expected.tobytes()


def assert_holds(folder, tensors):
    with open_weights(folder) as weights:
        assert sorted(weights.names) == sorted(tensors)
        for name, array in tensors.items():
            assert (weights.shape(name), weights.dtype(name)) == (array.shape, array.dtype.name)
            assert_same_bits(weights.read(name), array)


def write_raw(path, header, data=bytes(24)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def refusal(folder):
    """The one line with which a folder is refused, its path left out."""
    with pytest.raises(UserError) as error:
        open_weights(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    return message.replace(str(folder), "").removeprefix("/")


def test_reads_what_safetensors_writes(tmp_path):
    tensors = example_tensors()
    safetensors.torch.save_file({k: to_torch(v) for k, v in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert_holds(tmp_path, tensors)


def test_reads_every_dtype_that_numpy_has_and_float8(tmp_path):
    kinds = ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float64", "complex64")
    tensors = {name: np.ones((2, 2), name) for name in kinds}
    eights = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
    full = {name: torch.from_numpy(array) for name, array in tensors.items()}
    full |= {name: torch.tensor([1.5, -2.0]).to(getattr(torch, name)) for name in eights}
    safetensors.torch.save_file(full, tmp_path / "model.safetensors")
    assert_holds(tmp_path, tensors | {name: np.array([1.5, -2.0], kind) for name, kind in eights.items()})


def test_what_it_writes_is_what_safetensors_and_torch_read(tmp_path):
    tensors = example_tensors()
    write(tmp_path, tensors)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    read = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name].dtype == to_torch(array).dtype
        assert torch.equal(read[name], to_torch(array))
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert_holds(tmp_path, tensors)


@st.composite
def arrays(draw):
    """Any bits at all, NaNs included, of any dtype and shape."""
    kind = np.dtype(draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_])))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape)) * kind.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    return np.frombuffer(bytes(b & 1 for b in raw) if kind == np.bool_ else raw, kind).reshape(shape)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(names, arrays(), max_size=6), st.integers(1, 200))
def test_any_arrays_keep_their_bits_and_the_file_is_the_one_safetensors_writes(tensors, shard_bytes):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, tensors)
        content = (folder / "model.safetensors").read_bytes()
        assert content == safetensors.numpy.save(tensors, {"format": "pt"})
        read = safetensors.torch.load(content)
        assert {key: tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for key, tensor in read.items()} == {
            key: array.tobytes() for key, array in tensors.items()
        }
        (folder / "model.safetensors").unlink()
        write(folder, tensors, max_shard_bytes=shard_bytes)
        assert_holds(folder, tensors)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_shards_are_those_of_transformers(tmp_path, kind):
    from transformers import BertConfig, BertModel

    size = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 9}
    model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=2, **size)).to(getattr(torch, kind))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    model.save_pretrained(theirs, max_shard_size=2000)
    with open_weights(theirs) as weights:
        assert weights.dtype_of_model == kind
        assert sorted(weights.names) == sorted(model.state_dict())
        tensors = {name: weights.read(name) for name in model.state_dict()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(to_torch(tensors[name]), tensor)

    ours.mkdir()
    write(ours, tensors, max_shard_bytes=2000)
    index = "model.safetensors.index.json"
    their_index, our_index = (json.loads((folder / index).read_text()) for folder in (theirs, ours))
    assert our_index["weight_map"] == their_index["weight_map"]
    assert our_index["metadata"]["total_size"] == their_index["metadata"]["total_size"]
    for shard in set(our_index["weight_map"].values()):
        assert (ours / shard).read_bytes() == (theirs / shard).read_bytes()


def test_shards_fill_in_order_and_the_index_adds_up(tmp_path):
    tensors = {name: np.full(size, size, np.float32) for name, size in (("b", 4), ("a", 2), ("large", 50), ("c", 1), ("d", 5))}
    write(tmp_path, tensors, max_shard_bytes=24)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["metadata"] == {"total_size": 4 * 62}
    assert index["weight_map"] == {"b": shards[0], "a": shards[0], "large": shards[1], "c": shards[2], "d": shards[2]}
    assert sorted(os.listdir(tmp_path)) == [*shards, "model.safetensors.index.json"]


def test_writing_asserts_the_plan(tmp_path):
    plan = [("a", (2, 3), "float32")]
    for wrong in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float16), np.zeros((3, 2), np.float32).T):
        with pytest.raises(AssertionError, match="a: planned"):
            write_weights(tmp_path, plan, lambda name, wrong=wrong: wrong)
    with pytest.raises(AssertionError, match="twice"):
        write_weights(tmp_path, plan * 2, lambda name: np.zeros((2, 3), np.float32))


def test_the_models_dtype_is_that_of_most_floating_numbers(tmp_path):
    write(tmp_path, {"a": np.zeros(5, np.float32), "b": np.zeros(6, ml_dtypes.bfloat16), "ids": np.zeros(100, np.int64)})
    assert open_weights(tmp_path).dtype_of_model == "bfloat16"
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path, {"ids": np.zeros(100, np.int64)})
    assert open_weights(tmp_path).dtype_of_model == "float32"


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    write(tmp_path, {"bert.pooler.weight": np.zeros(2, np.float32)})
    weights = open_weights(tmp_path)
    assert "bert.pooler.weight" in weights and "x" not in weights
    with pytest.raises(UserError, match=r"has no tensor 'pooler.weight' \(did you mean 'bert.pooler.weight'\?\)"):
        weights.read("pooler.weight")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reads_what_torch_saves(tmp_path, zipped, monkeypatch):
    monkeypatch.setattr("mmjax.convert.weights._MAPPED_LIMIT", 40)  # so that the file is mapped afresh midway
    tensors = example_tensors()
    saved = {name: to_torch(array) for name, array in tensors.items()}
    saved["matrix"] = torch.nn.Parameter(saved["matrix"].t().contiguous().t())
    torch.save(saved, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_holds(tmp_path, tensors)


def test_reads_sharded_torch_files(tmp_path):
    tensors = example_tensors()
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        torch.save({name: to_torch(tensors[name]) for name in tensors if places[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_holds(tmp_path, tensors)


def test_safetensors_come_before_torch_files(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"never looked at")
    write(tmp_path, {"a": np.zeros(2, np.float32)})
    assert open_weights(tmp_path).names == ("a",)


def test_folders_without_weights(tmp_path):
    assert refusal(tmp_path / "none") == " does not exist"
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path) == " holds no model.safetensors or pytorch_model.bin, nor an index of shards: found config.json"
    assert refusal(tmp_path / "config.json") == " is a file; give its folder"


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (HEADER, 23, "is truncated: tensor 'a' ends at byte"),
        (HEADER, 25, "is corrupt: its tensors end at byte"),
        (b"not json", 24, "is corrupt or no safetensors file: its header is not JSON"),
        (b"\xff\xfe{}", 24, "is corrupt or no safetensors file: its header is not JSON"),
        (b"[" * 100_000, 24, "is corrupt or no safetensors file: its header is not JSON"),
        ([], 24, "is corrupt or no safetensors file: its header is not an object of tensors by name"),
        ({"__metadata__": 1}, 0, "is corrupt or no safetensors file: its header is not an object of tensors by name"),
        ({"a": {"dtype": "F32", "shape": [2, 3]}}, 24, "is corrupt: tensor 'a' lacks a dtype, a shape or its two offsets"),
        ({"a": HEADER["a"] | {"shape": [2, 4]}}, 24, "is corrupt: tensor 'a', F32 [2, 4], takes 32 bytes, not 24"),
        ({"a": HEADER["a"] | {"shape": [2, -3]}}, 24, "is corrupt: tensor 'a' has shape [2, -3] and offsets [0, 24]"),
        ({"a": HEADER["a"] | {"shape": [2.0, 3]}}, 24, "is corrupt: tensor 'a' has shape [2.0, 3] and offsets [0, 24]"),
        ({"a": HEADER["a"] | {"shape": [0, 2**62, 2]}}, 24, "is corrupt: tensor 'a' has shape [0, 4611686018427387904, 2]"),
        ({"a": HEADER["a"] | {"dtype": "F4"}}, 24, ": tensor 'a' has dtype 'F4', which cannot be read; use one of BOOL, U8"),
        (HEADER | {"b\n": HEADER["a"]}, 24, r"is corrupt: tensor 'b\n' starts at byte"),
        ({"a": HEADER["a"] | {"data_offsets": [4, 28]}}, 28, "is corrupt: tensor 'a' starts at byte"),
    ],
)
def test_damaged_safetensors(tmp_path, header, data, message):
    write_raw(tmp_path / "model.safetensors", header, bytes(data))
    assert refusal(tmp_path).removeprefix("model.safetensors").lstrip().startswith(message)


@pytest.mark.parametrize("size", [0, 5, 8, 60, 200])
def test_truncated_safetensors(tmp_path, size):
    write(tmp_path, example_tensors())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert refusal(tmp_path).startswith("model.safetensors is truncated or no safetensors file: a header of")


def test_a_file_cut_after_it_was_opened(tmp_path):
    write(tmp_path, {"a": np.zeros(9, np.float32)})
    weights = open_weights(tmp_path)
    os.truncate(tmp_path / "model.safetensors", os.path.getsize(tmp_path / "model.safetensors") - 1)
    with pytest.raises(UserError, match="is truncated: it ends inside tensor 'a'"):
        weights.read("a")


def test_a_git_lfs_pointer(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert refusal(tmp_path) == "model.safetensors is a git-lfs pointer, not the weights: fetch them with git lfs pull"


def test_damaged_shards(tmp_path):
    write(tmp_path, {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}, max_shard_bytes=8)
    index = tmp_path / "model.safetensors.index.json"
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

    def place(content):
        index.write_text(content if isinstance(content, str) else json.dumps({"weight_map": content}))

    place({"a": first, "b": first})
    assert refusal(tmp_path) == f"{first} lacks tensor 'b', which {index.name} places in it"
    place({"a": first, "b": f"../{tmp_path.name}/{second}"})
    assert refusal(tmp_path).endswith(f"{second}', which is not the name of a file beside it")
    for content in ("{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        place(content)
        assert refusal(tmp_path).startswith(f"{index.name} is no index of shards")
    place({"a": first, "b": second})
    (tmp_path / second).unlink()
    assert refusal(tmp_path) == f"{second} is missing: {index.name} places tensor 'b' in it"


class Code:
    """An object whose pickle creates a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_not_executed(tmp_path):
    file, mark = tmp_path / "pytorch_model.bin", tmp_path / "executed"
    refused = "which was not executed: give model.safetensors, or plain tensors"
    torch.save({"a": Code(mark)}, file)
    assert refusal(tmp_path) == f"pytorch_model.bin is a pickle with code in it (posix.mkdir), {refused}"
    torch.save(torch.nn.Linear(2, 2), file)
    assert refusal(tmp_path) == f"pytorch_model.bin is a pickle with code in it (torch.nn.modules.linear.Linear), {refused}"
    for protocol in (2, 4):
        file.write_bytes(pickle.dumps({"a": Code(mark)}, protocol))
        assert "pickle with code in it" in refusal(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0, 60, -200, -4])
def test_truncated_torch_files(tmp_path, zipped, keep):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(100)}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[:keep])
    assert refusal(tmp_path).startswith("pytorch_model.bin is truncated, corrupt or no file of torch.save")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], " holds a list, not a dict of tensors by name"),
        ({"model": {"a": torch.ones(2)}}, " holds a dict under 'model': it should hold tensors by name, and no more"),
        ({3: torch.ones(2)}, " holds a Tensor under 3: it should hold tensors by name, and no more"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, ": tensor 'a' is complex128, torch.strided; use a dense one of bool"),
        ({"a": torch.eye(2).to_sparse()}, ": tensor 'a' is float32, torch.sparse_coo; use a dense one of bool"),
    ],
)
def test_torch_files_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path).removeprefix("pytorch_model.bin").startswith(message)


def test_torch_that_is_not_installed(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    importing = builtins.__import__

    def without_torch(name, *rest, **options):
        if name == "torch":
            raise ModuleNotFoundError(name)
        return importing(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    assert refusal(tmp_path).startswith("pytorch_model.bin can be read only with torch, which is not installed")
