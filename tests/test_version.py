"""`mmjax.__version__`: the installed package's, and told without waiting for JAX."""

import importlib.metadata
import subprocess
import sys

import pytest

import mmjax


def test_the_version_is_the_installed_ones():
    assert mmjax.__version__ == importlib.metadata.version("mmjax")
    with pytest.raises(AttributeError, match="no attribute '__versoin__'"):
        mmjax.__versoin__  # noqa: B018


def test_a_checkout_that_is_not_installed_has_a_version_too(monkeypatch):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    assert mmjax.__version__ == "unknown"


def test_it_needs_no_jax():
    asks = "import sys, mmjax; print(mmjax.__version__, *({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == [mmjax.__version__] and told.stderr == ""
