"""Low-rank adapters: fine-tuning that trains two thin factors beside each frozen matrix.

Hu et al. 2021, arXiv:2106.09685. Everything works on parameter trees, as `functional.split` gives them, so no
model knows of it: a loss is taken at `merged(frozen, adapters, config)` and differentiated by the adapters.
"""

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from zoo.errors import ZooError, unknown
from zoo.models.functional import Tree, count, flatten, unflatten

Matrices = Sequence[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]]


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices are adapted and how. The defaults adapt queries and values, as the paper does."""

    rank: int = 8
    """Width between the two factors."""
    alpha: float = 16.0
    """The product of the factors is scaled by alpha / rank."""
    targets: tuple[str, ...] = (r"blocks/[qv]$",)
    """Patterns (regular expressions) of the paths of matrices to adapt."""


def init(key: jax.Array, params: Tree, config: LoraConfig, matrices: Matrices) -> Tree:
    """New adapters: the tree of `params` with {"a", "b"}, float32, in place of each target, and nothing else.

    `matrices` is a model's table of (path regex, (reduction axes, output axes)), such as `decoder.MATRICES`; the
    axes before those, such as that of stacked layers, are a batch of matrices. A [batch, reduction, rank] is
    normal with variance 1 / (reduction size), and B [batch, rank, output] is zero, so that training starts at the
    frozen network. An adapter's start depends on `key` and its path alone, not on the other targets. `params` may
    be shapes. Raises ZooError for a bad rank, for no targets, and for a target that names no matrix.
    """
    if config.rank < 1 or not config.targets:
        raise ZooError(f"LoRA of rank {config.rank} and {len(config.targets)} targets; give at least 1 of both")
    flat = flatten(params)
    splits = {name: _split(name, leaf.ndim, axes) for name, leaf in flat.items() if (axes := _axes(name, matrices))}
    adapters: dict[str, jax.Array] = {}
    for name in sorted({name for target in config.targets for name in _matches(target, splits)}):
        shape, (batch, reduced) = flat[name].shape, splits[name]
        a_shape = (*shape[: batch + reduced], config.rank)
        std = math.prod(shape[batch : batch + reduced]) ** -0.5
        a = std * jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), a_shape, jnp.float32)
        b = jnp.zeros((*shape[:batch], config.rank, *shape[batch + reduced :]), jnp.float32)
        adapters |= {f"{name}/a": a, f"{name}/b": b}
    return unflatten(adapters)


def merged(params: Tree, adapters: Tree, config: LoraConfig) -> Tree:
    """The parameters with W + alpha / rank · A B in place of each adapted W; a new tree, for training and for use.

    Gradients flow into the adapters only. For its time a step holds one more copy of the adapted matrices, and one
    of their gradients; an optimizer's state is that of the adapters alone. The sum is rounded to the dtype of W.
    Raises ZooError when the adapters do not fit the parameters or the config.
    """
    flat = jax.tree.map(jax.lax.stop_gradient, flatten(params))
    scale = config.alpha / config.rank
    for name, (a, b) in _pairs(adapters).items():
        w = _known(name, flat)
        letters = "stuvwxyz"[: w.ndim]
        batch = a.ndim + b.ndim - 2 - w.ndim
        split = a.ndim - 1  # the first output axis of W
        shapes = (*w.shape[:split], config.rank), (*w.shape[:batch], config.rank, *w.shape[split:])
        if batch < 0 or (a.shape, b.shape) != shapes:
            raise ZooError(
                f"adapters of {name} have shapes {a.shape} and {b.shape}, which do not fit {w.shape} "
                f"at rank {config.rank}; take the parameters and the config that they were made for"
            )
        equation = f"{letters[:split]}r,{letters[:batch]}r{letters[split:]}->{letters}"
        # A TPU would otherwise round both factors to bfloat16; over so few terms it costs little.
        delta = jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)
        flat[name] = (w.astype(jnp.float32) + scale * delta).astype(w.dtype)
    return unflatten(flat)


def originals(params: Tree, adapters: Tree) -> Tree:
    """The tree of those matrices alone that the adapters change: what to keep to be able to unmerge."""
    flat = flatten(params)
    return unflatten({name: _known(name, flat) for name in _pairs(adapters)})


def unmerged(params: Tree, base: Tree) -> Tree:
    """Merged parameters with the `originals` put back: the frozen network again, bit for bit.

    W + D - D is not W in floating point, and D is not even the same on another mesh, so nothing is subtracted.
    """
    flat, base = flatten(params), flatten(base)
    for name, w in base.items():
        if _known(name, flat).shape != w.shape:
            raise ZooError(f"{name} is {flat[name].shape} in the parameters and {w.shape} in the originals")
    return unflatten(flat | base)


def share(params: Tree, adapters: Tree) -> float:
    """Scalars that are trained, as a part of those of the network that they adapt. Shapes will do."""
    return count(adapters) / count(params)


def _matches(target: str, names: Any) -> list[str]:
    try:
        found = [name for name in names if re.search(target, name)]
    except re.error as error:
        raise ZooError(f"the LoRA target {target!r} is no regular expression: {error}") from error
    if not found:
        raise unknown("LoRA target", target, names)
    return found


def _axes(name: str, matrices: Matrices) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    return next((axes for pattern, axes in matrices if re.search(pattern, name)), None)


def _split(name: str, ndim: int, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, int]:
    """(axes of the batch, axes of the reduction) of a matrix whose axes come in the order batch, reduction, output."""
    (reduction, output) = axes
    batch = ndim - len(reduction) - len(output)
    if (*reduction, *output) != tuple(range(batch, ndim)):
        raise ZooError(f"{name} must have its axes in the order batch, reduction, output; its table says {axes}")
    return batch, len(reduction)


def _pairs(adapters: Tree) -> dict[str, tuple[jax.Array, jax.Array]]:
    flat = flatten(adapters)
    names = sorted({name.rpartition("/")[0] for name in flat})
    if sorted(flat) != [f"{name}/{factor}" for name in names for factor in "ab"]:
        raise ZooError(f"adapters are pairs of a and b under a matrix's path, and these hold {', '.join(sorted(flat))}")
    return {name: (flat[f"{name}/a"], flat[f"{name}/b"]) for name in names}


def _known(name: str, flat: Tree) -> Any:
    if name not in flat:
        raise unknown("parameter", name, flat)
    return flat[name]
