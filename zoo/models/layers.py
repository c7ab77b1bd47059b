"""Parts that two families share. None holds random state: what is random takes a key."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from zoo.errors import unknown

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

ATTENDED = "attended"  # names what a kernel of attention makes, in which no policy sees products
_policies = jax.checkpoint_policies
_attended = _policies.save_only_these_names(ATTENDED)

Policy = Literal["none", "full", "dots", "dots_no_batch"]
REMAT: dict[Policy, Any] = {
    "none": None,
    "full": _policies.nothing_saveable,
    "dots": _policies.save_from_both_policies(_policies.dots_saveable, _attended),
    "dots_no_batch": _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable, _attended),
}


def resolve_dtype(name: str) -> Any:
    """The compute dtype of a name; "auto" is bfloat16 on TPU and GPU, float32 on CPU."""
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if name not in DTYPES:
        raise unknown("dtype", name, ["auto", *DTYPES])
    return DTYPES[name]


@jax.custom_vjp
def relu2(x: jax.Array) -> jax.Array:
    """max(x, 0)² (So et al. 2021, arXiv:2109.08668). Its gradient keeps x alone, and no mask of it."""
    return jnp.square(jnp.maximum(x, 0))


relu2.defvjp(lambda x: (relu2(x), x), lambda x, gradient: (2 * jnp.maximum(x, 0) * gradient,))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · scale over the last axis, in float32 (Zhang and Sennrich 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * _along_last(scale, x)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) · scale + bias over the last axis, in float32 (Ba et al. 2016).

    The variance is the mean square less the mean's, as in flax: a TPU sums both as it makes x, and reads x once less.
    The gradient keeps x, and two numbers a row: there that is faster than what follows from each operation.
    """
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> tuple[jax.Array, Any]:
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.mean(jnp.square(y), axis=-1, keepdims=True) - jnp.square(mean), 0)
    rate = jax.lax.rsqrt(variance + eps)
    y = (y - mean) * rate * _along_last(scale, x)
    return (y if bias is None else y + _along_last(bias, x)).astype(x.dtype), (x, scale, bias, mean, rate)


def _layer_norm_backward(eps: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, scale, bias, mean, rate = kept
    gradient = gradient.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * rate
    inner = gradient * _along_last(scale, x)
    average = lambda y: jnp.mean(y, axis=-1, keepdims=True)
    dx = rate * (inner - average(inner) - normed * average(inner * normed))
    summed = lambda y: jnp.sum(y, axis=tuple(range(y.ndim - 1)))
    return dx.astype(x.dtype), summed(gradient * normed), None if bias is None else summed(gradient)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def unstack(tree: Any, layers: int) -> list[Any]:
    """The trees of single layers that are stacked in `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    # The gradient of one split is one concatenation; that of many slices is a sum of as many padded arrays.
    parts = [jax.lax.split(leaf, (1,) * layers) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [part[i][0] for part in parts]) for i in range(layers)]


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and divides the others by 1 - rate; identity without a key."""
    if rate == 0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def remat(fn: Callable[..., Any], policy: str, in_scan: bool = False) -> Callable[..., Any]:
    """`fn`, whose gradient keeps only what the policy names and computes the rest again.

    none: keep all; full: keep only the inputs; dots: keep the results of matrix products, and of attention by a kernel;
    dots_no_batch: of those products alone that have no batch dimension, so not attention's scores. A scan already keeps
    the compiler from merging the second computation with the first; outside of one, a barrier must.
    """
    if policy not in REMAT:
        raise unknown("remat policy", policy, REMAT)
    return fn if policy == "none" else jax.checkpoint(fn, policy=REMAT[policy], prevent_cse=not in_scan)


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """`x`, under jit, laid out by `spec` on the mesh of `jax.set_mesh`; a no-op without one.

    `spec` has an entry for each dimension. Axes that do not divide theirs are left out, as for parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not isinstance(x, jax.core.Tracer):
        return x
    entries = [dividing(axes, size, mesh) for size, axes in zip(x.shape, spec, strict=True)]
    return jax.lax.with_sharding_constraint(x, P(*entries))


def dividing(axes: Any, size: int, mesh: Any) -> Any:
    """The mesh axes of a dimension, or None when they do not divide it."""
    names = axes if isinstance(axes, tuple) else (axes,)
    return axes if size % math.prod(mesh.shape[name] for name in names if name is not None) == 0 else None
