"""What data really holds, in words: behind `mmjax data inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.batches import Batch
from mmjax.data.clip import Seen
from mmjax.data.dataset import Dataset
from mmjax.data.inspect_sounds import sounds_in, told
from mmjax.data.inspect_videos import told as told_of_videos
from mmjax.data.inspect_videos import videos_in
from mmjax.data.lacking import lacks
from mmjax.data.making import text_spec
from mmjax.data.order import PASS, Draws
from mmjax.data.reader import THREADS, spread
from mmjax.data.sound import Heard
from mmjax.data.spans import Span
from mmjax.data.tags import Tags
from mmjax.data.types import Record

MOST = 4096  # records that are looked at
SHOWN = 3  # texts
NAMED = 20  # classes, bad files
LONGEST = 4096  # tokens that are counted of a text
REMEDY = "train the tokenizer on such texts, or use BPE, which knows every character"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of one text of the records that were looked at.

    Attributes:
      tokens: of each, before it is cut; `LONGEST` or more count as that.
      cut: the share that is cut, at `most` tokens.
      unknown: the share of the tokens that are left which the tokenizer does not know.
    """

    tokens: tuple[int, ...]
    cut: float
    unknown: float
    most: int


@dataclasses.dataclass(frozen=True)
class Looked:
    """What was found in a dataset.

    Attributes:
      text: lines about it.
      faults: what would end a run, one line each.
      count: how many records were looked at.
      classes: name -> how many records, of all where the source knows, else of those that were looked at.
      bare: how many of them have no class.
      lengths: key of a text -> its lengths.
      padding: key of a text -> the share of padding in the batch of step 0.
      bad: path -> reason of what cannot be read.
      heard: key of a sound -> what was read of each.
    """

    text: str
    faults: tuple[str, ...]
    count: int = 0
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    bare: int = 0
    lengths: Mapping[str, Lengths] = dataclasses.field(default_factory=dict)
    padding: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bad: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heard: Mapping[str, Sequence[Heard]] = dataclasses.field(default_factory=dict)


def describe(dataset: Dataset) -> str:
    """Lines about a dataset, as `look` finds them."""
    return look(dataset).text


def look(dataset: Dataset) -> Looked:
    """Read a dataset as a pass over it would, all of its records or `MOST` evenly spaced ones, and the batch of step 0.

    The lines say the size, classes, shapes, dtypes and ranges, the lengths of texts and what of them is cut or unknown, the
    lengths of sounds, which files cannot be read, and which records are unlike the first.
    """
    indices = spread(dataset._reader.records, MOST)
    with ThreadPoolExecutor(THREADS) as pool:
        seen = list(pool.map(lambda index: _see(dataset, index), indices))
    bad = {path: reason for one in seen for path, reason in one.bad.items()}
    unlike = [f"record {index}: {one.trouble}" for index, one in zip(indices, seen, strict=True) if one.trouble]
    rows = dataset._stream(dataset.batch_size, None, once=False)[0]  # not counted: a look ends at no limit
    some = f"{len(indices)} {dataset.some} records of {dataset.size}"
    counts = _counts(dataset, seen)
    lengths = _lengths(dataset, seen)
    padding: dict[str, float] = {}
    lines = [
        f"records      {dataset.size}, fingerprint {dataset.fingerprint}",
        f"batch        {dataset.batch_size} rows, {dataset.size / dataset.batch_size:.1f} steps an epoch",
        f"looked at    {'all of them' if len(indices) == dataset.size else some}",
        *_classes(dataset, counts),
    ]
    faults = []
    if isinstance(rows, UserError):
        faults += [] if unlike else [str(rows)]
    else:
        lines += [f"{key:<12} {array_said(value)}" for key, value in rows.batch.items()]
        lines += _texts(dataset, rows.batch)
        padding = {key: float(1 - rows.batch[f"{key}_mask"].mean()) for key in dataset.texts()}
    for key, own in lengths.items():
        lines += _said_of(key, own)
    sounds = sounds_in(dataset._data.columns)
    heard = {key: [one.heard[key] for one in seen if key in one.heard] for key in sounds}
    for key, spec in sounds.items():
        lines += told(key, heard[key], spec) if heard[key] else []
    for key, video in videos_in(dataset._data.columns).items():
        watched = [one.watched[key] for one in seen if key in one.watched]
        lines += told_of_videos(key, watched, video) if watched else []
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
    classes = {name: counts[label] for label, name in enumerate(dataset.classes)}
    found = ("\n".join(lines), tuple(faults), len(indices), classes, counts[-1] if dataset.classes else 0)
    return Looked(*found, lengths, padding, bad, heard)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """One record: what is wrong with it, its class, of each text how many tokens it has, kept and unknown ones, and its
    sounds and videos."""

    bad: dict[str, str]
    trouble: str = ""
    label: int | None = None
    texts: dict[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    heard: dict[str, Heard] = dataclasses.field(default_factory=dict)
    watched: dict[str, Seen] = dataclasses.field(default_factory=dict)


def _see(dataset: Dataset, index: int) -> _Seen:
    try:
        record, bad, replaced = dataset._reader._record(index, index, Draws(0, PASS))
        if replaced:
            return _Seen(bad)
        batch, _ = dataset._columns([record])
    except UserError as error:
        return _Seen({}, str(error))
    label = int(batch["label"][0]) if "label" in batch and batch["label"].ndim == 1 else None
    texts = {}
    for key, (tokenizer, most) in dataset.texts().items():
        kept, unknown = int(batch[f"{key}_mask"].sum()), int(tokenizer.unknown(batch[key], batch[f"{key}_mask"])[0])
        full = kept == most and not isinstance(text_spec(dataset._data.columns, key), Span)  # a full window is not cut
        texts[key] = (_length(dataset, record, key) if full else kept, kept, unknown)
    gone = lacks(record)
    texts = {key: own for key, own in texts.items() if key not in gone}
    heard = {key: record[f"{key}_heard"] for key in sounds_in(dataset._data.columns) if key not in gone}
    watched = {key: record[f"{key}_seen"] for key in videos_in(dataset._data.columns) if key not in gone}
    return _Seen(bad, "", label, texts, heard, watched)


def _counts(dataset: Dataset, seen: Sequence[_Seen]) -> Counter[int]:
    """Label -> how many records of all, where the source knows, else of those that were looked at; -1 has no class."""
    known: Any = getattr(dataset._reader.records, "labels", ())
    labels = [int(label) for label in known] if len(known) == dataset.size else [s.label for s in seen if s.label is not None]
    return Counter(label if label >= 0 else -1 for label in labels)


def _classes(dataset: Dataset, counts: Counter[int]) -> list[str]:
    """Their names, with how many records each has."""
    if not dataset.classes:
        return []
    of = [f"{name} {counts[label]}" for label, name in enumerate(dataset.classes)]
    more = f", and {len(of) - NAMED} more" if len(of) > NAMED else ""
    lines = [f"classes      {len(of)}: {', '.join(of[:NAMED])}{more}"]
    absent = [name for label, name in enumerate(dataset.classes) if not counts[label]]
    if absent:
        more = f", and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        lines.append(f"             nothing of {', '.join(absent[:NAMED])}{more}")
    return [*lines, f"             no class {counts[-1]}"] if counts[-1] else lines


def array_said(value: np.ndarray) -> str:
    """Shape, dtype and range; for floats, mean and standard deviation too."""
    line = f"{list(value.shape)} {value.dtype}"
    if value.dtype == bool:
        return f"{line}, {value.mean():.1%} true"
    if np.issubdtype(value.dtype, np.floating):
        known = value[np.isfinite(value)]
        line += f", {value.size - known.size} not known" if known.size < value.size else ""
        value = known if known.size else np.zeros(1, value.dtype)
        return f"{line}, {value.min():.3g} to {value.max():.3g}, mean {value.mean():.3g}, std {value.std():.3g}"
    return f"{line}, {value.min()} to {value.max()}, {len(np.unique(value))} different"


def _texts(dataset: Dataset, batch: Batch) -> list[str]:
    lines = []
    for key, (tokenizer, _) in dataset.texts().items():
        lines.append(f"padding      {1 - batch[f'{key}_mask'].mean():.1%} of the tokens{_of(key)}")
        for ids, mask in list(zip(batch[key], batch[f"{key}_mask"], strict=True))[:SHOWN]:
            lines.append(f"             {tokenizer.decode(ids[mask])!r}")
    return lines


def _of(key: str) -> str:
    """ " of title", and nothing for the one text that most data has."""
    return "" if key == "text" else f" of {key}"


def _lengths(dataset: Dataset, seen: Sequence[_Seen]) -> dict[str, Lengths]:
    """Tokens of the texts before they are cut, and the shares that are cut and unknown."""
    found = {}
    for key, (_, most) in dataset.texts().items():
        told = [one.texts[key] for one in seen if key in one.texts]
        if not told:
            continue
        cut, kept = sum(length > kept for length, kept, _ in told), sum(kept for _, kept, _ in told)
        unknown = sum(unknown for _, _, unknown in told)
        found[key] = Lengths(tuple(length for length, _, _ in told), cut / len(told), unknown / max(1, kept), most)
    return found


def _said_of(key: str, own: Lengths) -> list[str]:
    least, longest, half = min(own.tokens), max(own.tokens), int(np.median(own.tokens))
    at_most = f"{LONGEST} or more" if longest >= LONGEST else f"{longest}"
    return [
        f"tokens       {least} to {at_most} a text, half of them {half} or fewer{_of(key)}",
        f"cut          {own.cut:.1%} of the texts, at max_length={own.most}",
        f"unknown      {own.unknown:.1%} of the tokens" + f" ({REMEDY})" * bool(own.unknown),
    ]


def _length(dataset: Dataset, record: Record, key: str) -> int:
    """Tokens of a text that may have been cut."""
    tokenizer = dataset.texts()[key][0]
    spec = text_spec(dataset._data.columns, key)
    if isinstance(spec, Tags):
        return int(tokenizer.encode_words([record[spec.words]], LONGEST)["mask"].sum())
    pair = record.get(f"{key}_pair")
    return int(tokenizer.encode([record[key]], LONGEST, None if pair is None else [pair])["mask"].sum())


def _named(lines: Sequence[str]) -> list[str]:
    more = [f"             and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return [*(f"             {line}" for line in lines[:NAMED]), *more]
