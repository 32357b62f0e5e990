"""Who is there, before anything is started: JAX's own service ends a process with a C++ stack when a peer never joins.

Process 0 listens where the coordinator will; each other process says its number there and waits for the word to go.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from mmjax.core.errors import UserError

RETRY = 0.2  # seconds between two attempts to reach process 0
GRACE = 5.0  # seconds that process 0's verdict may take


def roll_call(coordinator: str, processes: int, process: int, timeout: float) -> None:
    """Return on every process once all have come.

    Args:
      coordinator: `HOST:PORT` of process 0; the port is free again afterwards.
      timeout: seconds to wait for the others.

    Raises:
      UserError: on every process that came: who is missing, or that two say they are the same one.
    """
    deadline = time.monotonic() + timeout
    if process == 0:
        _listen(coordinator, processes, timeout, deadline)
    else:
        _report(coordinator, processes, process, timeout, deadline)


def _listen(coordinator: str, processes: int, timeout: float, deadline: float) -> None:
    came: dict[int, socket.socket] = {}
    verdict = ""
    with _server(coordinator) as server:
        while not verdict and len(came) < processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                peer, address = server.accept()
            except TimeoutError:
                break
            verdict = _admit(came, peer, processes, address[0])
        missing = [str(i) for i in range(1, processes) if i not in came]
        if missing and not verdict:
            verdict = (
                f"{len(missing)} of {processes} processes did not join {coordinator} within {timeout:g} s: missing "
                f"{', '.join(missing)}; start the same command on all of them, or raise --join_timeout"
            )
        for peer in came.values():
            with peer:
                _send(peer, {"verdict": verdict})
    if verdict:
        raise UserError(verdict)


def _admit(came: dict[int, socket.socket], peer: socket.socket, processes: int, host: str) -> str:
    """Enter a process that has come; a line where it does not belong to this run."""
    said = _receive(peer, GRACE)
    if said is None:  # a port scanner, or a process that went away again
        peer.close()
        return ""
    number = said["process"]
    if said["processes"] != processes:
        came.setdefault(number, peer)
        return f"process {number} ({host}) was started with --processes {said['processes']} and process 0 with {processes}"
    if number == 0 or (number in came and not _gone(came[number])):
        came[-1] = peer
        return f"two processes say that they are number {number} (one on {host}): give each its own --process"
    came[number] = peer
    return ""


def _report(coordinator: str, processes: int, process: int, timeout: float, deadline: float) -> None:
    host, _, port = coordinator.rpartition(":")
    last: OSError | None = None
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, int(port)), timeout=max(deadline - time.monotonic(), 0.1)) as peer:
                _send(peer, {"process": process, "processes": processes})
                said = _receive(peer, max(deadline - time.monotonic(), 0) + GRACE)
        except OSError as error:
            last, said = error, None
        if said is not None:
            if said["verdict"]:
                raise UserError(said["verdict"])
            return
        time.sleep(RETRY)
    reason = f" ({last.strerror or last})" if last else ""
    raise UserError(
        f"process {process} of {processes} found no process 0 at {coordinator} within {timeout:g} s{reason}: is it running, "
        "and is the port open?"
    )


def _server(coordinator: str) -> socket.socket:
    port = int(coordinator.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(f"--coordinator {coordinator}: process 0 cannot listen there ({error.strerror})") from None


def _send(peer: socket.socket, message: dict[str, Any]) -> None:
    try:
        peer.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return  # it went away; the run's own checks will notice


def _receive(peer: socket.socket, timeout: float) -> dict[str, Any] | None:
    """One line of JSON; None where none came."""
    peer.settimeout(timeout)
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < 10_000:
            part = peer.recv(4096)
            if not part:
                return None
            text += part
        return json.loads(text)
    except (OSError, ValueError):
        return None


def _gone(peer: socket.socket) -> bool:
    """Whether the other end has hung up."""
    peer.setblocking(False)
    try:
        return peer.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
