"""Of the tests of training: compilation is quick, and nothing waits."""

from __future__ import annotations

import pytest
import tiny

from mmjax.train import reading


@pytest.fixture(scope="module", autouse=True)
def all_quick(quick_compiles):
    """Each of these files trains."""


@pytest.fixture
def single(monkeypatch):
    """Every mesh is of one device."""
    tiny.single_device(monkeypatch)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Reads are tried again as often as ever, and at once."""
    monkeypatch.setattr(reading, "WAITS", (0.0,) * len(reading.WAITS))
