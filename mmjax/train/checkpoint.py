"""Checkpoints of a run: asynchronous, atomic, the latest few and the best; a broken one is passed over, and said so."""

from __future__ import annotations

import dataclasses
import errno
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from mmjax.core import quiet
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, match
from mmjax.parallel.multihost import gather
from mmjax.parallel.rules import shardings
from mmjax.train.experiment import Checkpoint
from mmjax.train.state import State

READ_TIMEOUT = 600.0  # seconds that one process may read longer than another
FORMAT = 1  # of what a checkpoint holds; raise it with every change, and say in `RENAMED` what became of old names
RENAMED: tuple[tuple[int, str, str], ...] = ()  # (last format with it, old name of a part of a path, new name)

logger = logging.getLogger("mmjax")


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      folder: `RUN/checkpoints`, made when missing.
      spec: what to keep.
      say: called with one line where the user should know (a broken checkpoint was passed over).
    """

    def __init__(self, folder: Path, spec: Checkpoint, say: Callable[[str], None] = logger.warning, read_only: bool = False):
        self._folder, self._spec, self._say, self._read_only = folder.absolute(), spec, say, read_only
        self._end_quiet = quiet.orbax(self)
        cut_short = sorted(p.name for p in folder.glob("*orbax-checkpoint-tmp*")) if folder.exists() else []
        for name in cut_short:
            self._say(f"checkpoint {name.split('.')[0]} was cut short while it was written; it is not used")
        policies: list[Any] = [LatestN(spec.keep)]
        if spec.best:
            policies.append(BestN(get_metric_fn=self._rank, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            enable_async_checkpointing=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=("state", "about"))

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, metrics: Mapping[str, float], config: Any) -> None:
        """Start to save; returns once the arrays are copied. A failure of the save before it is raised here.

        Raises:
          UserError: the disk is full; what was saved before is untouched.
        """
        about = {"format": FORMAT, "step": step, "metrics": dict(metrics), "config": config}
        args = ocp.args.Composite(state=ocp.args.StandardSave(as_dict(state)), about=ocp.args.JsonSave(about))
        with self._disk_errors():
            self._manager.save(step, args=args, metrics=dict(metrics) or None, force=True)

    def wait(self) -> None:
        """Until what was started is on disk."""
        with self._disk_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Wait, then let go of the folder."""
        with self._disk_errors():
            self._manager.close()
        self._end_quiet()

    def restore(self, abstract: State, step: int | None = None) -> tuple[State, int, dict[str, float]] | None:
        """The latest good checkpoint (or the one of `step`), in the shapes and shardings of `abstract`.

        Returns:
          (state, step, metrics), or None where there is no checkpoint.

        Raises:
          UserError: there are checkpoints and none can be read.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        for candidate in candidates:
            reason = None
            try:
                state, about = self._read(candidate, abstract)
            except UserError:
                raise
            except Exception as error:  # orbax raises whatever its file readers meet in a broken file
                reason = first_line(error)
            reasons = [r for r in gather(f"reading checkpoint {candidate}", reason, READ_TIMEOUT) if r]
            if reasons:
                self._say(f"checkpoint {candidate} cannot be read ({reasons[0]}); trying the one before it")
                continue
            if candidate != candidates[0]:
                self._say(f"using checkpoint {candidate}")
                self._forget(s for s in candidates if s > candidate)
            return state, candidate, about["metrics"]
        if candidates:
            raise UserError(f"no checkpoint in {self._folder} can be read (tried {', '.join(map(str, candidates))})")
        return None

    def best_step(self) -> int | None:
        """The step of the best checkpoint by `spec.best`; the latest where no metric is set or none was measured."""
        steps = self.steps()
        if not steps:
            return None
        measured = (
            [(self._rank(metrics), step) for step in steps if (metrics := self._metrics(step))] if self._spec.best else []
        )
        return max(measured)[1] if measured else steps[-1]

    def params(self, step: int, mesh: jax.sharding.Mesh | None = None) -> tuple[Any, dict[str, Any]]:
        """(parameters to evaluate, about) of one checkpoint, whatever optimizer it was trained with: as host arrays, or with a
        mesh in their places on it, where each process reads its own parts alone."""
        about = self._about(step)
        reader, path = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()), self._folder / str(step) / "state"
        item = reader.metadata(path).item_metadata.tree
        wanted = "ema" if item.get("ema") else "params"
        target = {wanted: jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), item[wanted])}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # orbax: no sharding given, which is what we mean here
            args = ocp.args.PyTreeRestore(item=target, restore_args=_restored_as(target, mesh), partial_restore=True)
            restored = reader.restore(path, args=args)[wanted]
        return rename(restored, about["format"]), about

    def _read(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        about = self._about(step)
        target = rename(as_dict(abstract), about["format"], back=True)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        return State(**rename(restored, about["format"])), about

    def _about(self, step: int) -> dict[str, Any]:
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if about["format"] > FORMAT:
            raise UserError(
                f"checkpoint {step} has format {about['format']}, newer than this mmjax reads ({FORMAT}): upgrade mmjax"
            )
        return about

    def _metrics(self, step: int) -> dict[str, float]:
        try:
            return self._about(step)["metrics"]
        except (OSError, ValueError, KeyError):
            return {}

    def _rank(self, metrics: Mapping[str, float]) -> float:
        """Larger is better."""
        value = metrics.get(self._spec.best, float("-inf") if self._spec.mode == "max" else float("inf"))
        return value if self._spec.mode == "max" else -value

    def _forget(self, steps: Any) -> None:
        if not self._read_only:
            for step in steps:
                self._manager.delete(step)

    def _disk_errors(self) -> Any:
        return _DiskErrors(self._folder, self.steps)


@dataclasses.dataclass
class _DiskErrors:
    """Turns a full disk into one clear line."""

    folder: Path
    steps: Callable[[], list[int]]

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        text = f"{error!r}"
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text or "RESOURCE_EXHAUSTED" in text
        if full:
            kept = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"the disk is full: {self.folder} could not take a checkpoint; still good: {kept}") from error


def rename(tree: Any, found: int, back: bool = False) -> Any:
    """A tree saved in the format `found` under today's names; with `back`, today's tree under the names it had then."""
    steps = [(old, new) for last, old, new in RENAMED if found <= last]
    for old, new in [(new, old) for old, new in reversed(steps)] if back else steps:
        tree = _rename(tree, old, new)
    return tree


def _rename(tree: Any, old: str, new: str) -> Any:
    if isinstance(tree, Mapping):
        return {(new if name == old else name): _rename(child, old, new) for name, child in tree.items()}
    if isinstance(tree, tuple):  # optax's states are named tuples
        children = [_rename(child, old, new) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)
    return tree


def as_dict(state: State) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def _restored_as(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    if mesh is None:
        return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return jax.tree.map(lambda place: ocp.ArrayRestoreArgs(sharding=place), shardings(tree, mesh))


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def load_matching(target: Any, source: Any, fresh: tuple[str, ...]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Which of `source`'s arrays a model can start from.

    Args:
      target: the model's parameters or their shapes.
      source: another run's parameters.
      fresh: patterns of parameters to leave as initialised.

    Returns:
      (loaded by path, paths that stay new, paths of `source` left over).

    Raises:
      UserError: an array of another shape that `fresh` does not cover; or nothing in common.
    """
    want, have = leaves_by_path(target), leaves_by_path(source)
    loaded = {}
    for path, leaf in want.items():
        if path not in have or any(match(pattern, path) for pattern in fresh):
            continue
        if have[path].shape != leaf.shape:
            raise UserError(
                f"init_from: {path} has shape {tuple(have[path].shape)} there and {tuple(leaf.shape)} here; change the model, "
                f"or initialise it anew with --init_fresh '{path}'"
            )
        loaded[path] = have[path]
    if not loaded:
        raise UserError(f"init_from: no parameter in common; there {sorted(have)[0]!r} ..., here {sorted(want)[0]!r} ...")
    return loaded, [p for p in want if p not in loaded], [p for p in have if p not in loaded]
