"""Where a run stands in data that can only be read onward, in `streams.json` of its folder.

No batch depends on it: without a position all that comes before the step is read again.
"""

from __future__ import annotations

from typing import Any

from mmjax.train.run import Run
from mmjax.train.setup import Setup

STREAMS = "streams.json"
EARLIER = 32  # saves before the last, of each of which one position is kept: their checkpoint may be the one that can be read


def keep_positions(setup: Setup, run: Run) -> None:
    """Write down where the data is read now. Raises `UserError` where a position is no JSON."""
    found, kept = {}, _kept(run)
    for name, dataset in setup.datasets.items():
        if dataset.onward is not None and name in setup.experiment.task_data():
            now = dataset.onward.positions()
            before = _of(kept, name, dataset.fingerprint)
            earlier = [one for one in [*before["earlier"], *before["positions"][:1]] if now and one[0] < now[0][0]]
            found[name] = {"fingerprint": dataset.fingerprint, "earlier": earlier[-EARLIER:], "positions": now}
    if found:
        run.write_json(STREAMS, found)


def go_on(setup: Setup, run: Run) -> None:
    """Read on from what was written down, where the data is the same."""
    kept = _kept(run)
    for name, dataset in setup.datasets.items():
        if dataset.onward is not None:
            own = _of(kept, name, dataset.fingerprint)
            dataset.onward.go_on([*own["earlier"], *own["positions"]])


def _kept(run: Run) -> dict[str, Any]:
    found = run.read_json(STREAMS)
    return found if isinstance(found, dict) else {}


def _of(kept: dict[str, Any], name: str, fingerprint: str) -> dict[str, Any]:
    own = kept.get(name)
    if not isinstance(own, dict) or own.get("fingerprint") != fingerprint:
        own = {}
    return {key: [one for one in _listed(own.get(key)) if _is_position(one)] for key in ("earlier", "positions")}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_position(one: Any) -> bool:
    return isinstance(one, list) and len(one) == 3 and all(type(one[n]) is int and one[n] >= 0 for n in (0, 2))
