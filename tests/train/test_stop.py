"""Every gentle signal asks for a stop at the end of the step; a second SIGINT does not wait."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmjax.train.stop import GENTLE, stop_requested


@pytest.mark.parametrize("number", GENTLE)
def test_a_signal_asks_and_what_was_set_before_comes_back(number, capfd):
    before = signal.getsignal(number)
    with stop_requested() as stop_at:
        assert not stop_at(1)
        os.kill(os.getpid(), number)
        assert stop_at(2) and stop_at(3)
    assert signal.getsignal(number) is before
    assert "asked to stop" in capfd.readouterr().err


def test_a_stop_may_be_asked_for_in_any_thread(capfd):
    with ThreadPoolExecutor(1) as pool:

        def asked():
            with stop_requested() as stop:
                before = stop(1)
                stop.ask()
                return before, stop(2)

        assert pool.submit(asked).result() == (False, True)
    with stop_requested() as stop:
        stop.ask()
        assert stop(1) and stop.asked
    assert capfd.readouterr().err == ""


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), stop_requested() as stop_at:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_at(1)
        os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_ignored(monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requested() as stop_at:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop_at(1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
