"""Fast compilation for the tests of training: no optimization passes, and nothing is compiled twice."""

from __future__ import annotations

import jax
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

from mmjax.train import reading

SETTINGS = {"jax_persistent_cache_min_compile_time_secs": 0.2, "jax_disable_most_optimizations": True}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The folder of compiled programs, for subprocesses too."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", autouse=True)
def quick_compiles(compiled):
    settings = SETTINGS | {"jax_compilation_cache_dir": str(compiled)}
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def single(monkeypatch):
    """Every mesh is of one device."""
    tiny.single_device(monkeypatch)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Reads are tried again as often as ever, and at once."""
    monkeypatch.setattr(reading, "WAITS", (0.0,) * len(reading.WAITS))
