"""Batches one after the other, read ahead by threads and worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags

from mmjax.core.errors import UserError
from mmjax.data.reader import Rows, Stream
from mmjax.data.workers import closed, taken, watch

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """Batches one after the other, read ahead by grain; `close` (or `with`) frees its threads and worker processes."""

    def __init__(
        self, stream: Stream, start: int, threads: int, prefetch: int, workers: int, take: Callable[[Rows | UserError], Batch]
    ) -> None:
        """Read the steps of a stream from `start` on; the other numbers are those of `Data`.

        Args:
          take: what has been read -> the batch; it counts what happened on the way, and raises what went wrong.
        """
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
        steps = grain.MapDataset.source(stream).slice(slice(start, None)).to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads absl's flags to pass them on
            steps = steps.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch))
        self._rows, self._take = iter(steps), take
        if workers:
            watch(self._rows)

    def __next__(self) -> Batch:
        return self._take(taken(self._rows))

    def close(self) -> None:
        """Stop reading; may be called again."""
        closed(self._rows)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
