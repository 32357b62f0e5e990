"""Checkpoints on a disk of each host's own: written often, lost with the host, of use only to the same processes and mesh.

Every process saves what its devices hold of the state, with an orbax manager to itself, and all agree on the newest step that
each of them can read. Anything that does not fit is passed over: the run folder's checkpoints remain.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

from mmjax.core import quiet
from mmjax.core.config import from_json
from mmjax.parallel.multihost import gather, process, processes
from mmjax.train.checkpoint import FORMAT, as_dict, first_line
from mmjax.train.experiment import Experiment
from mmjax.train.run import differing
from mmjax.train.state import State

KEEP = 2  # the older one is good everywhere while the newer one may have been cut short somewhere


class LocalCheckpoints:
    """This process's checkpoints on its own disk.

    Args:
      folder: on that disk, for this run alone.
      abstract: shapes and shardings of the state.
      config: the experiment as JSON.
    """

    def __init__(self, folder: Path, abstract: State, config: Any, say: Callable[[str], None]):
        self._abstract, self._config, self._say = abstract, config, say
        self._end_quiet = quiet.orbax(self)
        self._layout = [_held(leaf) for leaf in jax.tree.leaves(abstract)]
        path = folder.absolute() / f"process_{process()}_of_{processes()}"
        path.mkdir(parents=True, exist_ok=True)
        alone = MultiprocessingOptions(None, {process()}, f"local_{process()}")
        registry = create_type_handler_registry(
            (jax.Array, ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False))
        )
        handlers: dict[str, Any] = {
            "state": ocp.PyTreeCheckpointHandler(use_zarr3=True, multiprocessing_options=alone, type_handler_registry=registry),
            "about": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        }
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=alone,
            # Orbax would tell of the folder it has made under a name that the processes share, as if there were one folder.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager(path, options=options, item_handlers=handlers)

    def save(self, step: int, state: State) -> None:
        """Start to save; returns once the arrays are copied."""
        about = {"format": FORMAT, "step": step, "config": self._config, "layout": self._layout}
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(as_dict(state)), about=ocp.args.JsonSave(about))
        self._manager.save(step, args=args, force=True)

    def restore(self, newer_than: int) -> tuple[State, int] | None:
        """(state, step) of the newest step beyond `newer_than` that every process can read; None where there is none.

        Later ones are deleted, whether or not one is found.
        """
        common = set.intersection(*(set(steps) for steps in gather("local checkpoints", list(self._manager.all_steps()))))
        for step in sorted((step for step in common if step > newer_than), reverse=True):
            state, reason = None, None
            try:
                state = self._read(step)
            except Exception as error:  # orbax raises whatever its file readers meet in a broken file
                reason = first_line(error)
            reasons = [r for r in gather(f"local checkpoint {step}", reason) if r]
            if not reasons:
                assert state is not None
                self._forget(step)
                return state, step
            self._say(f"local checkpoint {step} is passed over: {reasons[0]}")
        self._forget(newer_than)
        return None

    def close(self) -> None:
        """Wait, then let go of the folder."""
        self._manager.close()
        self._end_quiet()

    def _read(self, step: int) -> State:
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if about["format"] != FORMAT or about["layout"] != self._layout:
            raise ValueError("it was written on another mesh or by another version")
        then, now = from_json(about["config"]), from_json(self._config)
        assert isinstance(then, Experiment) and isinstance(now, Experiment)
        changed = differing(then, now)
        if changed:
            raise ValueError(f"it is of another experiment ({changed[0]})")
        target = as_dict(self._abstract)
        places = jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype), target)
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=target, restore_args=places))
        return State(**self._manager.restore(step, args=args)["state"])

    def _forget(self, after: int) -> None:
        for step in self._manager.all_steps():
            if step > after:
                self._manager.delete(step)


def _held(leaf: Any) -> list[str]:
    """The parts of an array that this process's devices hold: ["0:4,:", ...]."""
    parts = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    names = {",".join(f"{s.start or 0}:{'' if s.stop is None else s.stop}" for s in part) for part in parts}
    return sorted(names)
