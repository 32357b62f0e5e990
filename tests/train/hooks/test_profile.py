"""Which steps are traced, and that what was traced is written, whenever the run ends."""

import types

import jax
import pytest

from mmjax.train.hooks.profile import SKIP, STEPS, Profile


def traced(monkeypatch, folder, start, total):
    """(step, what) for each time that a trace is begun or ended in a run from `start` to `total`."""
    events, now = [], [start]
    monkeypatch.setattr(jax.profiler, "start_trace", lambda place: events.append((now[0], f"begun in {place}")))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append((now[0], "ended")))
    profile = Profile(folder, start)
    for step in range(start + 1, total + 1):
        now[0] = step
        training = types.SimpleNamespace(last=step == total)
        profile.after_step(step, training)
        profile.at_boundary(step, training)
    now[0] = total + 1
    profile.close(broken_off=False)
    return events


@pytest.mark.parametrize("start", [0, 40])
def test_a_few_steps_are_traced_once_the_first_are_over(monkeypatch, tmp_path, start):
    assert traced(monkeypatch, tmp_path, start, start + 30) == [
        (start + SKIP, f"begun in {tmp_path}"),
        (start + SKIP + STEPS, "ended"),
    ]


def test_a_run_that_ends_in_between_writes_its_trace(monkeypatch, tmp_path):
    assert traced(monkeypatch, tmp_path, 0, SKIP + 2) == [(SKIP, f"begun in {tmp_path}"), (SKIP + 3, "ended")]
    assert traced(monkeypatch, tmp_path, 0, SKIP) == []  # there is no step left to trace
