"""`zoo doctor`: what this machine trains on, and what would stop it.

Every probe is given what it looks at, so that it can be shown a machine that is not there. That jax does not start is
one of the things to explain, so none needs it: `python -m zoo.doctor` works where even the `zoo` command does not.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

TPU_FILES, GPU_FILES = ("accel[0-9]*", "vfio/[0-9]*"), ("nvidia[0-9]*",)  # in /dev
PRODUCT, LOCK = "sys/class/dmi/id/product_name", "tmp/libtpu_lockfile"
# What jax drives its devices with, and the extra of jax that asks for it
LIBRARIES = {"jaxlib": "", "libtpu": "tpu", "jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13"}
OPTIONAL = {"tensorboardx": "TensorBoard's events", "gcsfs": "run folders on gs://", "gguf": "weights in GGUF files"}
MENUS = {
    "Colab": "Runtime > Change runtime type > v5e-1 TPU",
    "Kaggle": "Settings > Accelerator > TPU v5e-8",
}
GIB = 2**30
LOW, FULL = 5 * GIB, GIB  # bytes of free disk to warn of, and too few to save in


@dataclass(frozen=True)
class Finding:
    """A row of the report and, where something is wrong, what mends it."""

    name: str
    """What was looked at."""
    found: str
    """What was seen."""
    problem: str = ""
    """What is wrong; empty where all is well."""
    mend: str = ""
    """The command that mends it, or the menu of a notebook's page."""
    stops: bool = False
    """Whether training would not start because of it, or not be saved."""


def installed_packages() -> dict[str, str]:
    """Versions of all that this Python has installed, by names in small letters with hyphens."""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        found.setdefault(_plain(package.name), package.version)  # the first on the path is the one that is imported
    return found


def constraints(installed: Mapping[str, str]) -> str:
    """Lines for `pip install --constraint` that keep jax, what drives its devices, and numpy as they are."""
    held = ("jax", "jaxlib", "libtpu", "numpy")
    names = sorted(name for name in installed if name in held or name.startswith("jax-cuda"))
    return "".join(f"{name}=={installed[name]}\n" for name in names)


def place(environ: Mapping[str, str], product: Path) -> str:
    """Whose machine this is: "Kaggle", "Colab", "Google Compute Engine" (so its firmware says), or "" for another."""
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:  # before Colab, on whose image that of Kaggle is built
        return "Kaggle"
    if "COLAB_RELEASE_TAG" in environ:
        return "Colab"
    name = product.read_text().strip() if product.exists() else ""
    return name if name == "Google Compute Engine" else ""


def device_files(dev: Path, patterns: Iterable[str]) -> list[Path]:
    """The accelerators that the kernel shows, whether or not jax can use them."""
    return sorted(path for pattern in patterns for path in dev.glob(pattern))


def holders(proc: Path, files: Sequence[Path], own: int) -> dict[int, str]:
    """Command lines of the processes that have one of the files open, by number; without `own`.

    Only root sees those of other users.
    """
    names, found = {str(path) for path in files}, {}
    for folder in proc.glob("[0-9]*"):
        try:
            if int(folder.name) != own and any(os.readlink(link) in names for link in (folder / "fd").iterdir()):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace").strip()
        except OSError:  # it has ended, or is not ours to look at
            continue
    return dict(sorted(found.items()))


def check_holders(found: Mapping[int, str], wanted: bool) -> Finding:
    """Whether another process has the TPU; `wanted` tells whether training would take it."""
    if not found:
        return Finding("TPU held by", "no other process")
    shown = "; ".join(f"process {number}: {command[:80]}" for number, command in found.items())
    reason = "a TPU serves one process at a time"
    if any("kernel" in command for command in found.values()):
        reason += "; in a notebook, train in the notebook's own process"
    return Finding("TPU held by", shown, reason, f"kill {' '.join(map(str, found))}", stops=wanted)


def check_lock(path: Path, uid: int, wanted: bool) -> Finding:
    """Whether the user `uid` can open the file by which libtpu keeps a second process off the TPU."""
    if not path.exists():
        return Finding("TPU lock", "none")
    owner = path.stat().st_uid
    if uid in (0, owner):
        return Finding("TPU lock", str(path))
    reason = f"it was left by user {owner}, so that libtpu cannot open it"
    return Finding("TPU lock", str(path), reason, f"sudo rm -f {path}", stops=wanted)


def check_versions(installed: Mapping[str, str], requires: Sequence[str], failed: bool) -> list[Finding]:
    """Whether jax has the jaxlib, libtpu and CUDA plugin that it was released with, by its own requirements.

    Unless jax has `failed` to come up on an accelerator, another libtpu or plugin is only told: Colab pairs its own.
    """
    if "jax" not in installed:
        return [Finding("jax", "not installed", "nothing works without it", "pip install jax", stops=True)]
    jax = installed["jax"]
    rows = [Finding("jax", jax)]
    for name, extra in LIBRARIES.items():
        if name not in installed:
            continue
        row = Finding(name, installed[name])
        for requirement in _under(requires, extra):
            if _plain(requirement.name) != name or requirement.specifier.contains(installed[name], prereleases=True):
                continue
            released = f"jax {jax} was released with {requirement.specifier}"
            if extra and not failed:
                row = Finding(name, f"{installed[name]} ({released})")
            else:
                again = f'pip install "jax[{extra}]=={jax}"' if extra else f'pip install "jax=={jax}"'
                row = Finding(name, installed[name], released, again, stops=not extra)
        rows.append(row)
    return rows


def check_packages(installed: Mapping[str, str], requires: Sequence[str]) -> list[Finding]:
    """Whether all that the zoo requires is there and new enough, and which of its optional packages are not."""
    rows, needed = [], _under(requires, "")
    for requirement in needed:
        version = installed.get(_plain(requirement.name), "not installed")
        if version == "not installed" or not requirement.specifier.contains(version, prereleases=True):
            command = f'pip install "{requirement.name}{requirement.specifier}"'
            rows.append(Finding(requirement.name, version, f"the zoo needs {requirement}", command, stops=True))
    if needed and not rows:
        rows.append(Finding("packages", f"all {len(needed)} that the zoo needs"))
    for name, purpose in OPTIONAL.items():
        if name not in installed:
            rows.append(Finding(name, "not installed", f"needed only for {purpose}", f"pip install {name}"))
    return rows


def start_devices() -> list[Any]:
    """The devices of this process, as training finds them. Raises what jax does where it finds none."""
    import jax

    return list(jax.local_devices())


def check_backend(
    devices: Sequence[Any],
    failure: str,
    wanted: str,
    files: Sequence[Path],
    installed: Mapping[str, str],
    site: str,
) -> Finding:
    """What jax came up on, against what the environment wanted (JAX_PLATFORMS) and the device files promise.

    Without devices, `failure` says why there are none.
    """
    found = devices[0].platform if devices else "none"
    if found not in ("none", "cpu"):
        return Finding("backend", found)
    if found == "cpu" and wanted.startswith("cpu"):
        kept_off = f"JAX_PLATFORMS={wanted} keeps it off {files[0]}" if files else ""
        return Finding("backend", found, kept_off, "unset JAX_PLATFORMS" if files else "")
    if found == "cpu" and not wanted and not files:
        menu = MENUS.get(site, "")
        return Finding("backend", found, "this session has no accelerator" if menu else "", menu)
    promised = f"JAX_PLATFORMS is {wanted}" if wanted else f"there is {files[0]}" if files else ""
    reason = failure or f"jax came up on the CPU, though {promised}"
    return Finding("backend", found, reason, _remedy(wanted, files, installed), stops=True)


def check_devices(devices: Sequence[Any]) -> Finding:
    """How many devices of which kind there are, and their memory."""
    memory = [device.memory_stats() or {} for device in devices]
    found = f"{len(devices)} × {devices[0].device_kind}"
    if all("bytes_limit" in stats for stats in memory):
        least, used = min(m["bytes_limit"] for m in memory), max(m.get("bytes_in_use", 0) for m in memory)
        found += f", {least / GIB:.2f} GiB of memory each for jax, {used / GIB:.2f} GiB in use"
    return Finding("devices", found)


def check_cache(environ: Mapping[str, str], home: Path) -> Finding:
    """Where compiled programs are kept for the next run, and how much that is."""
    named = environ.get("JAX_COMPILATION_CACHE_DIR") or str(home / ".cache" / "zoo" / "compiled")
    if "://" in named:
        return Finding("compile cache", named)
    folder = Path(named)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = f"{there} cannot be written to, so every run compiles anew"
        return Finding("compile cache", named, reason, "export JAX_COMPILATION_CACHE_DIR=/tmp/compiled")
    programs = list(folder.glob("*-cache"))
    size = sum(path.stat().st_size for path in programs)
    return Finding("compile cache", f"{named}: {len(programs)} programs, {size / 2**20:.0f} MiB")


def check_disk(free: int, folder: Path) -> Finding:
    """Whether the disk under a folder has room for checkpoints, `free` bytes being left."""
    found = f"{free / GIB:.1f} GiB free under {folder}"
    if free >= LOW:
        return Finding("disk", found)
    command = "rm -rf ~/.cache/zoo/compiled && pip cache purge"
    return Finding("disk", found, "checkpoints may not fit", command, stops=free < FULL)


def examine(
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    installed: Mapping[str, str] | None = None,
    begin: Callable[[], Sequence[Any]] = start_devices,
) -> list[Finding]:
    """All findings about a machine, whose files lie under `root`. jax is started last, and not on a TPU in use."""
    installed = installed_packages() if installed is None else installed
    wanted, site = environ.get("JAX_PLATFORMS", ""), place(environ, root / PRODUCT)
    tpus, gpus = device_files(root / "dev", TPU_FILES), device_files(root / "dev", GPU_FILES)
    system = [site, platform.system(), f"Python {platform.python_version()}"]
    rows = [
        Finding("machine", ", ".join(part for part in system if part)),
        Finding("device files", ", ".join(map(str, [*tpus, *gpus])) or "of no accelerator"),
    ]
    held: dict[int, str] = {}
    if tpus:
        held = holders(root / "proc", [*tpus, root / LOCK], os.getpid())
        for_tpu = not wanted.startswith("cpu")
        rows += [check_holders(held, for_tpu), check_lock(root / LOCK, os.getuid(), for_tpu)]
    devices: Sequence[Any] = ()
    if held and not wanted.startswith("cpu"):
        backend = Finding("backend", "not started, since the TPU is held")
    else:
        devices, failure = _try(begin)
        backend = check_backend(devices, failure, wanted, [*tpus, *gpus], installed, site)
    rows += [backend, *([check_devices(devices)] if devices else [])]
    rows += check_versions(installed, _requires("jax"), backend.stops)
    rows += check_packages(installed, _requires("zoo-jax"))
    rows.append(check_cache(environ, Path.home()))
    rows.append(check_disk(shutil.disk_usage(Path.cwd()).free, Path.cwd()))
    return rows


def show(rows: Sequence[Finding]) -> None:
    """Prints the rows as a table, and below it every problem with what mends it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in rows:
        style, mark = ("red", "STOP") if row.stops else ("yellow", "note") if row.problem else ("green", "ok")
        table.add_row(Text(mark, style), Text(row.name), Text(row.found))
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(Text(f"\n{row.name}: {row.problem}\n    {row.mend}"))
    stops = [row.name for row in rows if row.stops]
    verdict = f"training would stop at: {', '.join(stops)}" if stops else "nothing here stops training"
    console.print(Text(f"\n{verdict}"))


def main() -> int:
    """Examines this machine and shows what was found; 1 when a problem would stop training, else 0."""
    rows = examine()
    show(rows)
    return int(any(row.stops for row in rows))


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _requires(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:  # such as the zoo itself, run from a clone that was not installed
        return []


def _under(requires: Sequence[str], extra: str) -> list[Any]:
    """The requirements that hold for an extra, or without one."""
    from packaging.requirements import Requirement

    read = [Requirement(line) for line in requires]
    return [each for each in read if each.marker is None or each.marker.evaluate({"extra": extra})]


def _try(begin: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], str]:
    """The devices, or why there are none."""
    try:
        return begin(), ""
    except Exception as error:  # whatever jax, or the import of it, meets first
        return (), next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _remedy(wanted: str, files: Sequence[Path], installed: Mapping[str, str]) -> str:
    """What to try where jax has not come up on an accelerator."""
    if wanted and not wanted.startswith("cpu") and not files:
        return "unset JAX_PLATFORMS"
    jax = f"=={installed['jax']}" if "jax" in installed else ""
    if not files:
        return f'pip install --force-reinstall "jax{jax}"'
    gpu = files[0].name.startswith("nvidia")
    if not any(name.startswith("jax-cuda" if gpu else "libtpu") for name in installed):
        return f'pip install "jax[{"cuda12" if gpu else "tpu"}]{jax}"'
    return f"JAX_PLATFORMS={'cuda' if gpu else 'tpu'} python -c 'import jax; jax.devices()'  # says why"


if __name__ == "__main__":
    sys.exit(main())
