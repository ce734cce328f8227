"""Configuration of all tests: strict numerics, 8 CPU devices, and XLA flags that are known good."""

import atexit
import functools
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import pytest
from jax._src import compiler

from ldro_jax.runtime import xla_flags

# All of this has to happen before the first test makes an array and JAX's backend starts.
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()
xla_flags.set_cpu_defaults()

# Programs that several tests, or the processes that they start, compile alike are compiled once. A
# directory for each worker: JAX writes files there that are seen before they are whole.
_programs = tempfile.mkdtemp(prefix="ldro-jax-tests-")
atexit.register(shutil.rmtree, _programs, ignore_errors=True)
for _option, _value in {
    "jax_compilation_cache_dir": _programs,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(_option, _value)
    os.environ[_option.upper()] = str(_value)

if not hasattr(jax, "enable_x64"):  # before jax 0.8
    from jax import experimental

    jax.enable_x64 = experimental.enable_x64
jax.config.update("jax_platforms", "cpu")
# A silent promotion or broadcast is how a [N] vector becomes a wrong [N, N] matrix.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# What -m smoke runs: the mathematics, data, records and tables, and one experiment to its end.
_SMOKE = (
    "problems/test_arrays.py",
    "records/test_results.py",
    "reporting/test_tables.py",
    "runtime/test_checks.py",
    "test_main.py::test_results_hold_what_was_promised",
    "training/test_schedule.py",
    "weighting/test_methods.py",
    "weighting/test_pcgrad.py",
)


# Their float64 is heavy: the battery and the oracles of each method have both types by default.
_FLOAT32 = (
    "interaction/test_layerwise.py",
    "weighting/test_known_games.py",
    "weighting/test_known_losses.py",
    "weighting/test_lengths.py",
    "weighting/test_shifted_losses.py",
    "weighting/test_twins.py",
)


def pytest_collection_modifyitems(items):
    """Marks what is quick and goes through most of the library, and what takes long."""
    for item in items:
        if "float64" in item.nodeid and any(f"tests/{name}" in item.nodeid for name in _FLOAT32):
            item.add_marker(pytest.mark.heavy)
        heavy = item.get_closest_marker("heavy")
        if not heavy and any(f"tests/{name}" in item.nodeid for name in _SMOKE):
            item.add_marker(pytest.mark.smoke)


# A test process holds millions of objects, and looking through them all again and again takes long.
gc.set_threshold(200_000, 50, 100)

# Where rounding is looked at, or what XLA gets wrong.
_OPTIMISED = ("games", "interaction", "models", "test_xla_flags")
_WITHOUT_MLIR = {"xla_cpu_use_fusion_emitters": False}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(request):
    """Compiling is most of what tests do, and LLVM's optimisations and MLIR most of compiling."""
    if any(name in request.node.nodeid for name in _OPTIMISED):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        if _can_do_without_mlir():
            _do_without_mlir(patch)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def _can_do_without_mlir():
    """Whether this jaxlib has emitters besides those of MLIR, as releases before 0.12 do."""
    try:
        jax.jit(lambda: 0, compiler_options=_WITHOUT_MLIR).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return hasattr(compiler, "get_compile_options")


def _do_without_mlir(patch):
    # Compiling takes about 60 % longer with MLIR. In XLA_FLAGS it would hold for all tests.
    original = compiler.get_compile_options

    def get_compile_options(*args, **options):
        found = original(*args, **options)
        found.env_option_overrides += list(_WITHOUT_MLIR.items())
        return found

    patch.setattr(compiler, "get_compile_options", get_compile_options)


@pytest.fixture(autouse=True)
def _free_programs():
    """Each compiled program maps some memory, of which a process may map 65,530 pieces on Linux."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The test runs in float32, and once more in float64 with JAX's x64 mode."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def run_python():
    """Runs a program in a process of its own, with other environment variables, and returns stdout.

    For what depends on XLA's flags, which a process reads once. ``None`` removes a variable.
    """

    def run(program, **environment):
        path = os.pathsep.join(entry for entry in sys.path if entry)
        variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path} | environment
        variables = {name: value for name, value in variables.items() if value is not None}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
