"""How many tokens the texts of records have, by which rows and batches are put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.columns import Columns
from mmjax.data.order import PASS, Draws
from mmjax.data.reader import Reader, spread

LOOKED_AT = 1000  # records whose lengths say how long a text is on average


def the_text(columns: Columns, wants: str, key: str = "") -> str:
    """The key of the one text that is put together by its lengths; or `key`, which is one of several.

    Raises:
      UserError: for none, several or another; what makes it of the records wants a row for each. `wants`: what is said of it.
    """
    if key and key not in columns.texts:
        raise UserError(f"packing.of={key!r}: the texts of the records are {', '.join(columns.texts) or 'none'}")
    if not key and len(columns.texts) != 1:
        raise UserError(f"packing: {wants} of one key, and the records have {', '.join(columns.texts) or 'none'}")
    key = key or next(iter(columns.texts))
    if key not in columns.padding:
        raise UserError(f"packing: what makes {key!r} of the records wants a row for each, all of one length; leave it away")
    return key


def token_lengths(
    reader: Reader, columns: Columns, key: str, indices: Sequence[int], places: Sequence[int], draws: Draws
) -> np.ndarray:
    """[n] int64: tokens of the texts of some records, as they are at their places."""
    return lengths_of(reader.stack(columns, indices, places, draws).batch[f"{key}_mask"])


def lengths_of(mask_BT: np.ndarray) -> np.ndarray:
    """[B] int64: how long each row must be to hold all of its tokens."""
    found: np.ndarray = ((np.arange(mask_BT.shape[1]) + 1) * mask_BT).max(axis=1)
    return found


def mean_length(reader: Reader, columns: Columns, key: str) -> float:
    """Of the texts of up to `LOOKED_AT` evenly spaced records, in tokens."""
    indices = spread(reader.records, LOOKED_AT)
    return float(token_lengths(reader, columns, key, indices, indices, Draws(0, PASS)).mean())
