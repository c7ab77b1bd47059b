"""The mesh, and where every array lies on it.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits the
parameters only. Any size may be 1: the same step runs on one chip and on a pod.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
FSDP_MIN_SIZE = 2**14  # scalars; below this, gathering a parameter costs more than keeping it whole

Rules = Sequence[tuple[str, P]]


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are divided. One size may be -1: all that are left."""

    data: int = -1
    """Groups that each see a part of the batch."""
    fsdp: int = 1
    """Groups that split the batch, and parameters and optimizer state as well."""
    tensor: int = 1
    """Groups that split the parameters only."""


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of axes (data, fsdp, tensor) over the devices; one process may use only the first few.

    TPU slices follow each other along `data`: all that crosses the network between them is the sum of gradients.
    Raises ZooError when the sizes do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    asked = " ".join(f"--mesh.{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ZooError(f"mesh sizes must be positive, and at most one -1; got {asked}")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    total = math.prod(sizes)
    if total > len(devices) or len(devices) % known or (jax.process_count() > 1 and total != len(devices)):
        raise ZooError(f"{asked} needs {total} devices, there are {len(devices)}; choose sizes whose product is that")
    types = (AxisType.Auto,) * 3
    if total < len(devices):
        return Mesh(np.array(devices[:total]).reshape(sizes), AXES, axis_types=types)
    slices = [getattr(device, "slice_index", 0) for device in devices]
    count = len(set(slices))
    if sizes[0] % count:
        raise ZooError(f"{asked}: there are {count} TPU slices, so --mesh.data must be a multiple of {count}")
    parts = [[device for device, at in zip(devices, slices, strict=True) if at == i] for i in sorted(set(slices))]
    inner = (sizes[0] // count, *sizes[1:])  # of a slice, whose devices jax orders by their physical links
    grids = [jax.make_mesh(inner, AXES, axis_types=types, devices=part).devices for part in parts]
    return Mesh(np.concatenate(grids), AXES, axis_types=types)


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ZooError unless every micro-batch divides evenly over the data and fsdp axes."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch < 1 or accumulate < 1 or batch % ways:
        near = max(ways, round(batch / ways) * ways)
        raise ZooError(
            f"--batch {batch} does not divide by mesh.data {mesh.shape['data']} × mesh.fsdp {mesh.shape['fsdp']}"
            f" × accumulate {accumulate} = {ways}; try --batch {near}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device, and so every process, holds whole."""
    return NamedSharding(mesh, P())


def gather(tree: Any, mesh: Mesh) -> Any:
    """Host copies of arrays, however they are split over devices and processes. All processes must call it."""
    return jax.device_get(jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree))


def path_name(path: tuple[Any, ...]) -> str:
    """The keys of a pytree path, joined by slashes: "blocks/mlp/in"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their slash-joined paths."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def param_spec(name: str, shape: tuple[int, ...], rules: Rules, mesh: Mesh) -> P:
    """The first rule whose regex is found in the name, else the largest divisible dimension on fsdp.

    Axes of a rule that do not divide their dimension are left out.
    """
    for pattern, spec in rules:
        if re.search(pattern, name):
            entries = [
                axis if axis is None or size % math.prod(mesh.shape[a] for a in _tuple(axis)) == 0 else None
                for size, axis in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True)
            ]
            return P(*entries)
    fsdp = mesh.shape["fsdp"]
    divisible = [i for i, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < FSDP_MIN_SIZE or not divisible:
        return P()
    largest = max(divisible, key=lambda i: shape[i])
    return P(*("fsdp" if i == largest else None for i in range(len(shape))))


def state_shardings(state: Any, rules: Rules, mesh: Mesh) -> Any:
    """Shardings of a whole train state: `params` and `stats` (which may hold frozen weights) by the rules, and
    every leaf of `opt` and `ema` that has the name and shape of a parameter like that parameter; all else is
    replicated."""
    shapes = {name: leaf.shape for name, leaf in named_leaves(state["params"]).items()}
    specs = {name: param_spec(name, shape, rules, mesh) for name, shape in shapes.items()}

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = path_name(path).split("/")
        if keys[0] == "stats":
            return NamedSharding(mesh, param_spec(path_name(path), leaf.shape, rules, mesh))
        for start in range(1, len(keys)):  # the longest suffix that names a parameter
            name = "/".join(keys[start:])
            if shapes.get(name) == leaf.shape:
                return NamedSharding(mesh, specs[name])
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def place_batch(batches: Any, step: int, mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch of a step on the mesh. `batches.rows(step, slice)` is asked once, for the rows of the
    `batches.batch` that this process holds."""
    size, sharding = batches.batch, NamedSharding(mesh, BATCH)
    first, last = _rows_here(size, sharding)
    local = batches.rows(step, slice(first, last))
    if (first, last) == (0, size) and jax.process_count() == 1:
        return jax.device_put(local, sharding)

    def spread(value: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return value[start - first : stop - first]

        return jax.make_array_from_callback((size, *value.shape[1:]), sharding, part)

    return jax.tree.map(spread, local)


@functools.lru_cache(maxsize=32)
def _rows_here(size: int, sharding: NamedSharding) -> tuple[int, int]:
    """First and last (exclusive) of the rows of a batch that this process holds."""
    indices = sharding.addressable_devices_indices_map((size,)).values()
    spans = [index[0].indices(size)[:2] for index in indices if index is not None]
    return min(start for start, _ in spans), max(stop for _, stop in spans)


def _tuple(axis: Any) -> tuple[str, ...]:
    return axis if isinstance(axis, tuple) else (axis,)
