"""What data really holds, in words: behind `mmjax data inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.order import Draws
from mmjax.data.pipeline import Batch, Dataset
from mmjax.data.reader import THREADS, spaced
from mmjax.data.tokenizers import Tokenizer

MOST = 4096  # records that are looked at
SHOWN = 3  # texts
NAMED = 20  # classes, bad files
LONGEST = 4096  # tokens that are counted of a text


@dataclasses.dataclass(frozen=True)
class Looked:
    """What was found in a dataset.

    Attributes:
      text: lines about it.
      faults: what would end a run, one line each.
    """

    text: str
    faults: tuple[str, ...]


def describe(dataset: Dataset) -> str:
    """Lines about a dataset, as `look` finds them."""
    return look(dataset).text


def look(dataset: Dataset) -> Looked:
    """Read a dataset as a pass over it would, all of its records or `MOST` evenly spaced ones, and the batch of step 0.

    The lines say the size, classes, shapes, dtypes and ranges, the lengths of texts and what of them is cut or unknown, which
    files cannot be read, and which records are unlike the first.
    """
    indices = spaced(dataset.size, MOST)
    with ThreadPoolExecutor(THREADS) as pool:
        seen = list(pool.map(lambda index: _see(dataset, index), indices))
    bad = {path: reason for one in seen for path, reason in one.bad.items()}
    unlike = [f"record {index}: {one.trouble}" for index, one in zip(indices, seen, strict=True) if one.trouble]
    rows = dataset._stream(dataset.batch_size, None, once=False)[0]  # not counted: a look ends at no limit
    some = f"{len(indices)} evenly spaced records of {dataset.size}"
    lines = [
        f"records      {dataset.size}, fingerprint {dataset.fingerprint}",
        f"batch        {dataset.batch_size} rows, {dataset.size / dataset.batch_size:.1f} steps an epoch",
        f"looked at    {'all of them' if len(indices) == dataset.size else some}",
        *_classes(dataset, seen),
    ]
    faults = []
    if isinstance(rows, UserError):
        faults += [] if unlike else [str(rows)]
    else:
        lines += [f"{key:<12} {_array(value)}" for key, value in rows.batch.items()]
        lines += _texts(dataset, rows.batch)
    lines += _lengths(dataset, seen)
    lines.append(f"unreadable   {len(bad)} record(s)")
    lines += _named([f"{path}: {reason}" for path, reason in bad.items()])
    if unlike:
        lines += [f"unlike       {len(unlike)} record(s) are unlike the first", *_named(unlike)]
        faults.append(f"{len(unlike)} of {len(indices)} records are unlike the first; {unlike[0]}")
    limit = dataset._data.bad_record_limit
    if len(bad) > limit * len(indices):
        many = f"{len(bad)} of {len(indices)} records cannot be read, more than bad_record_limit={limit} allows"
        path, reason = next(iter(bad.items()))
        faults.insert(0, f"{many}; the first: {path} ({reason})")
    return Looked("\n".join(lines), tuple(faults))


@dataclasses.dataclass(frozen=True)
class _Seen:
    """One record: what is wrong with it, its class and texts; their tokens, how many are unknown, and whether some are cut."""

    bad: dict[str, str]
    trouble: str = ""
    label: int | None = None
    text: tuple[str, str | None] | None = None
    tokens: int = 0
    unknown: int = 0
    cut: bool = False


def _see(dataset: Dataset, index: int) -> _Seen:
    try:
        record, bad, replaced = dataset._reader._record(index, index, Draws(0, "pass"))
        if replaced:
            return _Seen(bad)
        batch, cut = dataset._columns([record])
    except UserError as error:
        return _Seen({}, str(error))
    label = int(record["label"]) if np.ndim(record.get("label", ())) == 0 and "label" in record else None
    if "text" not in batch or dataset.tokenizer is None:
        return _Seen(bad, label=label)
    ids = batch["text"][batch["text_mask"]]
    unknown = int((ids == _unknown(dataset.tokenizer)).sum())
    return _Seen(bad, "", label, (record["text"], record.get("text_pair")), len(ids), unknown, bool(cut))


def _unknown(tokenizer: Tokenizer) -> int:
    """The id of the unknown token, -1 where it has none of its own: GPT-2's is the one that ends a text."""
    found = tokenizer.huggingface.unk_token_id
    return -1 if found is None or found in (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) else found


def _classes(dataset: Dataset, seen: Sequence[_Seen]) -> list[str]:
    """Their names, with how many records each has of all, where the source knows, else of those that were looked at."""
    if not dataset.classes:
        return []
    known: Any = getattr(dataset._reader.records, "labels", ())
    labels = [int(label) for label in known] if len(known) == dataset.size else [s.label for s in seen if s.label is not None]
    counts = Counter(label if label >= 0 else -1 for label in labels)
    of = [f"{name} {counts[label]}" for label, name in enumerate(dataset.classes)]
    more = f", and {len(of) - NAMED} more" if len(of) > NAMED else ""
    lines = [f"classes      {len(of)}: {', '.join(of[:NAMED])}{more}"]
    absent = [name for label, name in enumerate(dataset.classes) if not counts[label]]
    if absent:
        more = f", and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        lines.append(f"             nothing of {', '.join(absent[:NAMED])}{more}")
    return [*lines, f"             no class {counts[-1]}"] if counts[-1] else lines


def _array(value: np.ndarray) -> str:
    """Shape, dtype and range; for floats, mean and standard deviation too."""
    line = f"{list(value.shape)} {value.dtype}"
    if value.dtype == bool:
        return f"{line}, {value.mean():.1%} true"
    if np.issubdtype(value.dtype, np.floating):
        return f"{line}, {value.min():.3g} to {value.max():.3g}, mean {value.mean():.3g}, std {value.std():.3g}"
    return f"{line}, {value.min()} to {value.max()}, {len(np.unique(value))} different"


def _texts(dataset: Dataset, batch: Batch) -> list[str]:
    if "text" not in batch or dataset.tokenizer is None:
        return []
    lines = [f"padding      {1 - batch['text_mask'].mean():.1%} of the tokens"]
    for ids, mask in list(zip(batch["text"], batch["text_mask"], strict=True))[:SHOWN]:
        lines.append(f"             {dataset.tokenizer.decode(ids[mask])!r}")
    return lines


def _lengths(dataset: Dataset, seen: Sequence[_Seen]) -> list[str]:
    """Tokens of the texts before they are cut, and the shares that are cut and unknown."""
    told = [one for one in seen if one.text is not None]
    if not told or dataset.tokenizer is None:
        return []
    lengths = [_length(dataset.tokenizer, one) for one in told]
    at_most = f"{LONGEST} or more" if max(lengths) >= LONGEST else f"{max(lengths)}"
    cut, tokens = sum(one.cut for one in told), sum(one.tokens for one in told)
    lines = [
        f"tokens       {min(lengths)} to {at_most} a text, half of them {int(np.median(lengths))} or fewer",
        f"cut          {cut / len(told):.1%} of the texts, at max_length={dataset._data.max_length}",
    ]
    if _unknown(dataset.tokenizer) >= 0:
        lines.append(f"unknown      {sum(one.unknown for one in told) / max(1, tokens):.1%} of the tokens")
    return lines


def _length(tokenizer: Tokenizer, one: _Seen) -> int:
    if not one.cut:
        return one.tokens
    assert one.text is not None
    text, pair = one.text
    return int(tokenizer.encode([text], LONGEST, None if pair is None else [pair])["mask"].sum())


def _named(lines: Sequence[str]) -> list[str]:
    more = [f"             and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return [*(f"             {line}" for line in lines[:NAMED]), *more]
