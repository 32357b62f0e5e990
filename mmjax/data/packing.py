"""Several texts in a row: what `Data.packing` says, and the rows as a function of their number alone.

The texts of window w are those at places [w n, (w + 1) n) of the stream, and its rows are filled with them. A text that found
no room is carried over into what the next windows leave free, `carry` of them, each of which gives room to its own texts first
and then to those that have waited least. So what is in a window depends on it and on the `carry` windows before it, and on
nothing else: any process makes any row, at any step, without a state.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.bins import Bins, Fill
from mmjax.data.buckets import Buckets
from mmjax.data.columns import Columns, Lost
from mmjax.data.files.recent import Recent
from mmjax.data.lengths import mean_length, the_text
from mmjax.data.reader import Reader, Rows

WINDOW = 16  # rows that are filled together, unless said
ROOM = 4  # tokens a text has, on average, where as many as possible are in a row, unless said


@dataclasses.dataclass(frozen=True)
class Packed:
    """Several texts in a row, one after another, instead of one and padding. For training; an evaluation has a text a row.

    Each text has positions of its own and is attended to by its own tokens alone, so the losses that are sums over tokens
    (`CausalLM` without a context, `MaskedLM`, `Classification` of tokens) are what they are of the texts one by one. Others are
    refused: a row is no example, and has no label. In the batch `text_lengths` [B, texts] says how long each text of a row is.

    Attributes:
      length: tokens of a row; 0 for `max_length` of the data, which is the most tokens of one text in any case.
      texts: the most texts in a row; 0 for one to four tokens of it.
      window: rows that are filled together; a batch is a whole number of windows. 0 for up to 16.
      examples: texts of a window; 0 for as many as come to `fill`, by the lengths of up to 1,000 evenly spaced records.
      fill: the share of a window's tokens that its texts have on average. Near 1 more texts find no room at once.
      carry: into how many more windows a text is carried that finds no room; then it is left out of this epoch, and counted.
    """

    length: int = setting(least=0, default=0)
    texts: int = setting(least=0, default=0)
    window: int = setting(least=0, default=0)
    examples: int = setting(least=0, default=0)
    fill: float = setting(above=0, most=1, default=0.97)
    carry: int = setting(least=0, default=4)

    def build(self, reader: Reader, columns: Columns, batch_size: int) -> Packing:
        """For data. Raises `UserError` unless its records have one text, as `of`."""
        key = the_text(columns, "rows hold the texts")
        spec = self.of(batch_size, columns.texts[key][1], lambda: mean_length(reader, columns, key))
        return Packing(spec, key, reader, columns, batch_size)

    def of(self, batch_size: int, longest: int, mean: Callable[[], float]) -> Packed:
        """With all numbers said.

        Args:
          longest: tokens of the longest text.
          mean: of a text, asked where `examples` is 0.

        Raises:
          UserError: rows shorter than a text may be, or windows that make no batch.
        """
        length = self.length or longest
        if length < longest:
            raise UserError(f"packing.length={length}: a text may have max_length={longest} tokens; give rows as many")
        window = self.window or math.gcd(batch_size, WINDOW)
        if batch_size % window:
            raise UserError(f"packing.window={window}: batch_size={batch_size} is not a whole number of windows")
        texts = self.texts or max(1, length // ROOM)
        examples = self.examples or max(1, min(window * texts, int(window * length * self.fill / max(mean(), 1.0))))
        return dataclasses.replace(self, length=length, window=window, texts=texts, examples=examples)


PACKINGS = {"packed": Packed, "buckets": Buckets}


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of a window.

    Attributes:
      arrays: [n, L, ...] by batch key.
      lengths: of each, [n].
      read: what reading them came to.
    """

    arrays: Mapping[str, np.ndarray]
    lengths: np.ndarray
    read: Rows


class Packing:
    """The training batches of a stream whose rows hold several texts; see `reader.Batching`."""

    lengths: tuple[int, ...] = ()
    several = True

    def __init__(self, spec: Packed, key: str, reader: Reader, columns: Columns, batch_size: int) -> None:
        """`spec`: with all numbers said (`Packed.of`)."""
        self.spec, self.key = spec, key
        self.fills = columns.padding
        self._reader, self._columns, self._batch_size = reader, columns, batch_size
        self._windows = batch_size // spec.window
        near = 2 * (spec.carry + 1 + self._windows)  # windows that batches being made look at
        self._recent, self._plans = Recent(near), Recent(near * (spec.carry + 1))

    def shapes(self, first: Mapping[str, np.ndarray], length: int = 0) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        own = {key: ((self._batch_size, self.spec.length), first[key].dtype) for key in self.fills if key in first}
        return {**own, f"{self.key}_lengths": ((self._batch_size, self.spec.texts), np.dtype(np.int32))}

    def drawn(self, step: int, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of the texts that come with a step, which need not be in it."""
        first = step * self._windows * self.spec.examples
        return self._reader.order.indices(first, first + len(rows)), list(range(first, first + len(rows)))

    def reach(self, steps: int) -> int:
        return (steps * self._windows + self.spec.carry) * self.spec.examples

    def __call__(self, step: int, rows: Sequence[int]) -> Rows:
        parts: list[dict[str, np.ndarray]] = []
        bad: dict[str, str] = {}
        lost, filled = Lost(), Fill()
        for own, group in itertools.groupby(rows, lambda row: row // self.spec.window):
            window, mine = step * self._windows + own, [row % self.spec.window for row in group]
            held, fill = self.held(window)
            parts.append(self._filled(window, [held[row] for row in mine]))
            if mine[0] == 0:  # what a window's texts lost is told once, by whoever makes its first row
                read = self._texts(window).read
                lost, bad, filled = lost + read.lost, bad | read.bad, filled + fill
        batch = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return Rows(batch, np.zeros(len(rows), bool), lost, bad, filled)

    def held(self, window: int) -> tuple[list[list[tuple[int, int]]], Fill]:
        """For each row of a window its texts, (window, number) each; and how the window was filled."""
        spec, waited = self.spec, len(self._placed(window, 0)[1])
        bins, left = self._placed(window, spec.carry)
        tokens = sum(int(self._texts(w).lengths[n]) for row in bins.held for w, n in row)
        return bins.held, Fill(spec.window * spec.length, tokens, spec.examples, waited, len(left))

    def _placed(self, window: int, age: int) -> tuple[Bins, list[int]]:
        """The rows of a window with its own texts and those that have waited up to `age` windows; and of the texts that have
        waited so many, those that still find no room."""
        found: tuple[Bins, list[int]] = self._plans.get((window, age), lambda: (self._place(window, age), 1))
        return found

    def _place(self, window: int, age: int) -> tuple[Bins, list[int]]:
        came = window - age
        if not age:
            bins, waiting = Bins(self.spec.window, self.spec.length, self.spec.texts), list(range(self.spec.examples))
        else:
            bins, waiting = self._placed(window, age - 1)[0].copy(), self._placed(window - 1, age - 1)[1] if came >= 0 else []
        return bins, bins.fill(came, waiting, self._texts(came).lengths) if waiting else []

    def _filled(self, window: int, held: Sequence[Sequence[tuple[int, int]]]) -> dict[str, np.ndarray]:
        """Batch key -> [rows, length, ...], and `KEY_lengths` [rows, texts]."""
        like = self._texts(window).arrays
        shape = (len(held), self.spec.length)
        found = {key: np.full((*shape, *like[key].shape[2:]), self.fills[key], like[key].dtype) for key in like}
        lengths = np.zeros((len(held), self.spec.texts), np.int32)
        for row, own in enumerate(held):
            start = 0
            for place, (came, number) in enumerate(own):
                texts = self._texts(came)
                lengths[row, place] = length = int(texts.lengths[number])
                for key, array in texts.arrays.items():
                    found[key][row, start : start + length] = array[number, :length]
                start += length
        return {**found, f"{self.key}_lengths": lengths}

    def _texts(self, window: int) -> Texts:
        found: Texts = self._recent.get(window, lambda: (self._read(window), 1))
        return found

    def _read(self, window: int) -> Texts:
        order, start = self._reader.order, window * self.spec.examples
        places = range(start, start + self.spec.examples)
        rows = self._reader.stack(self._columns, order.indices(start, places.stop), places, order.draws())
        arrays = {key: array for key, array in rows.batch.items() if key in self.fills}
        return Texts(arrays, arrays[f"{self.key}_mask"].sum(axis=1), dataclasses.replace(rows, batch={}))
