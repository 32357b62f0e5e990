"""Strict settings for every test: eight virtual CPU devices, no silent promotion, warnings are errors.

Of an installation without PyTorch the test files that compare with it are skipped, here and nowhere else.
"""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# What the tests compile they hardly run: with one flag more it compiles in a quarter of the time, and with another, which keeps
# a program in one piece where 32 would be compiled beside each other, in a sixth less of that on the few cores that there are.
# From 0.12 on there is no such flag as the first, and XLA ends the process over one that it does not know.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch: two threads of it wait a quarter of a second for each other
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache

from mmjax.data.once import say_once
from mmjax.parallel.mesh import Mesh, use_mesh

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("mmjax", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("mmjax")


# Files of few and long tests, some of which wait for other processes: begun first, they do not end last and alone.
LONG = ("test_processes.py", "test_readme.py", "test_resume.py", "test_benchmark_gpu.py", "test_loop.py", "test_meshes.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


class _MayNeedTorch(pytest.Module):
    """A test file that is skipped where importing it comes to a PyTorch that is not installed."""

    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            if getattr(error.__cause__, "name", None) == "torch":
                pytest.skip("compares with PyTorch, which is not installed", allow_module_level=True)
            raise


if importlib.util.find_spec("torch") is None:

    def pytest_pycollect_makemodule(module_path, parent):
        return _MayNeedTorch.from_parent(parent, path=module_path)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Compiled programs are let go once there are many: each holds mappings of memory, of which Linux gives a process 65,530,
    and XLA ends it when the next one fails."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def nothing_said_yet():
    """What is said once a process is said in each test."""
    say_once.cache_clear()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder of compiled programs, for subprocesses too."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def quick_compiles(compiled):
    """Of a test file that trains: no optimization passes, and nothing is compiled twice."""
    settings = {
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(compiled),
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


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
