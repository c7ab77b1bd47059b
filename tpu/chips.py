"""The chips: what a plan needs to know of each, and how a topology of them is described to the compiler."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from zoo.errors import ZooError, unknown


@dataclass(frozen=True)
class Chip:
    """One JAX device of a kind; on v2, v3 and 7x that is one of a chip's two cores."""

    hbm: float
    """GiB that a program may fill."""
    bandwidth: float
    """GB/s between HBM and the core."""
    link: float
    """GB/s over one link of the interconnect, one way."""
    network: float
    """GB/s that it sends to other slices, over the data centre's network."""
    clock: float
    """GHz of the core, by which the compiler's cycles become seconds."""
    ring: int
    """An axis of so many chips, or of a multiple, closes to a ring."""
    cube: bool = False
    """Only where all axes are such."""


# HBM: what the compiler says that a program has, when one does not fit. Bandwidth: the vendor's system pages. Links,
# rings and network: "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapter 2. Clock: peak FLOP/s over what
# all matrix units do in a cycle.
CHIPS = {
    "v4": Chip(hbm=31.25, bandwidth=1230, link=45, network=6.25, clock=1.05, ring=4, cube=True),
    "v5e": Chip(hbm=15.75, bandwidth=819, link=45, network=3.125, clock=1.5, ring=16),
    "v5p": Chip(hbm=95.74, bandwidth=2765, link=90, network=6.25, clock=1.75, ring=4, cube=True),
    "v6e": Chip(hbm=31.25, bandwidth=1640, link=90, network=12.5, clock=1.75, ring=16),
}


def devices_of(topology: str, slices: int = 1) -> tuple[Chip, list[Any]]:
    """The chip, and the devices to compile for, of a topology such as "v5e:2x4" or "v5p:2x2x2".

    Raises ZooError for a name that means none, and where libtpu is missing.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        raise unknown("TPU", kind, CHIPS)
    sizes = shape.split("x")
    if not shape or not all(size.isdigit() and int(size) for size in sizes):
        raise ZooError(f"topology {topology!r} should be KIND:SIZES, such as {kind}:2x4")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it asks the network which machine this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if all(int(size) == 1 for size in sizes):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"
    from jax.experimental import topologies

    try:
        with quiet():
            found = topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except Exception as error:  # of libtpu; its texts differ with the version
        reason = str(error).strip().splitlines()[0]
        hint = 'pip install -e ".[tpu]"' if "libtpu" in reason or "plugin" in reason.lower() else "another topology"
        raise ZooError(f"cannot plan for {topology}: {reason}; try {hint}") from error
    return CHIPS[kind], list(found)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what libtpu writes to the terminal about the machine that it is not on."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


@contextlib.contextmanager
def as_on_tpu() -> Iterator[None]:
    """While it lasts models choose what they would on a TPU, such as bfloat16."""
    before = jax.default_backend
    jax.default_backend = lambda: "tpu"
    try:
        yield
    finally:
        jax.default_backend = before
