"""What an evaluator is handed: the bound model, the datasets, and exact passes over them.

A pass visits every record once. The last batch of a pass is padded to the common shape, never dropped, and its padding is
taken out again, so a metric does not depend on the batch size or on the mesh. Records that cannot be read do not count.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax.core.errors import UserError, nearest
from mmjax.core.types import Array, Batch, Forward, Params

HostBatch = dict[str, np.ndarray]


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


class Tokenizer(Protocol):
    """The part of a tokenizer that evaluation reads."""

    def encode(self, texts: Sequence[str], max_length: int) -> Mapping[str, np.ndarray]:
        """At least `ids` [N, T] int32 and `mask` [N, T] bool."""
        ...


class Evaluation:
    """Runs functions of the bound model over whole datasets. Make one for a run: it remembers what it has compiled.

    Each method takes a `key` that stands for `fn`: the first `fn` seen under a key is compiled and kept, so one key must always
    mean the same function, and `fn` must not close over values that change between evaluations, such as parameters.
    """

    def __init__(
        self,
        bind: Callable[[Params, Batch], Forward],
        datasets: Mapping[str, Dataset],
        tokenizer: Tokenizer | None,
        place: Callable[[HostBatch], Batch],
        max_length: int,
        seed: int = 0,
        rows: Callable[[int], Sequence[int]] = range,
    ):
        """
        Args:
          bind: parameters and a batch -> the model in evaluation mode, as evaluators and objectives see it.
          datasets: what an evaluator's `data` field may name.
          tokenizer: for `texts`; None in a run without text.
          place: this process's rows of a batch -> the global batch on the devices.
          max_length: tokens of a prompt.
          seed: of the random key that `sums` hands on; the same at every evaluation.
          rows: the size of a global batch -> the rows of it that this process reads; all of them in a single process.
        """
        self._bind = bind
        self._datasets = datasets
        self._tokenizer = tokenizer
        self._place = place
        self._max_length = max_length
        self._seed = seed
        self._local_rows = rows
        self._compiled: dict[tuple[str, str], Callable[..., Any]] = {}

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

    def rows(self, key: str, data: str, params: Params, fn: Callable[[Forward, Batch], Any], needs: Sequence[str] = ()) -> Any:
        """`fn`'s tree of [B, ...] arrays over the whole dataset: the same tree of numpy [N, ...], in the dataset's order.

        `needs` lists the batch keys that `fn` reads.

        Raises:
          UserError: no such dataset, one without a readable record, or one without a key that `fn` needs.
        """
        rows = self._rows(key, self._epoch(data, needs), params, fn)
        if len(jax.tree.leaves(rows)[0]) == 0:
            raise UserError(f"data={data!r} has no readable record: evaluation needs at least one")
        return rows

    def sums(
        self, key: str, data: str, params: Params, fn: Callable[[Forward, Batch, Array], Any], needs: Sequence[str] = ()
    ) -> Any:
        """`fn`'s tree of [] sums, added over the dataset in float64: the same tree of Python floats.

        `fn` has the signature of an objective and must itself leave out the rows whose `valid` is False. Its random key is
        fixed: a function of the seed and the batch's number.

        Raises:
          UserError: no such dataset, an empty one, or one without a key that `fn` needs.
        """
        total: Any = None
        for output in self._outputs(("sums", key), self._epoch(data, needs), params, fn):
            output = jax.tree.map(float, output)
            total = output if total is None else jax.tree.map(operator.add, total, output)
        return total

    def texts(self, key: str, params: Params, texts: Sequence[str], fn: Callable[[Forward, Batch], Any]) -> Any:
        """Like `rows`, over strings: `fn` sees batches with `text` and `text_mask` of one shape.

        Raises:
          UserError: the run has no tokenizer.
        """
        if self._tokenizer is None:
            raise UserError(f"tokenizer=None: {key} reads text, so the run needs a tokenizer")
        assert texts, "no texts"
        return self._rows(key, self._text_batches(texts), params, fn)

    def _epoch(self, data: str, needs: Sequence[str]) -> Iterator[HostBatch]:
        dataset = self.dataset(data)
        with contextlib.closing(dataset.epoch(self._local_rows(dataset.batch_size))) as batches:
            for batch in batches:
                for name in needs:
                    if name not in batch:
                        held = ", ".join(batch)
                        raise UserError(f"data={data!r} has no {name!r}, which this evaluation needs: it has {held}")
                yield batch

    def _text_batches(self, texts: Sequence[str]) -> Iterator[HostBatch]:
        assert self._tokenizer is not None
        tokens = self._tokenizer.encode(texts, self._max_length)
        size = min(dataset.batch_size for dataset in self._datasets.values())  # known to divide over the mesh
        row_B = np.array(self._local_rows(size), np.int32)
        for start in range(0, len(texts), size):
            record_B = np.minimum(start + row_B, len(texts) - 1)
            yield {
                "text": tokens["ids"][record_B],
                "text_mask": tokens["mask"][record_B],
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

    def _outputs(
        self, key: tuple[str, str], batches: Iterable[HostBatch], params: Params, fn: Callable[..., Any]
    ) -> Iterator[Any]:
        """What `fn` returns for each batch, on the host, one batch behind the device so that loading and computing overlap."""

        def run(params: Params, batch: Batch, number: Array) -> Any:
            rng = jax.random.fold_in(jax.random.key(self._seed), number)
            return fn(self._bind(params, batch), batch, rng)

        compiled = self._compiled.setdefault(key, jax.jit(run))
        running: Any = None
        for number, batch in enumerate(batches):
            started = compiled(params, self._place(batch), np.int32(number))
            if number > 0:
                yield to_host(running)
            running = started
        yield to_host(running)


def to_host(tree: Any) -> Any:
    """A tree of global arrays as numpy, whole, on every process: the one place where evaluation gathers."""
    if jax.process_count() > 1:
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


class Evaluator(Protocol):
    """A frozen dataclass, called with the evaluation and the parameters: metric name -> value."""

    @property
    def data(self) -> str: ...

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]: ...
