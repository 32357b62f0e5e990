"""Checkpoints on a disk of each host's own: written often, lost with the host, of use only to the same processes and mesh.

Every process saves what its devices hold of the state, with an orbax manager to itself, and all agree on the newest step that
each of them can read. Anything that does not fit is passed over and set aside: the run folder's checkpoints remain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

from mmjax.core import quiet
from mmjax.core.config import from_json
from mmjax.core.errors import UnreachableError, UserError
from mmjax.parallel.multihost import gather, process, processes
from mmjax.train import frozen
from mmjax.train.array_folder import METADATA
from mmjax.train.checkpoint import ASIDE, READ_TIMEOUT, Manager, as_dict
from mmjax.train.experiment import Experiment
from mmjax.train.formats import FORMAT
from mmjax.train.reading import UnfitError, again, first_line, is_storage, names_in, numbered, together
from mmjax.train.run import differing
from mmjax.train.state import State, teachers_of, with_teachers
from mmjax.train.trained import ALL, Trained

KEEP = 2  # the older one is good everywhere while the newer one may have been cut short somewhere


class LocalCheckpoints:
    """This process's checkpoints on its own disk.

    Args:
      folder: on that disk, for this run alone.
      abstract: shapes and shardings of the state.
      config: the experiment as JSON.
      trained: which parameters are; what is frozen is written once.
    """

    def __init__(self, folder: Path, abstract: State, config: Any, say: Callable[[str], None], trained: Trained = ALL):
        self._abstract, self._config, self._say, self._trained = abstract, config, say, trained
        self._end_quiet = quiet.orbax(self)
        self._layout = [_held(leaf) for leaf in jax.tree.leaves(abstract)]
        self._folder = folder.absolute() / f"process_{process()}_of_{processes()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"checkpoint.local: {folder} cannot be made ({error.strerror}); name a folder of this machine"
            ) from None
        self._aside_until: int | None = None
        self._manager = self._open()

    def save(self, step: int, state: State) -> None:
        """Start to save; returns once the arrays are copied. What was set aside goes once a newer one is known to be good."""
        self._clear_aside(step)
        try:
            self._save(step, state)
        except Exception as error:
            if not is_storage(error):
                raise
            self._say(f"a local checkpoint could not be written ({first_line(error)}); the run goes on without")
            with contextlib.suppress(Exception):  # it fails as the save did
                self._manager.close()
            self._manager = self._open()

    def _save(self, step: int, state: State) -> None:
        about = {"format": FORMAT, "step": step, "config": self._config, "layout": self._layout}
        if rest := self._trained.rest(state.params):
            about["frozen"] = self._keep(rest)
        about["teachers"] = {name: self._keep(tree) for name, tree in teachers_of(state).items()}
        own = dataclasses.replace(state, params=self._trained.of(state.params))
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(as_dict(own)), about=ocp.args.JsonSave(about))
        self._manager.save(step, args=args, force=True)

    def restore(self, newer_than: int) -> tuple[State, int] | None:
        """(state, step) of the newest step beyond `newer_than` that every process can read; None where there is none.

        Later ones, which are broken, of another run or mesh, or not on all processes, are set aside.

        Raises:
          UnreachableError: one that may be good cannot be read just now.
        """
        names = names_in(self._folder)
        mine = sorted(self._manager.all_steps())
        if {int(name) for name in names if name.isdigit()} - set(mine):
            raise UnreachableError(f"{self._folder}: its checkpoints cannot be listed just now; nothing was changed")
        common = set.intersection(*(set(steps) for steps in gather("local checkpoints", mine)))
        for step in sorted((step for step in common if step > newer_than), reverse=True):
            what = f"local checkpoint {step} in {self._folder}"
            state, _, reason = together(what, functools.partial(self._read, step), READ_TIMEOUT)
            if state is not None:
                self._set_aside(step)
                return state, step
            self._say(f"local checkpoint {step} is passed over: {reason}")
        self._set_aside(newer_than)
        return None

    def close(self) -> None:
        """Wait, then let go of the folder."""
        try:
            self._manager.close()
        except Exception as error:
            if not is_storage(error):
                raise
            self._say(f"a local checkpoint could not be written ({first_line(error)})")
        finally:
            self._end_quiet()

    def _open(self) -> Manager:
        alone = _alone()
        handlers: dict[str, Any] = {"state": _arrays(), "about": ocp.JsonCheckpointHandler(multiprocessing_options=alone)}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=alone,
            # Orbax would tell of the folder it has made under a name that the processes share, as if there were one folder.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        return Manager(self._folder, options=options, item_handlers=handlers)

    def _read(self, step: int) -> State:
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if about["format"] != FORMAT or about["layout"] != self._layout:
            raise UnfitError("it was written on another mesh or by another version")
        then, now = from_json(about["config"]), from_json(self._config)
        assert isinstance(then, Experiment) and isinstance(now, Experiment)
        changed = differing(then, now)
        if changed:
            raise UnfitError(f"it is of another experiment ({changed[0]})")
        abstract, trained = self._abstract, self._trained
        target = as_dict(dataclasses.replace(abstract, params=trained.of(abstract.params)))
        args = ocp.args.Composite(state=_wanted(target))
        state = State(**self._manager.restore(step, args=args)["state"])
        if rest := trained.rest(abstract.params):
            found = self._kept(about["frozen"], rest)
            params = jax.tree.map(
                lambda x, a: jax.device_put(x, a.sharding), trained.join(state.params, found), abstract.params
            )
            state = dataclasses.replace(state, params=params)
        kept = {name: self._kept(about["teachers"][name], tree) for name, tree in teachers_of(abstract).items()}
        return with_teachers(state, kept)

    def _keep(self, tree: Any) -> str:
        """See to it that a tree that no step changes is on this disk; returns the name it has there."""
        name = frozen.fingerprint(tree)
        if METADATA not in names_in(self._folder / frozen.FOLDER / name):
            with self._frozen() as writer:
                writer.save(self._folder / frozen.FOLDER / name, args=ocp.args.PyTreeSave(tree), force=True)
        return name

    def _kept(self, name: str, shapes: Any) -> Any:
        with self._frozen() as reader:
            found = reader.restore(self._folder / frozen.FOLDER / name, args=_wanted(shapes))
        if frozen.fingerprint(found) != name:
            raise EOFError("the frozen parameters beside it are damaged")
        return found

    def _frozen(self) -> ocp.Checkpointer:
        """What writes and reads the frozen parameters: this process's parts of them, as of the rest."""
        return ocp.Checkpointer(_arrays(), multiprocessing_options=_alone())

    def _set_aside(self, after: int) -> None:
        """Out of the way of the steps that will be saved again."""
        steps = [step for step in self._manager.all_steps() if step > after]
        for step in steps:
            place = self._folder / ASIDE
            place.mkdir(exist_ok=True)
            source, target = self._folder / str(step), numbered(place / str(step))
            again(str(source), functools.partial(source.rename, target))
        if steps:
            self._manager.reload()

    def _clear_aside(self, step: int) -> None:
        """Two saves on, the first of them is whole: a save waits for the one before it."""
        place = self._folder / ASIDE
        if self._aside_until is None:
            self._aside_until = step
        elif step > self._aside_until and place.is_dir():
            try:
                self._manager.wait_until_finished()
            except Exception:  # the save that will be tried next tells of it
                return
            shutil.rmtree(place, ignore_errors=True)


def _alone() -> MultiprocessingOptions:
    """Each process saves for itself."""
    return MultiprocessingOptions(None, {process()}, f"local_{process()}")


def _arrays() -> ocp.PyTreeCheckpointHandler:
    """Of what this process's devices hold."""
    handler = ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False)
    registry = create_type_handler_registry((jax.Array, handler))
    return ocp.PyTreeCheckpointHandler(use_zarr3=True, multiprocessing_options=_alone(), type_handler_registry=registry)


def _wanted(target: Any) -> ocp.args.PyTreeRestore:
    """A tree of this shape, in the places that it names."""
    places = jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype), target)
    return ocp.args.PyTreeRestore(item=target, restore_args=places)


def _held(leaf: Any) -> list[str]:
    """The parts of an array that this process's devices hold: ["0:4,:", ...]."""
    parts = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    names = {",".join(f"{s.start or 0}:{'' if s.stop is None else s.stop}" for s in part) for part in parts}
    return sorted(names)
