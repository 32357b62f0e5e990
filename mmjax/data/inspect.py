"""What a batch really holds, in words: behind `mmjax data inspect`."""

from __future__ import annotations

import numpy as np

from mmjax.data.pipeline import Batch, Dataset

SHOWN = 3  # texts, bad files
NAMED = 20  # classes


def describe(dataset: Dataset) -> str:
    """Lines about the dataset and the batch of step 0: shapes, dtypes, ranges, padding, first texts, what went wrong."""
    batch = dataset.batch(0)
    lines = [
        f"records      {dataset.size}, fingerprint {dataset.fingerprint}",
        f"batch        {dataset.batch_size} rows, {dataset.size / dataset.batch_size:.1f} steps an epoch",
    ]
    if dataset.classes:
        more = f", and {len(dataset.classes) - NAMED} more" if len(dataset.classes) > NAMED else ""
        lines.append(f"classes      {len(dataset.classes)}: {', '.join(dataset.classes[:NAMED])}{more}")
    lines += [f"{key:<12} {_array(value)}" for key, value in batch.items()]
    lines += _texts(dataset, batch)
    lines.append(f"truncated    {dataset.truncated} text(s) met so far")
    lines.append(f"unreadable   {len(dataset.bad)} record(s) met so far")
    lines += [f"             {path}: {reason}" for path, reason in list(dataset.bad.items())[:SHOWN]]
    return "\n".join(lines)


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
