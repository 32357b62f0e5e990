"""Who is there, before anything is started: JAX's own service ends a process with a C++ stack when a peer never joins.

Process 0 listens where the coordinator will; each other process says its number there and waits for the word to go. All that
is said is lines that begin with `WORD`. Whoever says anything else, nothing at all, or too slowly is no process of a run (a
port scanner, a health check) and is passed over. So is a process that counts other processes, which may be of another run with
the same port: it is told at once, tries on for `MISFIT` seconds, and ends with a line that says both numbers. Process 0 waits
for its own until the time-out, and then names the other beside who is missing.
"""

from __future__ import annotations

import dataclasses
import os
import re
import selectors
import socket
import time

from mmjax.core.errors import UserError

WORD = b"mmjax roll call 1: "
HELLO = re.compile(re.escape(WORD) + rb"process (\d{1,7}) of (\d{1,7})\n")
OTHER = re.compile(rb"other (\d{1,7})")
LONGEST = 4000  # bytes of a line
RETRY = 0.2  # seconds between two attempts to reach process 0
GRACE = 5.0  # seconds in which a line must be complete; that process 0's verdict may be late
MISFIT = 15.0  # seconds that a process tries on where process 0 counts otherwise: it may be about to make room for its own
STRANGERS = 200  # connections that have said nothing yet; the oldest goes first, and a process of the run comes again


def roll_call(coordinator: str, processes: int, process: int, timeout: float) -> None:
    """Return on every process once all have come.

    Args:
      coordinator: `HOST:PORT` of process 0; the port is free again afterwards.
      timeout: seconds to wait for the others.

    Raises:
      UserError: on every process that came: who is missing, or that two say they are the same one; on a process that counts
        other processes than process 0: both numbers.
    """
    deadline = time.monotonic() + timeout
    if process == 0:
        _listen(coordinator, processes, timeout, deadline)
    else:
        _report(coordinator, processes, process, timeout, deadline)


def _listen(coordinator: str, processes: int, timeout: float, deadline: float) -> None:
    with _server(coordinator) as server, selectors.DefaultSelector() as selector:
        desk = _Desk(server, selector, processes)
        try:
            while not desk.verdict and len(desk.came) < processes - 1 and (left := deadline - time.monotonic()) > 0:
                desk.look(left)
            missing = [str(i) for i in range(1, processes) if i not in desk.came]
            if missing and not desk.verdict:
                desk.verdict = (
                    f"{len(missing)} of {processes} processes did not join {coordinator} within {timeout:g} s: missing "
                    f"{', '.join(missing[:50])}{' ...' * (len(missing) > 50)}; start the same command on all of them, or raise "
                    f"--join_timeout{''.join(desk.misfits.values())}"
                )
            for peer in desk.came.values():
                _say(peer, f"no {desk.verdict}" if desk.verdict else "go")
        finally:
            desk.close()
    if desk.verdict:
        raise UserError(desk.verdict)


@dataclasses.dataclass
class _Caller:
    """A connection that has not said yet who it is."""

    peer: socket.socket
    host: str
    until: float
    said: bytes = b""


class _Desk:
    """Where process 0 hears all connections at once, so that none holds up another.

    Attributes:
      came: number -> connection of the processes of this run.
      misfits: number -> a clause on who came with it and counts other processes.
      verdict: why the run cannot begin, once that is so.
    """

    def __init__(self, server: socket.socket, selector: selectors.BaseSelector, processes: int):
        self.server, self.selector, self.processes = server, selector, processes
        self.came: dict[int, socket.socket] = {}
        self.misfits: dict[int, str] = {}
        self.verdict = ""
        self._callers: dict[socket.socket, _Caller] = {}  # in the order in which they came
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)

    def look(self, seconds: float) -> None:
        """Wait for something to happen, at most that long, and see to it."""
        first = next(iter(self._callers.values()), None)
        if first is not None:
            seconds = min(seconds, max(first.until - time.monotonic(), 0.0))
        for key, _ in self.selector.select(seconds):
            if self.verdict:
                return
            if key.fileobj is self.server:
                self._accept()
            elif caller := self._callers.get(key.fileobj):  # type: ignore[call-overload]
                self._hear(caller)
            else:
                self._forget(key.fileobj)
        for caller in list(self._callers.values()):
            if caller.until > time.monotonic() and len(self._callers) <= STRANGERS:
                break
            self._drop(caller)

    def close(self) -> None:
        for peer in [*self.came.values(), *self._callers]:
            peer.close()

    def _accept(self) -> None:
        try:
            peer, address = self.server.accept()
        except BlockingIOError:
            return
        except OSError:  # it went away again, or this process has too many files open
            for caller in list(self._callers.values())[:1]:
                self._drop(caller)
            time.sleep(RETRY / 10)
            return
        peer.setblocking(False)
        self._callers[peer] = _Caller(peer, address[0], time.monotonic() + GRACE)
        self.selector.register(peer, selectors.EVENT_READ)

    def _hear(self, caller: _Caller) -> None:
        try:
            part = caller.peer.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        caller.said += part
        hello = HELLO.fullmatch(caller.said)
        if hello:
            self._admit(caller, int(hello[1]), int(hello[2]))
        elif not part or b"\n" in caller.said or len(caller.said) >= LONGEST:
            self._drop(caller)

    def _admit(self, caller: _Caller, number: int, processes: int) -> None:
        """Enter a process that has come."""
        if processes != self.processes:
            if len(self.misfits) < 20:
                counts = f"with --processes {processes} and process 0 with {self.processes}"
                self.misfits[number] = f"; process {number} ({caller.host}) was started {counts}"
            _say(caller.peer, f"other {self.processes}")
            self._drop(caller)
        elif not 0 < number < processes:
            self._drop(caller)
        elif number in self.came and not _gone(self.came[number]):
            self.verdict = (
                f"two processes say that they are number {number} (one on {caller.host}): give each its own --process"
            )
            _say(caller.peer, f"no {self.verdict}")
            self._drop(caller)
        else:
            if number in self.came:
                self._forget(self.came[number])
            del self._callers[caller.peer]
            self.came[number] = caller.peer
            _say(caller.peer, "wait")

    def _forget(self, gone: object) -> None:
        """A process that had come has hung up; it may come again."""
        for number, peer in list(self.came.items()):
            if peer is gone:
                del self.came[number]
                self.selector.unregister(peer)
                peer.close()

    def _drop(self, caller: _Caller) -> None:
        del self._callers[caller.peer]
        self.selector.unregister(caller.peer)
        caller.peer.close()


def _report(coordinator: str, processes: int, process: int, timeout: float, deadline: float) -> None:
    reason, misfit, end = "", "", deadline
    while time.monotonic() < end:
        answer = b""
        try:
            with _connect(coordinator, deadline) as peer:
                _say(peer, f"process {process} of {processes}")
                answer = _line(peer, min(deadline, time.monotonic() + GRACE))
                if answer == b"wait":
                    answer = _line(peer, deadline + GRACE)
                reason = "" if answer else " (what answers there is no process 0 of mmjax)"
        except OSError as error:
            reason = f" ({error.strerror or error})"
        if answer == b"go":
            return
        if answer.startswith(b"no "):
            raise UserError(answer[3:].decode(errors="replace"))
        if other := OTHER.fullmatch(answer):
            end = min(end, time.monotonic() + MISFIT)
            misfit = (
                f"process {process} was started with --processes {processes} and process 0 at {coordinator} with "
                f"{int(other[1])}: give all the same number"
            )
        time.sleep(RETRY)
    raise UserError(
        misfit
        or f"process {process} of {processes} found no process 0 at {coordinator} within {timeout:g} s{reason}: is it running, "
        "and is the port open?"
    )


def _connect(coordinator: str, deadline: float) -> socket.socket:
    host, _, port = coordinator.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=max(deadline - time.monotonic(), 0.1))


def _server(coordinator: str) -> socket.socket:
    port = int(coordinator.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise UserError(
            f"--coordinator {coordinator}: process 0 cannot listen there ({os.strerror(error.errno or 0)})"
        ) from None


def _say(peer: socket.socket, text: str) -> None:
    """One line; it is short enough never to wait for room."""
    try:
        peer.sendall(WORD + text.encode()[: LONGEST - len(WORD) - 1] + b"\n")
    except OSError:
        return  # it went away; the run's own checks will notice


def _line(peer: socket.socket, deadline: float) -> bytes:
    """What a line of ours says; b"" where none is complete by then."""
    said = b""
    while b"\n" not in said and len(said) < LONGEST and (left := deadline - time.monotonic()) > 0:
        peer.settimeout(left)
        try:
            part = peer.recv(1)  # no more: the next line is another's to read
        except TimeoutError:
            return b""
        if not part:
            return b""
        said += part
    return said[len(WORD) : -1] if said.startswith(WORD) and said.endswith(b"\n") else b""


def _gone(peer: socket.socket) -> bool:
    """Whether the other end has hung up."""
    try:
        return peer.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
