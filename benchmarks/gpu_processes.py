"""The processes that `gpu.py` starts, each of which has the card to itself or shares it by turns, and what this machine has."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE = 300  # seconds that an answer may take
PROBE = """
import importlib.metadata, json, platform
import jax
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
names = ("jax", "jaxlib", "torch", "transformers", "mmjax")
device = jax.devices()[0]
limit = (device.memory_stats() or {}).get("bytes_limit", 0)  # three quarters of the card by default
cuda = False
if version("torch"):
    import torch
    cuda = torch.cuda.is_available()
about = {"platform": device.platform, "device": device.device_kind, "capability": getattr(device, "compute_capability", ""),
         "backend": device.client.platform_version, "devices": len(jax.devices()), "memory_gb": limit / 0.75e9,
         "torch_cuda": cuda, "versions": {"python": platform.python_version(), **{name: version(name) for name in names}}}
print(json.dumps(about))
"""


class ChildError(RuntimeError):
    """A process failed or did not answer; the message is one line."""


class Child:
    """A running script of this folder.

    Attributes:
      first: what it said when it was ready, for whoever keeps it here.
    """

    def __init__(self, command: list[str], environment: dict[str, str], lines: bool = False) -> None:
        self.first: dict[str, Any] = {}
        self._noise = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if lines else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()

    def result(self) -> Any:
        """What it prints on its last line, once it has ended.

        Raises:
          ChildError: it failed, or takes too long.
        """
        try:
            out, _ = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise ChildError(f"no answer within {PATIENCE} s") from None
        if self._process.returncode:
            raise ChildError(self._reason())
        return json.loads(out.strip().splitlines()[-1])

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer to a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildError(self._reason()) from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that starts with @; libraries may write others.

        Raises:
          ChildError: it ended, or takes too long.
        """
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(PATIENCE, give_up)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith("@"):
                    return json.loads(line[1:])
        finally:
            timer.cancel()
        raise ChildError(f"no answer within {PATIENCE} s" if late.is_set() else self._reason())

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=0 if self._process.stdin is None else 20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._noise.close()

    def _reason(self) -> str:
        """The last exception that it wrote on standard error, or the last line, in one line."""
        self._process.wait()
        self._noise.seek(0)
        said = [line.strip() for line in self._noise.read().splitlines() if line.strip()]
        raised = [line for line in said if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
        line = (raised or said or [f"exit status {self._process.returncode}"])[-1][:400]
        hint = " (a smaller --batch takes less memory)" if re.search("RESOURCE_EXHAUSTED|out of memory", line, re.I) else ""
        return line + hint


def start(script: str, words: list[str], environment: dict[str, str], lines: bool = False) -> Child:
    """A script of this folder in a process of its own; with `lines` it is told what to do on its standard input."""
    return Child([sys.executable, str(HERE / script), *words], environment, lines)


def device_env(cpu: bool) -> dict[str, str]:
    """The variables of a process that uses the card (or stands in for one that does): it takes no more memory than it needs."""
    return {"JAX_PLATFORMS": "cpu"} if cpu else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def probe(environment: dict[str, str]) -> dict[str, Any]:
    """What JAX and PyTorch see here, and their versions, asked in a process that then lets go of the card.

    Raises:
      ChildError: JAX has no device at all.
    """
    with Child([sys.executable, "-c", PROBE], environment) as child:
        return child.result()


def driver() -> dict[str, str]:
    """The version of NVIDIA's driver, "" where there is none."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {"driver": ""}
    return {"driver": said.stdout.split("\n")[0].strip() if said.returncode == 0 else ""}
