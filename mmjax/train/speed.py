"""How fast a run goes: examples and model FLOPs per second, and the share of what the chips could do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import jax

from mmjax.train.setup import Kind

# Dense bfloat16 peak of one device under the name that JAX gives it, FLOP/s, from the vendors' data sheets (which state twice
# that for newer NVIDIA cards, with sparsity). Where a GeForce card sums in float32 at half the rate, that rate.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA RTX A6000": 154.8e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181.05e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


class Speed:
    """Counts what was done since it was last asked.

    Args:
      flops: model FLOPs of each kind of step: a group of data streams, and the lengths of their texts.
      devices: those the step runs on.
    """

    def __init__(self, flops: Mapping[Kind, int], devices: Sequence[jax.Device]):
        self._flops = flops
        self._peak = PEAK_FLOPS.get(devices[0].device_kind, 0.0) * len(devices)
        self._since = time.perf_counter()
        self._examples = self._work = 0
        self._steps = 0

    def tick(self, kind: Kind, examples: int) -> None:
        """One step was started."""
        self._examples += examples
        self._work += self._flops[kind]
        self._steps += 1

    def figures(self) -> dict[str, float]:
        """Figures since the last call: wall-clock averages, evaluation and saving included."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        figures = {
            "examples_per_second": self._examples / seconds,
            "steps_per_second": self._steps / seconds,
            "model_flops_per_second": self._work / seconds,
        }
        if self._peak:
            figures["model_flops_used"] = self._work / seconds / self._peak
        self._since, self._examples, self._work, self._steps = now, 0, 0, 0
        return figures
