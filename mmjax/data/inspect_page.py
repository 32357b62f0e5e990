"""What data really holds, as a page to look at: behind `mmjax data inspect --out`."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.spatial import image_of, over
from mmjax.data import html
from mmjax.data.batches import Batch
from mmjax.data.dataset import Dataset
from mmjax.data.duplicates import BITS, NEAR, SIDE, Duplicates, Pair, Seen, duplicates, sample
from mmjax.data.inspect import LONGEST, Lengths, Looked, array_said
from mmjax.data.inspect_sounds import card, sounds_in
from mmjax.data.inspect_videos import sheet, videos_in
from mmjax.data.kinds import Lost
from mmjax.data.order import PASS, Draws
from mmjax.data.reader import spread
from mmjax.data.sound import Heard
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.transforms.colour import Normalise

SHOWN = 24  # rows of a batch, groups and pairs
NAMED = 50  # bad files, classes
TIMED = 32  # records that are read to tell reading from the rest


@dataclasses.dataclass(frozen=True)
class Page:
    """A page, and what is said of it in a line."""

    text: str
    line: str


def page(
    title: str, found: Sequence[tuple[str, Dataset, Looked]], records: int, seconds: float, faults: Sequence[str] = ()
) -> Page:
    """A page of several sets of data.

    Args:
      found: name, dataset and what `look` found in it.
      records: how many of each are compared with each other.
      seconds: how long each is measured; 0 for not at all.
      faults: what would end a run.
    """
    seen = {name: sample(name, dataset._reader.records, records) for name, dataset, _ in found}
    same = duplicates([one for own in seen.values() for one in own])
    looked_at = [f"{name} {len(seen[name])} of {dataset.size}" for name, dataset, _ in found]
    parts = [f'<p class="w">{html.said(fault)}</p>' for fault in faults]
    parts += [_section(name, dataset, looked, seconds) for name, dataset, looked in found]
    groups, pairs = same.across()
    line = (
        f"{len(same.exact)} groups of equal records and {len(same.near)} pairs of near images, {groups} and {pairs} of them "
        f"across sets of data; looked at {', '.join(looked_at)}"
    )
    return Page(html.page(title, [*parts, *_same(same, line)]), line)


def _section(name: str, dataset: Dataset, looked: Looked, seconds: float) -> str:
    some = "all" if looked.count == dataset.size else f"{looked.count} {dataset.some} ones"
    size = f"{dataset.size} records, {some} of which were looked at; batches of {dataset.batch_size} rows."
    parts = [
        f"<h2>{html.said(name)}</h2>",
        f"<p>{size} {_speed(dataset, seconds)}</p>",
        *(f'<p class="w">{html.said(fault)}</p>' for fault in looked.faults),
    ]
    if looked.classes:
        shown = dict(list(looked.classes.items())[:NAMED])
        more = f" (the first {NAMED} shown)" if len(looked.classes) > NAMED else ""
        absent = sum(not count for count in looked.classes.values())
        parts += [f"<h3>{len(looked.classes)} classes{more}</h3>", html.bars(shown)]
        parts.append(f"<p>{looked.bare} records have no class; {absent} classes have no record.</p>")
    parts += [_of_text(key, own, looked.padding.get(key)) for key, own in looked.lengths.items()]
    parts += [_of_sound(key, own) for key, own in looked.heard.items() if own]
    parts.append(f"<h3>{len(looked.bad)} unreadable</h3>")
    bad = [f"<li>{html.said(path)}: {html.said(reason)}</li>" for path, reason in list(looked.bad.items())[:NAMED]]
    parts.append(f"<ul>{''.join(bad)}</ul>" + (f"<p>and {len(looked.bad) - NAMED} more</p>" if len(looked.bad) > NAMED else ""))
    rows_are = "texts of step 0; packing puts several into a row" if dataset.packed else "rows of step 0, as a model gets them"
    parts.append(f'<h3>The first {rows_are}</h3><div class="g">{"".join(_cards(dataset))}</div>')
    return "\n".join(parts)


def _of_text(key: str, own: Lengths, padding: float | None) -> str:
    """How long the texts of one key are, and what of them is lost."""
    longest = f"{LONGEST} or more" if max(own.tokens) >= LONGEST else str(max(own.tokens))
    padded = "" if padding is None else f", {padding:.1%} of the batch is padding"
    return (
        f"<h3>Tokens of {html.said(key)}</h3>{html.histogram(own.tokens)}<p>{min(own.tokens)} to {longest} a text; "
        f"{own.cut:.1%} of the texts are cut at {own.most}, {own.unknown:.1%} of the tokens are unknown{padded}.</p>"
    )


def _of_sound(key: str, own: Sequence[Heard]) -> str:
    """How long the sounds of one key are, and what is the matter with them."""
    seconds = [one.seconds for one in own]
    shares = [f"{np.mean(found):.1%}" for found in ([x.cut for x in own], [x.silent for x in own], [x.clipped for x in own])]
    return (
        f"<h3>Seconds of {html.said(key)}</h3>{html.histogram([int(one) for one in seconds])}<p>{min(seconds):.2f} to "
        f"{max(seconds):.2f} a sound; {shares[0]} are cut, {shares[1]} silent, {shares[2]} clipped.</p>"
    )


def rows(dataset: Dataset, count: int) -> Iterator[tuple[int, Batch, Lost] | UserError]:
    """The first rows of the batch of step 0, one by one: number of the record, -1 for one that stands in for an
    unreadable one, its arrays [1, ...] and what its texts, sounds and videos lost."""
    reader, draws = dataset._reader, dataset._reader.order.draws()
    try:
        first = dataset._stream(dataset.batch_size, range(min(count, dataset.batch_size)), once=False).drawn(0)
    except UserError as error:
        yield error
        return
    for index, place in zip(*first, strict=True):
        try:
            record, _, replaced = reader._record(index, place, draws)
            yield -1 if replaced else index, *dataset._columns([record], [index])
        except UserError as error:
            yield error


def _cards(dataset: Dataset) -> Iterator[str]:
    for row in rows(dataset, SHOWN):
        if isinstance(row, UserError):
            yield f'<div class="c w">{html.said(row)}</div>'
            continue
        index, batch, lost = row
        one = {key: value[0] for key, value in batch.items()}
        which = f"record {index}" if index >= 0 else "one that stands in for an unreadable record"
        sounds = sounds_in(dataset._data.columns)
        shown = [f'<span class="n">{which}</span>', *(_image(dataset, key, one) for key in _images(one))]
        shown += [card(key, one[key], one[f"{key}_mask"], spec.rate) for key, spec in sounds.items()]
        videos = videos_in(dataset._data.columns)
        shown += [_image(dataset, key, {key: sheet(one[key], one[f"{key}_mask"])}) for key in videos]
        left = set(one) - {f"{key}{end}" for key in (*sounds, *videos) for end in ("", "_mask")}
        left -= {f"{key}{end}" for key in dataset.texts() for end in ("", "_mask", "_segments")} | set(_images(one))
        for key, (tokenizer, _) in dataset.texts().items():
            shown.append(_text(key, tokenizer, one[key][one[f"{key}_mask"]]))
        cut = [f"{lost.truncated} cut"] * bool(lost.truncated) + [f"{lost.unknown} unknown tokens"] * bool(lost.unknown)
        cut += [f"a sound cut by {lost.cut_seconds:.2f} s"] * bool(lost.cut_sounds)
        cut += ["a short video"] * bool(lost.short_videos)
        cut += ["a silent sound"] * bool(lost.silent) + ["a clipped sound"] * bool(lost.clipped)
        shown += [f'<div class="w">{", ".join(cut)}</div>'] * bool(cut)
        shown += [
            f"<div>{html.said(key)}: {html.said(_value(one[key], dataset.names.get(key, ())))}</div>" for key in sorted(left)
        ]
        yield f'<div class="c">{"".join(shown)}</div>'


def _images(one: Mapping[str, np.ndarray]) -> list[str]:
    """The keys that are pictures: [H, W, 1 to 4] and over nothing else."""
    three = (key for key, value in one.items() if value.ndim == 3 and 1 <= value.shape[2] <= 4 and value.dtype.kind == "f")
    return [key for key in three if image_of(key, (other for other in one if other != key)) is None]


def visible(image_HWC: np.ndarray, normalised: Normalise | None) -> np.ndarray:
    """uint8 [H, W, 3] of an image as a model gets it: with mean and deviation undone; without them, its own range."""
    found = image_HWC.astype(np.float32)
    if normalised is not None and found.shape[2] == 3:
        found = found * np.array(normalised.std, np.float32) + np.array(normalised.mean, np.float32)
    else:
        low, high = float(found.min()), float(found.max())
        found = (found - low) / (high - low or 1.0)
    found = found[..., :3] if found.shape[2] >= 3 else np.repeat(found[..., :1], 3, axis=2)
    return np.rint(np.clip(np.nan_to_num(found), 0, 1) * 255).astype(np.uint8)


def _image(dataset: Dataset, key: str, one: Mapping[str, np.ndarray]) -> str:
    spec = next((t for t in reversed(dataset._data.transforms) if isinstance(t, Normalise) and t.field == key), None)
    image_HW3 = visible(one[key], spec)
    marks: list[str] = []
    for name, kind in over(key, one).items():
        value = one[name]
        if kind in ("map", "mask") and value.shape == image_HW3.shape[:2]:
            labels = np.where(value, -1, 0) if kind == "mask" else np.nan_to_num(value, nan=-1).astype(np.int64)
            marks.append(html.tinted(labels))
        elif kind == "boxes" and value.ndim == 2:
            marks += [html.box(n, row) for n, row in enumerate(value) if row[2] > row[0]]
        elif kind == "points" and value.ndim == 2:
            radius = max(image_HW3.shape[:2]) / 60
            marks += [html.dot(n, float(row[0]), float(row[1]), radius) for n, row in enumerate(value) if row[0] >= 0]
    note = "" if spec else " (scaled from its own range)"
    return f"<div>{html.said(key)}{note}</div>{html.picture(image_HW3, marks)}"


def _text(key: str, tokenizer: Tokenizer, ids_T: np.ndarray) -> str:
    """A text as it is decoded, and its tokens, of which the unknown ones are marked."""
    ids = ids_T.tolist()
    unknown = [bool(tokenizer.unknown(np.array([[one]]), np.ones((1, 1), bool))[0]) for one in ids]
    kinds = ["u" if new else "s" if one in tokenizer.special_ids else "" for one, new in zip(ids, unknown, strict=True)]
    names = tokenizer.huggingface.convert_ids_to_tokens(ids)
    marked = (f'<span class="k {kind}">{html.said(name)}</span>' for name, kind in zip(names, kinds, strict=True))
    tokens = f"<details><summary>{len(names)} tokens</summary>{''.join(marked)}</details>"
    return f"<div>{html.said(key)}: {html.said(tokenizer.decode(ids))}</div>{tokens}"


def _value(value: np.ndarray, names: Sequence[str]) -> str:
    """A class, classes and tags by their names, a few numbers as they are, of an array its shape and range."""
    if names and value.ndim == 0:
        return names[int(value)] if value >= 0 else "no class"
    if names and value.dtype.kind == "f":
        unknown = [name for name, one in zip(names, value, strict=True) if one < 0]
        there = [name for name, one in zip(names, value, strict=True) if one > 0]
        return ", ".join(there) + (f" (not known: {', '.join(unknown)})" if unknown else "") or "none of its classes"
    if names and value.ndim == 1:
        return " ".join(names[int(one)] for one in value if one >= 0)
    if names:
        return ", ".join(names[int(one)] for one in np.unique(value) if one >= 0)
    return str(value) if value.size <= 8 else array_said(value)


def _same(same: Duplicates, line: str) -> list[str]:
    """Equal and near records, those of several sets of data first."""
    return [
        "<h2>Duplicates</h2>",
        f"<p>{html.said(line)}. Of two records that were not both looked at nothing is known. Equal: the same pixels, or the "
        f"same texts and files of sounds where there is no image. Near: perceptual hashes within {BITS} of 64 bits, and at "
        f"{SIDE} x {SIDE} pixels a mean difference of {NEAR:g} of 255 at most; {same.compared} pairs of near hashes were "
        f"compared so{', and there were more' if same.stopped else ''}. Plain pictures may be near and have nothing to do with "
        "each other; what is cropped, turned or mirrored is not found.</p>",
        f"<h3>Equal{_most(same.exact)}</h3>",
        *(_group(group) for group in same.exact[:SHOWN]),
        f"<h3>Near{_most(same.near)}</h3>",
        *(_pair(pair) for pair in same.near[:SHOWN]),
    ]


def _most(found: Sequence[Any]) -> str:
    return f" (the first {SHOWN} of {len(found)})" if len(found) > SHOWN else "" if found else ": none"


def _group(group: Sequence[Seen]) -> str:
    sets = {one.data for one in group}
    notes = ["across " + " and ".join(sorted(sets))] * (len(sets) > 1)
    notes += ["of different classes"] * (len({one.name for one in group}) > 1)
    more = f'<div class="c">and {len(group) - 6} more</div>' if len(group) > 6 else ""
    marked = f'<p class="w">{html.said(", ".join(notes))}</p>' if notes else ""
    return f'{marked}<div class="g">{"".join(map(_one, group[:6]))}{more}</div>'


def _pair(pair: Pair) -> str:
    notes = [f"difference {pair.difference:.1f}"] + [f"across {pair.one.data} and {pair.other.data}"] * pair.across
    notes += ["of different classes"] * (pair.one.name != pair.other.name)
    mark = ' class="w"' if pair.across else ""
    return f'<p{mark}>{html.said(", ".join(notes))}</p><div class="g">{_one(pair.one)}{_one(pair.other)}</div>'


def _one(one: Seen) -> str:
    image = "" if one.small is None else html.picture(one.small, side=96)
    texts = "".join(f"<div>{html.said(text[:200])}</div>" for text in one.texts[:3])
    name = f"<div>{html.said(one.name)}</div>" if one.name else ""
    return f'<div class="c">{image}<span class="n">{html.said(one.data)} {one.index}</span>{name}{texts}</div>'


def _speed(dataset: Dataset, seconds: float) -> str:
    if not seconds:
        return ""
    try:
        rate, share = speed(dataset, seconds)
    except UserError as error:
        return f"Not measured: {html.said(error)}."
    data = dataset._data
    how = f"workers={data.workers}, threads={data.threads}, cache_mb={data.cache_mb}"
    return f"The pipeline makes {rate:,.0f} examples/s here ({how}); reading and decoding take {share:.0%} of a record's time."


def speed(dataset: Dataset, seconds: float) -> tuple[float, float]:
    """Examples a second of the training stream as it is configured, and of one record, read anew, the share of time until the
    source has given it. Nothing is counted. Raises `UserError` as batches do."""
    own = copy.copy(dataset)
    own.bad, own.lost = {}, Lost()
    with own.batches() as batches:
        next(batches)
        made, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            made += len(next(batches)["index"])
        rate = made / (time.perf_counter() - began)
    reader = copy.copy(dataset._reader)
    reader._kept, reader._cache_bytes = {}, 0
    reading = whole = 0.0
    for index in spread(dataset._reader.records, TIMED):
        began = time.perf_counter()
        bad = reader.unreadable_at(index)
        middle = time.perf_counter()
        if not bad:
            dataset._columns([reader._record(index, index, Draws(0, PASS))[0]])
            whole, reading = whole + time.perf_counter() - middle, reading + middle - began
    return rate, min(1.0, reading / whole) if whole else 0.0
