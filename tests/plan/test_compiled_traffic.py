"""The saved texts are what the installed libtpu gives: one program, compiled here for a TPU."""

import os
import subprocess
import sys
from pathlib import Path

from programs import ENVIRONMENT

from mmjax.plan.collectives import collective_bytes
from mmjax.plan.hlo import parse
from mmjax.plan.traffic import hbm_bytes


def test_a_program_compiled_now_has_the_traffic_of_its_shapes():
    command = "from programs import PROGRAMS, compile_text; print(compile_text(PROGRAMS['over_b']))"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    module = parse(done.stdout)
    arrays = [1024 * 128 * (i + 1) * 4 for i in range(5)]
    assert hbm_bytes(module).read == sum(arrays)
    sent = {c.opcode: c.bytes for c in collective_bytes(module, {"a": 2, "b": 8})}
    assert sent["all-reduce"] == 2 * 7 * arrays[0] // 8 and sent["collective-permute"] == arrays[3]
