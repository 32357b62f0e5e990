"""Checkpoints of a run: asynchronous, atomic, the latest few and the best. One that is broken is set aside and said so; one
that cannot be reached ends the start, and nothing is changed.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmjax.core import quiet
from mmjax.core.errors import UnreachableError, UserError
from mmjax.core.strict_json import plain
from mmjax.core.types import Params
from mmjax.parallel.multihost import barrier, is_main, processes
from mmjax.parallel.rules import shardings
from mmjax.train import frozen, reading
from mmjax.train.array_folder import require_metadata, restored, shapes_in
from mmjax.train.experiment import Checkpoint
from mmjax.train.formats import FORMAT, FROZEN_APART, rename, watch_of, widened
from mmjax.train.reading import again, first_line, is_broken, is_storage, names_in, numbered, together
from mmjax.train.schedule_free import AHEAD
from mmjax.train.state import State, changing, teachers_of, with_teachers, with_variables
from mmjax.train.trained import ALL, Trained

READ_TIMEOUT = 600.0  # seconds that one process may read longer than another
ASIDE = "set_aside"  # the folder of those that could not be read, beside the good ones

logger = logging.getLogger("mmjax")


class Manager(ocp.CheckpointManager):
    """Orbax's, without its question to JAX's preemption service.

    It asks of the step that it saves, in the background too, when later steps have begun; the service takes the step that it
    was last asked about for the present one, and would let processes stop at different steps, each waiting for the other.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      folder: `RUN/checkpoints`, made when missing.
      spec: what to keep.
      say: called with one line where the user should know (a broken checkpoint was passed over).
      trained: which parameters are, of the states that are saved and restored; None for all of them. What is frozen is written
        once, in the folder `frozen`, and read from there.

    Raises:
      UnreachableError: here and from each method that reads: storage does not answer.
    """

    def __init__(
        self,
        folder: Path,
        spec: Checkpoint,
        say: Callable[[str], None] = logger.warning,
        read_only: bool = False,
        trained: Trained | None = None,
    ):
        quiet.devices()  # which orbax starts
        self._folder, self._spec, self._say, self._read_only = folder.absolute(), spec, say, read_only
        self._trained = trained or ALL
        self._end_quiet = quiet.orbax(self)
        names = names_in(self._folder)
        for name in (name for name in names if "orbax-checkpoint-tmp" in name):
            self._say(f"checkpoint {name.split('.')[0]} was cut short while it was written; it is not used")
        self._values: dict[int, float | None] = {}  # step -> rank, None for one that was not measured
        self._manager = self._open()
        unseen = {int(name) for name in names if name.isdigit()} - set(self.steps())
        if unseen and "://" not in str(folder):  # in a bucket, what was not finished has the same name
            raise UnreachableError(f"{self._folder}: its checkpoints cannot be listed just now; nothing was changed")
        if not read_only:
            known = {step: self._value(step) if spec.best else None for step in self.steps()}
            self._values |= {step: value for step, value in known.items() if value is not UNKNOWN}

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, metrics: Mapping[str, float], config: Any, wait: bool = False) -> None:
        """Start to save; returns once the arrays are copied. A failure of the save before it is told here, and this one tried.

        Args:
          wait: return once it is on disk.

        Raises:
          UserError: the disk is full; what was saved before is untouched.
          UnreachableError: storage took it at no attempt.
        """
        about = {"format": FORMAT, "step": step, "metrics": plain(metrics), "config": config}
        own, rest = dataclasses.replace(state, params=self._trained.of(state.params)), self._trained.rest(state.params)
        self._values[step] = self._rank(metrics)
        for pause in (*reading.WAITS, None):
            try:
                if rest:  # before what needs it
                    name = frozen.write(self._folder / frozen.FOLDER, rest)
                    about["frozen"] = {"name": name, "layers": self._trained.to_json()}
                for teacher, tree in teachers_of(state).items():
                    about.setdefault("teachers", {})[teacher] = frozen.write(self._folder / frozen.FOLDER, tree)
                args = ocp.args.Composite(state=ocp.args.StandardSave(as_dict(own)), about=ocp.args.JsonSave(about))
                self._manager.save(step, args=args, force=True)
                if wait:
                    self.wait()
                return
            except Exception as error:
                self._raise_in_writing(error, last=pause is None)
                self._say(f"a checkpoint could not be written ({first_line(error)}); trying again to save step {step}")
            assert pause is not None
            time.sleep(pause)
            self._reopen()

    def wait(self) -> None:
        """Until what was started is on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            self._raise_in_writing(error, last=True)

    def close(self) -> None:
        """Wait, then let go of the folder."""
        try:
            self._manager.close()
        except Exception as error:
            self._raise_in_writing(error, last=True)
        finally:
            self._end_quiet()

    def restore(self, abstract: State, step: int | None = None) -> tuple[State, int, dict[str, float]] | None:
        """The latest good checkpoint (or the one of `step`), in the shapes and shardings of `abstract`.

        Newer ones that are broken are set aside, in the folder `set_aside`.

        Returns:
          (state, step, metrics), or None where there is no checkpoint.

        Raises:
          UserError: there are checkpoints and none can be read.
        """
        candidates = [step] if step is not None else self.steps()[::-1]
        for candidate in candidates:
            what = f"checkpoint {candidate} of {self._folder.parent}"
            found, _, reason = together(what, functools.partial(self._read, candidate, abstract), READ_TIMEOUT)
            if found is None:
                self._say(f"checkpoint {candidate} cannot be read ({reason}); trying the one before it")
                continue
            if candidate != candidates[0]:
                self._say(f"using checkpoint {candidate}")
                self._set_aside([s for s in candidates if s > candidate])
            return found[0], candidate, found[1]["metrics"]
        if candidates:
            raise UserError(f"no checkpoint in {self._folder} can be read (tried {', '.join(map(str, candidates))})")
        return None

    def best_step(self) -> int | None:
        """The step of the best checkpoint by `spec.best`; the latest where no metric is set or none was measured."""
        steps = self.steps()
        values = {step: self._value(step) for step in steps} if self._spec.best else {}
        for step in [step for step, value in values.items() if value is UNKNOWN]:
            self._say(f"checkpoint {step} does not say what was measured (it is damaged); it is not taken for the best")
        return best(steps, values)

    def params(self, step: int, mesh: jax.sharding.Mesh | None = None) -> tuple[Any, dict[str, Any]]:
        """(parameters to evaluate, about) of one checkpoint, whatever optimizer it was trained with: as host arrays, or with a
        mesh in their places on it, where each process reads its own parts alone.

        Raises:
          UserError: it is broken.
        """
        what = f"checkpoint {step} of {self._folder.parent}"
        try:
            return again(what, lambda: self._params(step, mesh))
        except Exception as error:
            if not is_broken(error):
                raise
            others = ", ".join(str(other) for other in self.steps() if other != step) or "none"
            raise UserError(
                f"{what} is broken ({first_line(error)}); other checkpoints: {others}; going on with the run sets it aside"
            ) from error

    def is_whole(self, step: int) -> bool:
        """Whether a checkpoint says what it is, and names its arrays; False where that is damaged."""
        what = f"checkpoint {step} of {self._folder.parent}"
        try:
            again(what, lambda: require_metadata(self._folder / str(step) / "state"))
            about = again(what, lambda: self._about(step))
            for name in _apart(about):
                again(what, lambda: require_metadata(self._folder / frozen.FOLDER / name))  # noqa: B023
            return bool(about["step"] == step)
        except Exception as error:
            if not is_broken(error):
                raise
            return False

    def _open(self) -> Manager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(self._spec.keep, self._values),
            enable_async_checkpointing=not self._read_only,
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            create=not self._read_only,
        )
        return again(str(self._folder), lambda: Manager(self._folder, options=options, item_names=("state", "about")))

    def _reopen(self) -> None:
        """A manager whose save has failed would raise for ever."""
        try:
            self._manager.close()
        except Exception as error:
            logger.debug("closing a manager whose save had failed: %r", error)
        self._manager = self._open()

    def _params(self, step: int, mesh: jax.sharding.Mesh | None) -> tuple[Any, dict[str, Any]]:
        about = self._about(step)
        reader, path = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()), self._folder / str(step) / "state"
        item = shapes_in(reader, path)
        wanted = "ema" if item.get("ema") else "params"
        target = {wanted: item[wanted]}
        if model := (item.get("variables") or {}).get("model"):
            target["variables"] = {"model": model}
        optimizer = item.get("optimizer")
        if isinstance(optimizer, Mapping) and AHEAD in optimizer:  # it trains one tree of parameters, and evaluates another
            target["optimizer"] = {AHEAD: optimizer[AHEAD]}
        found = restored(reader, path, target, mesh)
        params = found[wanted]
        if "optimizer" in target:
            params = jax.tree.map(lambda y, ahead: y - ahead, params, found["optimizer"][AHEAD])
        if about.get("frozen"):
            rest = frozen.read(self._frozen(about), mesh)
            params = _placed(Trained.from_json(about["frozen"]["layers"]).join(params, rest), mesh)
        return with_variables(rename(params, about["format"]), found.get("variables", {}).get("model", {})), about

    def _read(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        about, trained = self._about(step), self._trained
        require_metadata(self._folder / str(step) / "state")
        if about["format"] < FROZEN_APART and trained.rest(abstract.params):
            raise UserError(
                f"checkpoint {step} of {self._folder.parent} is of an older mmjax, which kept optimizer state for frozen "
                f"parameters too; to start from its parameters give a new run --init_from {self._folder.parent}"
            )
        own = dataclasses.replace(abstract, params=trained.of(abstract.params), watch=watch_of(abstract, about["format"]))
        target = rename(as_dict(own), about["format"], back=True)
        found = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        state = State(**rename(found, about["format"]))
        if about.get("frozen"):
            rest = self._whole(about["frozen"]["name"], abstract)
            mesh = jax.tree.leaves(abstract.params)[0].sharding.mesh
            state = dataclasses.replace(state, params=_placed(trained.join(state.params, rest), mesh))
        kept = {name: self._whole(about["teachers"][name], abstract) for name in teachers_of(abstract)}
        state = with_teachers(state, jax.tree.map(_put, kept, teachers_of(abstract)))
        return dataclasses.replace(state, watch=widened(state.watch, abstract.watch)), about

    def _whole(self, name: str, abstract: State) -> Params:
        """What stands apart under a name, found to be what was written there."""
        path = self._folder / frozen.FOLDER / name
        found = frozen.read(path, jax.tree.leaves(abstract.params)[0].sharding.mesh)
        if frozen.fingerprint(found) != name:
            raise EOFError(f"the frozen parameters in {path} are damaged")
        return found

    def _frozen(self, about: Mapping[str, Any]) -> Path:
        return self._folder / frozen.FOLDER / about["frozen"]["name"]

    def _about(self, step: int) -> dict[str, Any]:
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if about["format"] > FORMAT:
            raise UserError(
                f"checkpoint {step} has format {about['format']}, newer than this mmjax reads ({FORMAT}): upgrade mmjax"
            )
        return about

    def _value(self, step: int) -> Any:
        """The rank of a checkpoint, None where it was not measured, UNKNOWN where it is broken."""
        try:
            about = again(f"checkpoint {step} of {self._folder.parent}", lambda: self._about(step))
            return self._rank(about.get("metrics", {}))
        except Exception as error:
            if not is_broken(error):
                raise
            return UNKNOWN

    def _rank(self, metrics: Mapping[str, float | None]) -> float | None:
        """Larger is better; None for what was not measured, or is infinite or no number: that is never the best."""
        value = metrics.get(self._spec.best)
        if value is None or not math.isfinite(value):
            return None
        return float(value) if self._spec.mode == "max" else -float(value)

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Move them out of the way, to where a person can look at them; nothing is deleted because it could not be read."""
        if self._read_only:
            return
        if is_main():
            place = self._folder / ASIDE
            again(str(place), functools.partial(place.mkdir, exist_ok=True))
            for step in steps:
                source, target = self._folder / str(step), numbered(place / str(step))
                again(str(source), functools.partial(source.rename, target))
                self._say(f"checkpoint {step} was set aside: {target}")
        barrier("setting checkpoints aside")
        self._manager.reload()
        for step in steps:
            self._values.pop(step, None)

    def _raise_in_writing(self, error: Exception, last: bool) -> None:
        """What a failed write becomes; returns where it may be tried again.

        Among several processes another attempt of one would not meet the others, so there is none.
        """
        text = f"{error!r}"
        kept = ", ".join(map(str, self.steps())) or "none"
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text:
            raise UserError(f"the disk is full: {self._folder} could not take a checkpoint; still good: {kept}") from error
        if not is_storage(error):
            raise error
        if last or processes() > 1:
            line = f"{self._folder} could not take a checkpoint ({first_line(error)}); still good: {kept}"
            raise UnreachableError(f"{line}; the same command goes on from there") from error


UNKNOWN = object()


def best(steps: Sequence[int], values: Mapping[int, Any]) -> int | None:
    """The step of the largest value, the latest of equal ones; of steps of which none has a value the latest."""
    measured = [(values[step], step) for step in steps if isinstance(values.get(step), float)]
    return max(measured)[1] if measured else max(steps, default=None)


@dataclasses.dataclass
class _Keep:
    """Orbax's protocol: the latest, the best, and what could not be read when this process began.

    Its own `BestN` knows of metrics only what this process has saved, and takes NaN for the best.

    Attributes:
      values: step -> rank (or None); changes as steps are saved.
    """

    latest: int
    values: dict[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        kept = {*steps[-self.latest :], best(steps, self.values)}
        return [step in kept or step not in self.values for step in steps]


def as_dict(state: State) -> dict[str, Any]:
    """What is saved each time: every field, without teachers, and without variables where no others are kept."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    fields["variables"] = changing(state.variables)
    return {name: value for name, value in fields.items() if name != "variables" or value}


def _apart(about: Mapping[str, Any]) -> list[str]:
    """The names of what a checkpoint needs beside it."""
    own = [about["frozen"]["name"]] if about.get("frozen") else []
    return own + list((about.get("teachers") or {}).values())


def _put(x: Any, like: Any) -> Any:
    return jax.device_put(x, like.sharding)


def _placed(params: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Each array in its place on the mesh, where those put together of parts may not be."""
    return params if mesh is None else jax.tree.map(jax.device_put, params, shardings(params, mesh))
