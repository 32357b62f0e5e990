"""Several processes as one run: how they find each other, what they must have in common, where they wait.

What is said here goes through JAX's key-value store, which process 0 keeps: no device takes part, so it works before there
are any, and a process that does not come can be named. A single process passes through all of it untouched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import clusters, distributed  # the key-value store and the detection of clusters have no public name

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.parallel.ending import Ending, filter_native_errors
from mmjax.parallel.rollcall import roll_call

WAIT = 1800.0  # seconds that a process may be behind the others
SKEW = 60.0  # seconds that clocks may differ: more confuses logs, and which checkpoint is newer
PACKAGES = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "libtpu")
CLUSTERS = ("slurm", "ompi", "gketpu", "gcetpu")  # of those JAX can detect: they say all that is needed

_calls = itertools.count()  # the processes call the same functions in the same order, so equal numbers belong together
_ending: list[Ending] = []  # this process's, while it is joined


@dataclasses.dataclass(frozen=True)
class Join:
    """How to find the other processes. Nothing need be said on Cloud TPU and under SLURM or Open MPI.

    Attributes:
      coordinator: where process 0 is; the port must be free there.
      processes: how many there are, all given the same command; 1 to stay alone where a cluster would be found.
      process: this one's number, from 0.
      join_timeout: seconds to wait for the others to start.
      peer_timeout: seconds without a sign of life after which a process counts as dead.
    """

    coordinator: str | None = setting(metavar="HOST:PORT", default=None)
    processes: int | None = None
    process: int | None = None
    join_timeout: float = 300.0
    peer_timeout: float = 100.0

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise UserError(f"--processes {self.processes}: give 1 or more")
        for name in ("join_timeout", "peer_timeout"):
            if not 1 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name} {getattr(self, name):g}: give seconds, 1 or more")
        if self.processes == 1:
            return
        said = {f"--{name}": getattr(self, name) for name in ("coordinator", "processes", "process")}
        missing = [name for name, value in said.items() if value is None]
        if 0 < len(missing) < 3:
            raise UserError(f"{', '.join(missing)} is missing: give --coordinator HOST:PORT, --processes N and --process I")
        found = re.fullmatch(r"\S+:([0-9]{1,5})", self.coordinator or "h:1")
        if not found or not 0 < int(found[1]) < 65536:
            raise UserError(f"--coordinator {self.coordinator}: give HOST:PORT of process 0, with a port from 1 to 65535")
        if self.process is not None and self.processes is not None and not 0 <= self.process < self.processes:
            raise UserError(f"--process {self.process}: the {self.processes} processes are numbered from 0")


@contextlib.contextmanager
def joined(join: Join, stop_on_signal: bool = True) -> Iterator[None]:
    """Join the other processes, if there are any, and leave together.

    Among several processes an error does not leave this block: it is printed as one line, the others are told and end with
    that line too, and this process ends with a `UserError`'s status and 1 for anything else.

    Args:
      stop_on_signal: SIGTERM asks all processes to stop at a common step (`reached_stop`); else it ends this one.

    Raises:
      UserError: a process that did not come, or has other versions or another clock.
    """
    if not start(join, stop_on_signal):
        yield
        return
    state = distributed.global_state
    ending = Ending(state.client, state.process_id, state.num_processes, join.peer_timeout)
    _ending.append(ending)
    try:
        check_versions()
        check_clocks()
        yield
        barrier("the end")
    except UserError as error:
        ending.fail("; ".join([str(error), *getattr(error, "__notes__", ())]), error.exit_status)
    except KeyboardInterrupt:
        ending.fail("interrupted; what was saved is kept, the same command goes on from there", 1)
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            ending.lost()  # the peer that died has a name soon
        traceback.print_exc()
        ending.fail(f"process {state.process_id} failed: {type(error).__name__}: {str(error).strip()[:300]}", 1)
    _ending.clear()
    ending.finish()
    jax.distributed.shutdown()


def start(join: Join, stop_on_signal: bool = True) -> bool:
    """Initialise `jax.distributed` where there is something to join; whether there was.

    Raises:
      UserError: a process did not come within `join.join_timeout`.
    """
    address, processes, process, devices = _place(join)
    if processes == 1:
        return False
    roll_call(address, processes, process, join.join_timeout)
    filter_native_errors(process, join.peer_timeout)
    jax.config.update("jax_enable_preemption_service", stop_on_signal)
    jax.distributed.initialize(
        address,
        processes,
        process,
        devices,
        cluster_detection_method="deactivate",
        initialization_timeout=60,
        heartbeat_timeout_seconds=round(join.peer_timeout),
    )
    return True


def _place(join: Join) -> tuple[str, int, int, list[int] | None]:
    """(coordinator, processes, this process, its devices or None for all), said or detected."""
    if join.processes == 1:
        return "", 1, 0, None
    if join.coordinator and join.processes and join.process is not None:
        return join.coordinator, join.processes, join.process, None
    for cluster in clusters.ClusterEnv._cluster_types:
        if cluster.name in CLUSTERS and cluster.is_env_present():
            processes = cluster.get_process_count()
            if processes == 1:
                break
            port = os.environ.get("JAX_COORDINATOR_PORT")
            address = cluster.get_coordinator_address(timeout_secs=round(join.join_timeout), override_coordinator_port=port)
            local = None if cluster.name.endswith("tpu") else cluster.get_local_process_id()
            return address, processes, cluster.get_process_id(), None if local is None else [local]
    return "", 1, 0, None


def processes() -> int:
    """How many processes there are; asks no device."""
    return distributed.global_state.num_processes if distributed.global_state.client is not None else 1


def process() -> int:
    """This one's number."""
    return distributed.global_state.process_id if distributed.global_state.client is not None else 0


def is_main() -> bool:
    """Whether this is process 0, which alone writes to the run folder (but for checkpoints) and prints."""
    return process() == 0


def gather(name: str, value: Any = None, timeout: float = WAIT) -> list[Any]:
    """Every process's value (anything JSON can hold), in their order. All must call it, in the same order of calls.

    Raises:
      UserError: some process did not come within `timeout` seconds.
    """
    if processes() == 1:
        return [value]
    client, folder = distributed.global_state.client, f"mmjax/{next(_calls)}"
    assert client is not None
    client.key_value_set(f"{folder}/{process()}", json.dumps(value))
    try:
        client.wait_at_barrier(folder, round(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        came = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(folder)}
        missing = ", ".join(str(i) for i in range(processes()) if i not in came)
        raise UserError(
            f"process {missing} did not come to {name!r} within {timeout:g} s: it may be slow, or hang; see its log"
        ) from None
    found = {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(folder)}
    return [json.loads(found[i]) for i in range(processes())]


def barrier(name: str, timeout: float = WAIT) -> None:
    """Wait until every process has come here. Raises `UserError`, naming who has not, after `timeout` seconds."""
    gather(name, None, timeout)


def told(name: str, value: Any) -> Any:
    """Process 0's value, on every process."""
    return gather(name, value if is_main() else None)[0]


def agree(thing: str, mine: Mapping[str, Any]) -> None:
    """Check that a tree of plain values is the same on all processes.

    Raises:
      UserError: on every process alike: which process differs from process 0, where, and both values.
    """
    first = told(thing, mine)
    mine = json.loads(json.dumps(mine))  # as it went through the store: tuples are lists
    theirs, ours = leaves_by_path(first), leaves_by_path(mine)
    different = [path for path in sorted({*theirs, *ours}) if repr(theirs.get(path)) != repr(ours.get(path))]  # NaN too
    line = None
    if different:
        path = different[0]
        line = (
            f"process {process()} and process 0 differ in {thing}: {path} is {ours.get(path)!r} there and "
            f"{theirs.get(path)!r} on process 0"
        )
    _raise_first(thing, line)


def check_versions() -> None:
    """Raises `UserError` where a process has other versions of what computes."""
    agree("versions", {name: _version(name) or "absent" for name in PACKAGES})


def check_clocks(limit: float = SKEW) -> None:
    """Raises `UserError` where a process's clock is more than `limit` seconds from process 0's."""
    barrier("clocks")  # all leave it within milliseconds
    now = time.time()
    skew = now - told("clocks", now)
    line = None
    if abs(skew) > limit:
        shown = time.strftime("%H:%M:%S", time.gmtime(now)), time.strftime("%H:%M:%S", time.gmtime(now - skew))
        line = (
            f"process {process()} and process 0 differ in their clocks by {abs(skew):.0f} s (more than {limit:g}): "
            f"{shown[0]} UTC there and {shown[1]} on process 0; set them by NTP"
        )
    _raise_first("clocks", line)


def fail(line: str, status: int = 1) -> None:
    """End this process from any thread, and all others with it: one line on each, exit status `status`."""
    if _ending:
        _ending[0].fail(line, status)
    print(f"mmjax: {line}", file=sys.stderr, flush=True)
    os._exit(status)


def _raise_first(thing: str, line: str | None) -> None:
    lines = [said for said in gather(thing, line) if said]
    if lines:
        raise UserError(lines[0])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
