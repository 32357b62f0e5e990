"""The roll call in threads: who belongs to the run is admitted, whatever else comes to the port meanwhile."""

import contextlib
import random
import socket
import struct
import threading
import time

import pytest

from mmjax.core.errors import UserError
from mmjax.parallel import rollcall
from mmjax.parallel.rollcall import WORD, roll_call


class Call:
    """The processes of a roll call, a thread each, and what became of them."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.ends: dict[str, str] = {}
        self.threads: dict[str, threading.Thread] = {}
        self.strangers: list[socket.socket] = []

    def join(self, name: str, process: int, processes: int = 2, timeout: float = 20.0) -> None:
        def one():
            try:
                roll_call(self.address, processes, process, timeout)
                self.ends[name] = ""
            except UserError as error:
                self.ends[name] = str(error)

        self.threads[name] = threading.Thread(target=one)
        self.threads[name].start()

    def stranger(self, said: bytes = b"") -> socket.socket:
        """Connects as soon as process 0 listens, says something, and holds the connection."""
        for _ in range(100):
            with contextlib.suppress(OSError):
                self.strangers.append(socket.create_connection(("127.0.0.1", self.port), timeout=5))
                break
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # refused in the middle of a long one
            self.strangers[-1].sendall(said)
        return self.strangers[-1]

    def end(self, *names: str) -> list[str]:
        for name in names:
            self.threads[name].join(30)
        return [self.ends.get(name, "waits") for name in names]


@pytest.fixture
def call():
    made = Call()
    yield made
    for peer in made.strangers:
        peer.close()
    for thread in made.threads.values():
        thread.join(30)
        assert not thread.is_alive()


HELLO = WORD + b"process 1 of 2\n"
SAID = {
    "nothing": b"",
    "half a line": HELLO[:-1],
    "numbers": b"1\n",
    "objects": b'{"a": 1}\n',
    "what an older protocol said": b'{"process": 1, "processes": 2}\n{"process": 1, "processes": 3}\n',
    "deep JSON": b"[" * 100_000,
    "a browser": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no text": bytes(range(256)) * 40,
    "our word, and no number": WORD + b"process one of 2\n",
    "our word, and much": WORD + b"9" * 1_000_000 + b"\n",
    "more than a line": HELLO + HELLO,
    "number 0": WORD + b"process 0 of 2\n",
    "a number beyond": WORD + b"process 2 of 2\n",
    "other digits": WORD + "process \N{ARABIC-INDIC DIGIT ONE} of 2\n".encode(),
    "another run": WORD + b"process 1 of 7\n",
    "another run's many": WORD + b"process 99999 of 9999999\n",
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_strangers_are_passed_over(call, said):
    call.join("0", 0)
    for _ in range(3):
        call.stranger(said)
    time.sleep(0.1)
    began = time.monotonic()
    call.join("1", 1)
    assert call.end("0", "1") == ["", ""]
    assert time.monotonic() - began < rollcall.GRACE / 2


def test_many_strangers_at_once_hold_up_nobody(call):
    call.join("0", 0, 3)
    began, bytes_of = time.monotonic(), random.Random(0).randbytes
    for i in range(rollcall.STRANGERS + 60):
        peer = call.stranger()
        with contextlib.suppress(OSError):
            peer.sendall(bytes_of(i % 7))
        if i % 5 == 0:  # hangs up with a reset
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        if i == rollcall.STRANGERS:
            call.join("1", 1, 3)
    call.join("2", 2, 3)
    assert call.end("0", "1", "2") == ["", "", ""]
    assert time.monotonic() - began < 10


def test_the_slow_are_dropped(call, monkeypatch):
    monkeypatch.setattr(rollcall, "GRACE", 0.4)
    call.join("0", 0)
    silent, slow = call.stranger(), call.stranger()
    began = time.monotonic()
    slow.settimeout(5)
    with pytest.raises(OSError):
        for byte in HELLO * 9:
            slow.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - began < 3
    silent.settimeout(5)
    assert silent.recv(1) == b""
    call.join("1", 1)
    assert call.end("0", "1") == ["", ""]


def test_two_of_one_number_end_the_run(call):
    call.join("0", 0, 3)
    call.join("a", 1, 3)
    time.sleep(0.5)
    call.join("b", 1, 3)
    ends = call.end("0", "a", "b")
    assert len(set(ends)) == 1
    assert ends[0].startswith("two processes say that they are number 1 (one on ")
    assert ends[0].endswith("): give each its own --process")


def test_a_process_that_went_away_may_come_again(call):
    call.join("0", 0, 3)
    first = call.stranger(WORD + b"process 1 of 3\n")
    assert first.recv(100) == WORD + b"wait\n"
    first.close()
    for number in ("1", "2"):
        call.join(number, int(number), 3)
    assert call.end("0", "1", "2") == ["", "", ""]


def test_who_is_missing_is_told_to_all_that_came(call):
    call.join("0", 0, 4, 1.5)
    call.join("2", 2, 4, 10.0)
    line = (
        f"2 of 4 processes did not join {call.address} within 1.5 s: missing 1, 3; start the same command on all of them, or "
    )
    assert call.end("0", "2") == [line + "raise --join_timeout"] * 2


def test_a_wrong_number_of_processes_is_told_on_both(call, monkeypatch):
    monkeypatch.setattr(rollcall, "MISFIT", 0.5)
    call.join("0", 0, 2, 3.0)
    began = time.monotonic()
    call.join("1", 1, 3, 60.0)
    assert call.end("1") == [
        f"process 1 was started with --processes 3 and process 0 at {call.address} with 2: give all the same number"
    ]
    assert time.monotonic() - began < 2.5
    (line,) = call.end("0")
    assert line.startswith(f"1 of 2 processes did not join {call.address} within 3 s: missing 1; ")
    assert line.endswith("1) was started with --processes 3 and process 0 with 2")


def test_a_process_waits_for_its_own_process_0_to_take_the_port(call):
    """As where a run goes on with fewer processes, while one of the run before is still about."""
    call.join("old 0", 0, 3, 1.0)
    time.sleep(0.2)
    call.join("1", 1)
    call.end("old 0")
    call.join("0", 0)
    assert call.end("0", "1") == ["", ""]


def test_what_answers_at_the_port_may_be_a_stranger_too(monkeypatch):
    monkeypatch.setattr(rollcall, "GRACE", 0.3)
    calls = {answer: Call() for answer in (b"", b"1\n", b'{"a": 1}\n', b"\xff" * 100_000, WORD, WORD + b"\n", WORD + b"wait\n")}
    with contextlib.ExitStack() as servers:
        for answer, call in calls.items():
            server = servers.enter_context(socket.create_server(("127.0.0.1", call.port)))
            call.join("1", 1, 2, 1.0)
            peer = servers.enter_context(server.accept()[0])
            with contextlib.suppress(OSError):
                peer.sendall(answer)
        for answer, call in calls.items():
            (line,) = call.end("1")
            assert line.startswith(f"process 1 of 2 found no process 0 at {call.address} within 1 s"), (answer, line)


def test_a_port_that_is_taken_is_named(call):
    with socket.create_server(("", call.port)):
        call.join("0", 0)
        (line,) = call.end("0")
    assert line == f"--coordinator {call.address}: process 0 cannot listen there (Address already in use)"
