"""HuggingFace weight files, read and written one tensor at a time, so that no model is ever whole in memory here.

A safetensors file is an 8-byte little-endian length, a JSON header of that length that gives each tensor's dtype, shape and
byte range, and then the bytes of the tensors, back to back. We read the header ourselves: every file that is not like that is
a clear error, and a tensor costs one plain read of its bytes, whose memory is the caller's alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import safe_open

from mmjax.core.errors import UserError, nearest

# In the order in which the reference writer lays them out in reverse: the wide ones first keeps every tensor aligned.
_CODES = {
    code: np.dtype(kind)
    for code, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "I16": np.int16,
        "U16": np.uint16,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I32": np.int32,
        "U32": np.uint32,
        "F32": np.float32,
        "C64": np.complex64,
        "F64": np.float64,
        "I64": np.int64,
        "U64": np.uint64,
    }.items()
}
_CODE_OF = {dtype.name: code for code, dtype in _CODES.items()}
_RANK = {code: rank for rank, code in enumerate(_CODES)}
_HEADER_LIMIT = 100_000_000  # the reference reader's
_MAPPED_LIMIT = 256_000_000  # bytes read from a mapped .bin before it is mapped afresh


@dataclasses.dataclass(frozen=True)
class _Stored:
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int = 0  # of the first byte, from the start of the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _File(Protocol):
    path: Path
    tensors: dict[str, _Stored]

    def read(self, name: str) -> np.ndarray: ...

    def close(self) -> None: ...


def float32_of(weights: Weights, name: str, where: object) -> np.ndarray:
    """A tensor of an adapter, float32. Raises UserError, which begins with `where`, for integers and what is not finite."""
    x = weights.read(name)
    if weights.dtype(name) not in ("float16", "bfloat16", "float32", "float64"):
        raise UserError(f"{where}: tensor {name!r} is of {weights.dtype(name)}, and an adapter's are of a float dtype")
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
        raise UserError(f"{where}: tensor {name!r} has numbers that are not finite")
    return x


def metadata_of(file: Path) -> dict[str, str]:
    """What stands beside the tensors of a file; {} where nothing does."""
    if file.suffix != ".safetensors":
        return {}
    with safe_open(str(file), "numpy") as opened:
        return dict(opened.metadata() or {})


class Weights:
    """The tensors of a HuggingFace folder by name; made by `open_weights`, and a context manager.

    Attributes:
      names: every tensor, in the order of the file or of the index.
    """

    def __init__(self, folder: Path, files: Mapping[str, _File]) -> None:
        self._folder = folder
        self._files = files
        self.names = tuple(files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises UserError, here and below, when there is none of that name."""
        return self._file(name).tensors[name].shape

    def dtype(self, name: str) -> str:
        """The name of a tensor's dtype, such as "float32" or "bfloat16"."""
        return self._file(name).tensors[name].dtype.name

    def read(self, name: str) -> np.ndarray:
        """One tensor in its own dtype (bfloat16 as `ml_dtypes.bfloat16`): a C-contiguous copy that nothing here keeps."""
        return self._file(name).read(name)

    @property
    def dtype_of_model(self) -> str:
        """The dtype that most floating-point numbers have; "float32" where there is none."""
        sizes: Counter[str] = Counter()
        for name in self.names:
            stored = self._files[name].tensors[name]
            if "float" in stored.dtype.name:
                sizes[stored.dtype.name] += math.prod(stored.shape)
        return max(sizes, key=sizes.__getitem__, default="float32")

    def close(self) -> None:
        """Release mapped memory. A safetensors file is open only while one of its tensors is read."""
        for file in self._files.values():
            file.close()

    def _file(self, name: str) -> _File:
        if name not in self._files:
            raise UserError(f"{self._folder} has no tensor {name!r}{nearest(name, self.names)}")
        return self._files[name]


def open_weights(folder: Path) -> Weights:
    """Open `model.safetensors` or its index of shards, or else `pytorch_model.bin` or its index (this needs torch).

    Reads headers only, and checks all of them. An index decides which tensors there are: what else a shard holds is ignored.
    A .bin goes through torch's weights-only reader, which executes nothing; one in the format of torch < 1.6 cannot be mapped,
    so it is held in memory whole.

    Raises:
      UserError: no folder, no weights in it, or a file that is missing, truncated, corrupt, not plain tensors, or of a dtype
        that NumPy and ml_dtypes lack.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give its folder" if folder.exists() else f"{folder} does not exist")
    kinds: dict[str, Callable[[Path], _File]] = {"model.safetensors": _Safetensors, "pytorch_model.bin": _Pickle}
    for file, kind in kinds.items():
        if (folder / file).is_file():
            whole = kind(folder / file)
            return Weights(folder, dict.fromkeys(whole.tensors, whole))
        if (index := folder / f"{file}.index.json").is_file():
            return Weights(folder, _open_shards(index, kind))
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"{folder} holds no model.safetensors or pytorch_model.bin, nor an index of shards: found {found}")


def open_file(path: Path) -> Weights:
    """Open one file of tensors, safetensors or, by its ending `.bin`, torch's.

    Raises:
      UserError: as `open_weights`.
    """
    whole: _File = _Pickle(path) if path.suffix == ".bin" else _Safetensors(path)
    return Weights(path.parent, dict.fromkeys(whole.tensors, whole))


def _open_shards(index: Path, kind: Callable[[Path], _File]) -> dict[str, _File]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        named = [(str(name), Path(place).name, place) for name, place in places.items()]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UserError(f'{index} is no index of shards: it should be JSON with "weight_map": {{tensor: file}}') from None
    shards: dict[str, _File] = {}
    for name, file, place in named:
        path = index.parent / file
        if file != place:
            raise UserError(f"{index} places tensor {name!r} in {place!r}, which is not the name of a file beside it")
        if file not in shards:
            if not path.is_file():
                raise UserError(f"{path} is missing: {index.name} places tensor {name!r} in it")
            shards[file] = kind(path)
        if name not in shards[file].tensors:
            raise UserError(f"{path} lacks tensor {name!r}, which {index.name} places in it")
    return {name: shards[file] for name, file, _ in named}


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = _read_header(path)

    def read(self, name: str) -> np.ndarray:
        stored = self.tensors[name]
        array = np.empty(stored.shape, stored.dtype)
        rest = _buffer(array)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(stored.offset)
            while len(rest):  # a read gives at most 2 GB
                count = file.readinto(rest)
                if not count:
                    raise UserError(f"{self.path} is truncated: it ends inside tensor {name!r}")
                rest = rest[count:]
        return array

    def close(self) -> None:
        pass


def _buffer(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, not a copy."""
    return array.reshape(-1).view(np.uint8).data


def _read_header(path: Path) -> dict[str, _Stored]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise UserError(f"{path} is a git-lfs pointer, not the weights: fetch them with git lfs pull")
        if 8 + length > size or length > _HEADER_LIMIT:
            raise UserError(f"{path} is truncated or no safetensors file: a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length).decode())
        except (ValueError, RecursionError):
            raise UserError(f"{path} is corrupt or no safetensors file: its header is not JSON") from None
    if not isinstance(header, dict) or not isinstance(header.pop("__metadata__", {}), dict):
        raise UserError(f"{path} is corrupt or no safetensors file: its header is not an object of tensors by name")
    tensors = {name: _parse_entry(path, name, entry, 8 + length) for name, entry in header.items()}
    expected = 8 + length
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        end = stored.offset + stored.nbytes
        if stored.offset != expected:
            raise UserError(f"{path} is corrupt: tensor {name!r} starts at byte {stored.offset}, not at {expected}")
        if end > size:
            raise UserError(f"{path} is truncated: tensor {name!r} ends at byte {end} of a file of {size}")
        expected = end
    if expected != size:
        raise UserError(f"{path} is corrupt: its tensors end at byte {expected} of a file of {size}")
    return tensors


def _parse_entry(path: Path, name: str, entry: Any, data: int) -> _Stored:
    """What the header says of one tensor, whose offsets count from the byte `data`."""
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise UserError(f"{path} is corrupt: tensor {name!r} lacks a dtype, a shape or its two offsets")
    if code not in _CODES:
        raise UserError(f"{path}: tensor {name!r} has dtype {code!r}, which cannot be read; use one of {', '.join(_CODES)}")
    itemsize = _CODES[code].itemsize
    natural = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    # NumPy's own limits, which hold for empty arrays too
    if not natural or len(shape) > 64 or math.prod(max(dim, 1) for dim in shape) * itemsize >= 2**63:
        raise UserError(f"{path} is corrupt: tensor {name!r} has shape {shape} and offsets [{begin}, {end}]")
    stored = _Stored(tuple(shape), _CODES[code], data + begin)
    if end - begin != stored.nbytes:
        raise UserError(f"{path} is corrupt: tensor {name!r}, {code} {shape}, takes {stored.nbytes} bytes, not {end - begin}")
    return stored


class _Pickle:
    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self._mapped = file.read(4) == b"PK\x03\x04"  # a zip, as torch writes since 1.6
        self._tensors: dict[str, Any] | None = None
        self._count = 0
        self.tensors = {name: _describe(path, name, tensor) for name, tensor in self._load().items()}

    def read(self, name: str) -> np.ndarray:
        import torch

        stored = self.tensors[name]
        flat = self._load()[name].detach().contiguous().reshape(-1)
        array = flat.view(torch.uint8).numpy().view(stored.dtype).reshape(stored.shape).copy()
        self._count += stored.nbytes
        if self._mapped and self._count > _MAPPED_LIMIT:
            self.close()  # what was read of a mapped file stays resident until it is unmapped
        return array

    def close(self) -> None:
        self._tensors = None
        self._count = 0

    def _load(self) -> dict[str, Any]:
        if self._tensors is None:
            self._tensors = _unpickle(self.path, self._mapped)
        return self._tensors


def _unpickle(path: Path, mapped: bool) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} can be read only with torch, which is not installed; or give model.safetensors") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of is an error just below
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a pickle with code in it ({code[1]})" if code else "corrupt, or a pickle with code in it"
        raise UserError(f"{path} is {what}, which was not executed: give model.safetensors, or plain tensors") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path} is truncated, corrupt or no file of torch.save ({type(error).__name__})") from None
    if not isinstance(tensors, dict):
        raise UserError(f"{path} holds a {type(tensors).__name__}, not a dict of tensors by name")
    return tensors


def _describe(path: Path, name: Any, tensor: Any) -> _Stored:
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise UserError(f"{path} holds a {type(tensor).__name__} under {name!r}: it should hold tensors by name, and no more")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _CODE_OF or tensor.layout is not torch.strided:
        raise UserError(f"{path}: tensor {name!r} is {dtype}, {tensor.layout}; use a dense one of {', '.join(_CODE_OF)}")
    return _Stored(tuple(tensor.shape), _CODES[_CODE_OF[dtype]])


def write_weights(
    folder: Path,
    plan: Sequence[tuple[str, tuple[int, ...], str]],
    read: Callable[[str], np.ndarray],
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write `model.safetensors`, or `model-00001-of-0000N.safetensors` and their index, holding one tensor at a time.

    Args:
      folder: where to; it exists.
      plan: (name, shape, dtype name) of every tensor. Shards are filled in this order.
      read: gives a planned tensor, C-contiguous and of exactly that shape and dtype.
      max_shard_bytes: of a shard's tensors; only a larger tensor makes a larger shard, all by itself.
    """
    tensors = {name: _Stored(tuple(shape), _CODES[_CODE_OF[dtype]]) for name, shape, dtype in plan}
    assert len(tensors) == len(plan), "a tensor is planned twice"
    shards: list[dict[str, _Stored]] = [{}]
    total = filled = 0
    for name, stored in tensors.items():
        if shards[-1] and filled + stored.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = stored
        filled += stored.nbytes
        total += stored.nbytes
    if len(shards) == 1:
        _write_shard(folder / "model.safetensors", shards[0], read)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard, read)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_shard(path: Path, tensors: Mapping[str, _Stored], read: Callable[[str], np.ndarray]) -> None:
    ordered = sorted(tensors.items(), key=lambda item: (-_RANK[_CODE_OF[item[1].dtype.name]], item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, stored in ordered:
        begin, end = end, end + stored.nbytes
        header[name] = {"dtype": _CODE_OF[stored.dtype.name], "shape": stored.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, stored in ordered:
            array = read(name)
            found = (array.shape, array.dtype, array.flags.c_contiguous)
            assert found == (stored.shape, stored.dtype, True), f"{name}: planned {stored}, found {found}"
            file.write(_buffer(array))
            del array  # before the next one is read
