"""What is freed is kept: an array of the size of a photo is not cleared by the system each time."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from mmjax.data.allocator import keep_freed_memory

if {kept}:
    assert keep_freed_memory()
for _ in range(3):
    [np.ones(600_000, np.uint8) for _ in range(4)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    [np.ones(600_000, np.uint8) for _ in range(4)]
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 50)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_pages_are_not_cleared_anew():
    def faults(kept):
        done = subprocess.run([sys.executable, "-c", FAULTS.format(kept=kept)], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert faults(True) < 50 < 200 < faults(False)
