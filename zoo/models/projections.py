"""What is done with weights: products by the names of their dimensions, rows of tables, gathering over a mesh."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from zoo.models.layers import constrain


def project(equation: str, x: jax.Array, weight: jax.Array, bias: jax.Array | None, dtype: Any = None) -> jax.Array:
    """einsum of x and a weight in x's dtype, plus a bias laid along the dimensions that the weight gave.

    The result is of x's dtype too, or of `dtype`.
    """
    y = jnp.einsum(equation, x, weight.astype(x.dtype), preferred_element_type=dtype or x.dtype)
    return _plus(y, bias, *_parts(equation))


def project_few(
    equation: str, x: jax.Array, weight: jax.Array | list[jax.Array], bias: jax.Array | None, dtype: Any = None
) -> jax.Array:
    """`project` for few rows of x, with a weight that `outputs_first` has laid out for it.

    A CPU reads each row of such a weight once, and up to twice as fast as one that it must lay out anew.
    """
    parts = weight if isinstance(weight, list) else [weight]
    rows, names, target = _parts(equation)
    outputs = "".join(name for name in names if name not in rows)
    inputs = "".join(name for name in names if name in rows)
    others = "".join(name for name in rows if name not in inputs)
    # Both barriers keep the compiler from moving the rows' transposes into the product, which doubles its time.
    x = jax.lax.optimization_barrier(x.transpose([rows.index(name) for name in inputs + others]))
    order = f"{outputs}{inputs},{inputs}{others}->{outputs}{others}"
    ys = [jnp.einsum(order, part.astype(x.dtype), x, preferred_element_type=dtype or x.dtype) for part in parts]
    y = jnp.concatenate(jax.lax.optimization_barrier(ys))
    return _plus(y.transpose([(outputs + others).index(name) for name in target]), bias, rows, names, target)


def whole(rules: Sequence[tuple[str, P]], name: str, weight: jax.Array, dtype: Any) -> jax.Array:
    """A weight that a rule splits, as it is used: of that dtype, and gathered over the mesh's `fsdp` axis.

    Its last dimensions are those of its rule; a layer's weight has no axis of layers. Others are left as they are. The
    partitioner passes pieces of weights around instead, each product a loop over them, with which a step of Llama 3.2
    1B on eight chips takes twice as long.
    """
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
    if spec is None or not _fsdp():
        return weight
    parts = [axes if isinstance(axes, tuple) else (axes,) for axes in spec]
    kept = [tuple(axis for axis in axes if axis not in (None, "fsdp")) for axes in parts]
    return constrain(weight.astype(dtype), P(*kept[-weight.ndim :]))


def apart(weights: Any) -> Any:
    """A layer's weights, of which the compiler may do nothing together with those of other layers.

    It casts all at once otherwise, and joins all gradients before it widens them: 5 % of GPT-2's step on a TPU. Where
    `whole` gathers weights it has no such chance, and would hide less of the gathering.
    """
    return weights if _fsdp() else jax.lax.optimization_barrier(weights)


def _fsdp() -> bool:
    """Whether weights are split over the mesh that is in use."""
    return jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1


@jax.custom_vjp
def look_up(table_vd: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table, float32. Their gradients are summed as float32, and only the sum is of the table's dtype."""
    return table_vd[ids].astype(jnp.float32)


def _look_up_forward(table_vd: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return look_up(table_vd, ids), (table_vd, ids)


def _look_up_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    table_vd, ids = kept
    return jnp.zeros(table_vd.shape, jnp.float32).at[ids].add(gradient).astype(table_vd.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


def outputs_first(params: dict[str, jax.Array], inputs: Mapping[str, int], alone: Sequence[str] = ()) -> dict[str, Any]:
    """The parameters, those in `inputs` with so many of their first axes, the inputs, moved behind the others.

    Those in `alone`, whose products have no others beside them, come as a list of two halves of their outputs. A CPU
    gives its cores 256 outputs at a time: a product of 576 is three such tasks, two halves of it are four.
    """

    def moved(p: jax.Array, n: int) -> jax.Array:
        return jnp.moveaxis(p, range(n), range(p.ndim - n, p.ndim))

    laid = {name: moved(p, inputs.get(name, 0)) for name, p in params.items()}
    return laid | {name: jnp.array_split(laid[name], 2) for name in alone}


def _parts(equation: str) -> tuple[str, str, str]:
    """The names of the dimensions of (x, weight, result)."""
    operands, target = equation.split("->")
    rows, names = operands.split(",")
    return rows, names, target


def _plus(y: jax.Array, bias: jax.Array | None, rows: str, names: str, target: str) -> jax.Array:
    if bias is None:
        return y
    return _shifted(y, bias.astype(y.dtype), target, "".join(name for name in target if name in names))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted(y: jax.Array, bias: jax.Array, target: str, along: str) -> jax.Array:
    """y plus a bias along some of the dimensions of y, which `target` names."""
    return y + bias.reshape([size if name in along else 1 for name, size in zip(target, y.shape, strict=True)])


def _shifted_forward(y: jax.Array, bias: jax.Array, target: str, along: str) -> tuple[jax.Array, None]:
    return _shifted(y, bias, target, along), None


def _shifted_backward(target: str, along: str, _: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    if target.endswith(along):  # a TPU sums such rows as it makes them
        axes = tuple(range(len(target) - len(along)))
        return gradient, jnp.sum(gradient, axes, dtype=jnp.float32).astype(gradient.dtype)
    # A sum over other rows as a product with ones, of which a TPU takes eight at least: four times as fast as a sum.
    rest = "".join(name for name in target if name not in along)
    ones = jnp.ones([8, *(gradient.shape[target.index(name)] for name in rest)], gradient.dtype)
    with jax.named_scope("as_product"):
        sums = jnp.einsum(f"{target},N{rest}->N{along}", gradient, ones, precision="highest")
    return gradient, sums[0]


_shifted.defvjp(_shifted_forward, _shifted_backward)
