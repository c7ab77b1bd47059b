"""Every test runs on 8 simulated CPU devices, with strict dtype and rank promotion."""

import os
import pathlib

DEVICES = 8
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is what costs: without LLVM's optimisations it takes less than half as long, and computes the same.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"

import jax  # noqa: E402  (the flags above are read when jax starts)
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def devices():
    """Fails, never skips, when the simulated devices are missing."""
    assert jax.device_count() == DEVICES, f"tests need {DEVICES} CPU devices, jax has {jax.devices()}"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> pathlib.Path:
    """One compile cache for the session, of its workers and of the processes that they start."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder


@pytest.fixture(scope="session")
def assets() -> pathlib.Path:
    """The folder of real weights and text; tests that need it are skipped, with the reason, where it is absent."""
    folder = pathlib.Path(os.environ.get("ZOO_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no assets at {folder}; set ZOO_ASSETS to the folder of real weights")
    return folder
