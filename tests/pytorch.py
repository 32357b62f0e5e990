"""`torch` and its `functional`; where PyTorch is not installed, stand-ins that skip the test that uses them, and it alone."""

import pytest

try:
    import torch
    from torch.nn import functional
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise

    class _Absent:
        def __getattr__(self, name):
            if name.startswith("__"):  # pytest looks at what a file holds
                raise AttributeError(name)
            pytest.skip("compares with PyTorch, which is not installed", allow_module_level=True)

    torch = functional = _Absent()

__all__ = ["functional", "torch"]
