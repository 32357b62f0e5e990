"""Strict settings for every test: eight virtual CPU devices, no silent promotion, warnings are errors."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
    # What the tests compile they hardly run: this compiles in a quarter of the time.
    " --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: two threads of it wait a quarter of a second for each other
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
from hypothesis import settings

from mmjax.parallel.mesh import Mesh, use_mesh

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("mmjax", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("mmjax")


@pytest.fixture
def one_device():
    """A mesh of one device, set."""
    mesh = Mesh().build(jax.devices()[:1])
    with use_mesh(mesh):
        yield mesh


@pytest.fixture(params=[(8, 1, 1), (1, 4, 2)], ids=["8 x data", "4 x fsdp . 2 x tensor"])
def eight_devices(request):
    """A mesh of eight devices, set."""
    mesh = Mesh(*request.param).build()
    with use_mesh(mesh):
        yield mesh
