"""What an evaluator is handed: the bound model, the datasets, and exact passes over them.

A pass visits every record once. The last batch of a pass is padded to the common shape, never dropped, and its padding is
taken out again, so a metric does not depend on the batch size or on the mesh; nor does what is drawn for a record, whose
`index` is its place in the pass. Records that cannot be read do not count.
"""

from __future__ import annotations

import contextlib
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax.core.errors import UserError, nearest
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.objectives.lacking import counting

HostBatch = dict[str, np.ndarray]
logger = logging.getLogger("mmjax")


class HostBatches(Protocol):
    """Batches one after the other; `close` stops reading ahead."""

    def __iter__(self) -> Iterator[HostBatch]: ...

    def close(self) -> object: ...


class Dataset(Protocol):
    """The part of a dataset that evaluation reads; `batch_size` is that of the global batch."""

    @property
    def size(self) -> int: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def batch_size(self) -> int: ...

    def epoch(self, rows: Sequence[int] | None = None) -> HostBatches:
        """Each record once, in order: these rows of each batch, or all of them.

        `valid` [B] is False on rows that must not count, those of padding and those that stand in for an unreadable record.
        """
        ...


def class_names(dataset: Any, label: str = "label") -> tuple[str, ...]:
    """The names of a column's classes in the order of their labels; () where the data does not say them."""
    own: tuple[str, ...] = dataset.classes if label == "label" else getattr(dataset, "names", {}).get(label, ())
    return own


class Tokenizer(Protocol):
    """The part of a tokenizer that evaluation reads; see `data.Tokenizer`."""

    @property
    def opening(self) -> tuple[int, ...]: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of one row of ids, without the special tokens."""
        ...

    def pieces(self, size: int) -> list[bytes]:
        """What each of so many tokens adds to a text."""
        ...

    def encode(self, texts: Sequence[str], max_length: int) -> Mapping[str, np.ndarray]:
        """At least `ids` [N, T] int32 and `mask` [N, T] bool."""
        ...


class Evaluation:
    """Runs functions of the bound model over whole datasets. Make one for a run: it remembers what it has compiled.

    Each method takes a `key` that names `fn` in what is said. Two functions are the same where their code and all that they
    close over are equal; each other one is compiled for itself, so `fn` should not close over what changes from one evaluation
    to the next, such as parameters.

    Attributes:
      dry: True in the pass before the first step, which traces what evaluators run on the shapes of their data and gives zeros.
      kept: what evaluators said of single examples, where somebody wants to know; else None.
    """

    dry = False
    kept: list[dict[str, Any]] | None = None

    def __init__(
        self,
        bind: Callable[[Params, Batch], Forward],
        datasets: Mapping[str, Dataset],
        texts: Mapping[str, tuple[Tokenizer, int]],
        place: Callable[[HostBatch], Batch],
        seed: int = 0,
        rows: Callable[[int], Sequence[int]] = range,
    ):
        """
        Args:
          bind: parameters and a batch -> the model in evaluation mode, as evaluators and objectives see it.
          datasets: what an evaluator's `data` field may name.
          texts: modality of text -> its tokenizer, and how many tokens a prompt has.
          place: this process's rows of a batch -> the global batch on the devices.
          seed: of the random key that `sums` hands on; the same at every evaluation.
          rows: the size of a global batch -> the rows of it that this process reads; all of them in a single process.
        """
        self._bind = bind
        self._datasets = datasets
        self._texts = dict(texts)
        self._place = place
        self._seed = seed
        self._local_rows = rows
        self._compiled: dict[tuple[str, str], list[tuple[Callable[..., Any], Callable[..., Any]]]] = {}
        self._told: set[str] = set()

    def keep(self, examples: Iterable[Mapping[str, Any]]) -> None:
        """Say what was found of single examples, for `predictions.jsonl`: JSON objects, each with the example's `index`, its
        place in the data. Costs nothing where nobody wants to know."""
        if self.kept is not None:
            self.kept += map(dict, examples)

    def dataset(self, data: str) -> Dataset:
        """The dataset that an evaluator's `data` field names.

        Raises:
          UserError: there is none of that name, or it is empty.
        """
        if data not in self._datasets:
            held = ", ".join(self._datasets) or "none"
            raise UserError(f"data={data!r} names no dataset of this run{nearest(data, self._datasets)}: it has {held}")
        dataset = self._datasets[data]
        if dataset.size == 0:
            raise UserError(f"data={data!r} is empty (size=0): evaluation needs at least one record")
        return dataset

    def rows(
        self,
        key: str,
        data: str,
        params: Params,
        fn: Callable[[Forward, Batch], Any],
        needs: Sequence[str] = (),
        share: float = 1.0,
    ) -> Any:
        """`fn`'s tree of [B, ...] arrays over the whole dataset: the same tree of numpy [N, ...], in the dataset's order.

        `needs` lists the batch keys that `fn` reads. Of a `share` below 1 so many of the batches are taken, evenly spaced, one
        at least: the others are read and not computed.

        Raises:
          UserError: no such dataset, one without a readable record, or one without a key that `fn` needs.
        """
        numbers = self._numbers(data, share)
        taken = (batch for number, batch in enumerate(self._epoch(data, needs)) if numbers is None or number in numbers)
        rows = self._rows(key, taken, params, fn)
        if len(jax.tree.leaves(rows)[0]) == 0:
            raise UserError(f"data={data!r} has no readable record: evaluation needs at least one")
        return rows

    def sums(
        self, key: str, data: str, params: Params, fn: Callable[[Forward, Batch, Array], Any], needs: Sequence[str] = ()
    ) -> Any:
        """`fn`'s tree of sums, added over the dataset in float64: the same tree of Python floats, and of numpy arrays where a
        sum has dims (a confusion matrix, a histogram).

        `fn` has the signature of an objective and must itself leave out the rows whose `valid` is False. Its random key is
        fixed, and `index` is a record's place in the data: what is drawn by both (`core.random.example_uniform`) is the same at
        every evaluation, at any batch size, on any mesh.

        Raises:
          UserError: no such dataset, an empty one, or one without a key that `fn` needs.
        """
        total: Any = None
        for output in self._outputs(("sums", key), self._epoch(data, needs), params, fn):
            output = jax.tree.map(lambda x: np.asarray(x, np.float64), output)
            total = output if total is None else jax.tree.map(operator.add, total, output)
        return jax.tree.map(lambda x: float(x) if x.ndim == 0 else x, total)

    def texts(
        self,
        key: str,
        params: Params,
        texts: Sequence[str],
        fn: Callable[[Forward, Batch], Any],
        modality: str = "text",
    ) -> Any:
        """Like `rows`, over strings: `fn` sees batches with the modality's ids and mask, of one shape.

        Texts that are cut, that are cut to the same, or that hold what the tokenizer does not know, are counted and told once.

        Raises:
          UserError: the run has no tokenizer for that.
        """
        self.tokenizer(key, modality)
        assert texts, "no texts"
        return self._rows(key, self._text_batches(key, texts, modality), params, fn)

    def tokenizer(self, key: str, modality: str = "text") -> Tokenizer:
        """What encodes and decodes the texts of a modality. Raises `UserError` where the run has none for it."""
        if modality not in self._texts:
            raise UserError(f"tokenizer=None: {key} reads {modality}, so the run needs a tokenizer for it")
        return self._texts[modality][0]

    def length(self, modality: str = "text") -> int:
        """Tokens of a text of a modality that has a tokenizer."""
        return self._texts[modality][1]

    def _numbers(self, data: str, share: float) -> list[int] | None:
        """The numbers of the batches that a share of the data is; None for all."""
        dataset = self.dataset(data)
        whole = -(-dataset.size // dataset.batch_size)
        taken = max(1, round(share * whole))
        return None if taken >= whole else [n * whole // taken for n in range(taken)]

    def _epoch(self, data: str, needs: Sequence[str]) -> Iterator[HostBatch]:
        dataset = self.dataset(data)
        with contextlib.closing(dataset.epoch(self._local_rows(dataset.batch_size))) as batches:
            for batch in batches:
                self.check_needs(data, batch, needs)
                yield batch

    @staticmethod
    def check_needs(data: str, batch: HostBatch, needs: Sequence[str]) -> None:
        """Raises UserError for a key that the data does not give."""
        for name in needs:
            if name not in batch:
                held = ", ".join(batch)
                raise UserError(f"data={data!r} has no {name!r}, which this evaluation needs: it has {held}")

    def _text_batches(self, key: str, texts: Sequence[str], modality: str) -> Iterator[HostBatch]:
        inputs, lost = encoded(self._texts, texts, modality)
        for line in lost:
            if line not in self._told:
                self._told.add(line)
                logger.warning("%s: %s", key, line)
        size = min(dataset.batch_size for dataset in self._datasets.values())  # known to divide over the mesh
        row_B = np.array(self._local_rows(size), np.int32)
        for start in range(0, len(texts), size):
            record_B = np.minimum(start + row_B, len(texts) - 1)
            yield {
                **{key: x[record_B] for key, x in inputs.items()},
                "index": row_B,
                "valid": start + row_B < len(texts),
            }

    def _rows(self, key: str, batches: Iterable[HostBatch], params: Params, fn: Callable[..., Any]) -> Any:
        def rows_and_valid(forward: Forward, batch: Batch, rng: Array) -> tuple[Any, Array]:
            return fn(forward, batch), batch["valid"]

        parts = [
            jax.tree.map(operator.itemgetter(valid_B), rows)
            for rows, valid_B in self._outputs(("rows", key), batches, params, rows_and_valid)
        ]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def program(self, fn: Callable[..., Any]) -> Callable[[Params, Batch, Array], Any]:
        """`fn` as it is compiled: of the parameters, a batch and its number; rows that lack what it reads are not `valid`."""

        def run(params: Params, batch: Batch, number: Array) -> Any:
            # A record's place in the pass, whatever batch it came in: what is drawn for it by `index` is its own then.
            batch = {**batch, "index": number * batch["index"].shape[0] + batch["index"]}
            return counting(fn, self._bind(params, batch), batch, jax.random.key(self._seed))

        return run

    def _kept(self, key: tuple[str, str], fn: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled form of `fn`, made once for each function."""
        known = self._compiled.setdefault(key, [])
        for other, compiled in known:
            if same_function(other, fn):
                return compiled
        compiled = jax.jit(self.program(fn))
        known.append((fn, compiled))
        return compiled

    def _outputs(
        self, key: tuple[str, str], batches: Iterable[HostBatch], params: Params, fn: Callable[..., Any]
    ) -> Iterator[Any]:
        """What `fn` returns for each batch, on the host, one batch behind the device so that loading and computing overlap."""

        compiled = self._kept(key, fn)
        running: Any = None
        for number, batch in enumerate(batches):
            started = compiled(params, self._place(batch), np.int32(number))
            if number > 0:
                yield to_host(running)
            running = started
        yield to_host(running)


def encoded(
    tokenizers: Mapping[str, tuple[Tokenizer, int]], texts: Sequence[str], modality: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Texts as a modality's encoder reads them, batch key -> [N, T]; and lines about what they lost.

    Args:
      tokenizers: modality -> its tokenizer and the length of its texts.

    Raises:
      UserError: none for this modality.
    """
    if modality not in tokenizers:
        raise UserError(f"tokenizer=None: prompts are {modality}, so the run needs a tokenizer for it")
    tokenizer, length = tokenizers[modality]
    tokens = tokenizer.encode(texts, length)
    return {modality: tokens["ids"], f"{modality}_mask": tokens["mask"]}, lost_in(texts, tokens, tokenizer, length)


def lost_in(texts: Sequence[str], tokens: Mapping[str, np.ndarray], tokenizer: Any, length: int) -> list[str]:
    """What prompts lose on their way to ids, in lines."""
    lines = []
    if cut := int(np.sum(tokens.get("truncated", ()))):
        lines.append(f"{cut} of {len(texts)} prompts are longer than {length} tokens and were cut")
    rows = {text: place for place, text in reversed([*enumerate(texts)])}  # of equal texts the first
    same = len(rows) - len(np.unique(tokens["ids"][list(rows.values())], axis=0))
    if same:
        lines.append(f"{same} of {len(rows)} prompts are the same tokens as another: the model cannot tell them apart")
    if hasattr(tokenizer, "unknown") and (unknown := int(tokenizer.unknown(tokens["ids"], tokens["mask"]).sum())):
        share = unknown / max(1, int(tokens["mask"].sum()))
        lines.append(
            f"{unknown} tokens of the prompts ({share:.1%}) are unknown: train the tokenizer on such texts, or use BPE"
        )
    return lines


def same_function(a: Callable[..., Any], b: Callable[..., Any]) -> bool:
    """Whether two functions compute the same: the same code over equal values. False where that cannot be told."""
    if a is b:
        return True
    code = getattr(a, "__code__", None)
    if code is None or code is not getattr(b, "__code__", None):
        try:
            return code is None and type(a) is type(b) and bool(a == b)
        except Exception:  # an array in a field, for instance
            return False
    if not _same_value(getattr(a, "__self__", None), getattr(b, "__self__", None)):
        return False
    pairs = [(a.__defaults__, b.__defaults__), (a.__kwdefaults__, b.__kwdefaults__)]  # type: ignore[attr-defined]
    cells = zip(a.__closure__ or (), b.__closure__ or (), strict=True)  # type: ignore[attr-defined]
    return all(_same_value(x, y) for x, y in [*pairs, *((x.cell_contents, y.cell_contents) for x, y in cells)])


def _same_value(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if callable(a) and hasattr(a, "__code__"):
        return same_function(a, b)
    try:
        return bool(a == b)
    except Exception:  # what has no plain truth (a jax array, a data frame) is taken for another value
        return False


def to_host(tree: Any) -> Any:
    """A tree of global arrays as numpy, whole, on every process: the one place where evaluation gathers."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


class Evaluator(Protocol):
    """A frozen dataclass, called with the evaluation and the parameters: metric name -> value.

    One that has a field `share_in_training` (see `Evaluation.rows`) has it at 1.0 when a finished run asks it. One that reads
    more data than `data` names it in a property `reads`; what is named there stays when `data` becomes the test data.
    """

    @property
    def data(self) -> str: ...

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]: ...


def data_of(evaluator: Any) -> tuple[str, ...]:
    """Names of all data that an evaluator reads."""
    return (evaluator.data, *getattr(evaluator, "reads", ()))
