"""Whether the records that a task compares with one another come in one batch."""

from __future__ import annotations

from mmjax.core.errors import UserError
from mmjax.train.setup import Setup


def check_together(setup: Setup) -> None:
    """Raises UserError for a task that compares the records of a query, on data that scatters these over batches.

    Such an objective has a property `together`: the batch key whose equal values it compares, "" for none.
    """
    for name, task in setup.tasks.items():
        key, dataset = getattr(task.objective, "together", ""), setup.datasets.get(task.data)
        kept = getattr(dataset, "together", "")
        if not key or dataset is None or kept == key:
            continue
        has = f"keeps those of one {kept!r} in one batch" if kept else "scatters over its batches"
        raise UserError(
            f"tasks.{name}: {type(task.objective).__name__} compares the records of one {key!r}, which data.{task.data} {has}: "
            f"put Grouped(source, by=..., key={key!r}) around its source, or say scattered=True to the task"
        )
