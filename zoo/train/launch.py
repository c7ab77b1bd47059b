"""From the command line to a recipe's `main`: presets, flags, devices, and errors that a person can read."""

import contextlib
import ctypes
import dataclasses
import errno
import os
import re
import shlex
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import tyro

from zoo.errors import ZooError, unknown
from zoo.train.run import Run

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
TPU_FILES = ("accel[0-9]*", "vfio/[0-9]*")  # in /dev; of a GPU that it cannot use, jax itself warns


def launch(
    main: Callable[[Any, Run], None], presets: Mapping[str, Any], about: str | None, argv: list[str] | None = None
) -> None:
    """Runs `main(config, run)` for `SCRIPT [PRESET] [--flags]`; the first preset is the default.

    Exits with code 2 and one message for what the user can mend.
    """
    argv = sys.argv[1:] if argv is None else argv
    script = Path(sys.argv[0]).stem
    try:
        preset, config = parse(argv, script, presets, about)
        if not config.run:
            name = script if preset == next(iter(presets)) else f"{script}-{preset}"
            config = dataclasses.replace(config, run=f"runs/{name}")
        start_jax()
        main(config, Run(config, shlex.join(["python", f"experiments/{script}.py", *argv])))
    except ZooError as error:
        sys.exit(_fail(str(error)))
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and os.strerror(errno.ENOSPC) not in str(error):  # checkpoints are written by threads of others
            raise
        sys.exit(_fail(f"{error}; free some space and run the same command again, or choose another --run folder"))


def parse(argv: list[str], script: str, presets: Mapping[str, Any], about: str | None) -> tuple[str, Any]:
    """The preset that `[PRESET] [--flags]` names, or the first of all, and its config with the flags laid over it.

    Raises ZooError for no preset; help and misspelt flags exit as in tyro.
    """
    preset, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (next(iter(presets)), argv)
    if preset not in presets:
        raise unknown("preset", preset, presets)
    prog, listed = f"experiments/{script}.py", ", ".join(presets)
    description = f"{(about or '').strip()}\n\nPresets (python {prog} PRESET --flags): {listed}."
    found = tyro.cli(type(presets[preset]), prog=prog, description=description, default=presets[preset], args=flags)
    return preset, found


def start_jax() -> None:
    """Devices, the compile cache and, on one of several hosts, the others, which run the same command.

    Raises ZooError without devices, and for the CPU in place of an accelerator that is asked for or there.
    """
    _keep_freed_memory()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "zoo" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    wanted = os.environ.get("JAX_PLATFORMS", "")
    asked = wanted or " ".join(str(path) for pattern in TPU_FILES for path in Path("/dev").glob(pattern))
    try:
        if several_hosts(os.environ, jax.config.values["jax_platforms"]):  # to be joined before a device is touched
            number = lambda name: int(os.environ[name]) if name in os.environ else None
            jax.distributed.initialize(num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID"))
        if jax.default_backend() == "cpu" and asked and not wanted.startswith("cpu"):
            raise RuntimeError("jax came up on the CPU")
    except (RuntimeError, AssertionError) as error:  # the latter of a jax that knows no such platform
        reason = str(error).partition("\n")[0] or "jax has none"
        raise ZooError(
            f"no device for {asked or 'jax'}: {reason}; `zoo doctor` says what mends it, JAX_PLATFORMS=cpu does without"
        ) from error


def several_hosts(environ: Mapping[str, str], platforms: str | None) -> bool:
    """Whether this machine is one of several: a coordinator is named, or its TPU chips are part of a larger slice, or
    of several slices. GKE tells so in the environment, and a Cloud TPU VM's metadata server where that does not.

    `platforms` are those that jax will try: it puts "tpu" first where it finds chips, unless JAX_PLATFORMS says more.
    """
    if "JAX_COORDINATOR_ADDRESS" in environ:
        return True
    if not (platforms or "").startswith("tpu"):
        return False
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    slices = f"MEGASCALE_NUM_SLICES: {environ.get('MEGASCALE_NUM_SLICES', 1)}"
    if not hosts and "TPU_SKIP_MDS_QUERY" not in environ:  # which jax sets where there are no chips
        hosts, slices = _metadata("worker-network-endpoints"), _metadata("tpu-env")
    return "," in hosts or re.search(r"MEGASCALE_NUM_SLICES: *'?0*([2-9]|1\d)", slices) is not None


def _metadata(name: str) -> str:
    """What Google's metadata server knows of this machine under a name, or ""."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read().decode()
    return ""


def _keep_freed_memory() -> None:
    """Tells glibc's malloc, where there is one, to keep what is freed. To be called before jax starts its threads.

    On a CPU, XLA takes its scratch memory anew at every step. Blocks above 32 MB come straight from the kernel,
    page by zeroed page, which makes a small decoder's step up to 1.5 times longer.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
