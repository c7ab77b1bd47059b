"""Norm and rotation of queries and keys in one pass over them, as a Pallas kernel for TPUs.

The compiler makes several of it: the rotation is a product of its own, and the norm's gradient is found again by every
product that reads it. A head fills the lanes of a register here, and half of a head is a turn of the lanes away.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from zoo.models.layers import dividing

LANES = 128
ROWS = 512  # tokens at once, at most


def fits(x_bhtk: jax.Array) -> bool:
    """Whether heads fill registers, and tokens blocks of them."""
    return x_bhtk.shape[2] % LANES == 0 and x_bhtk.shape[3] == LANES


def norm_and_rotate(
    x_bhtk: jax.Array,
    cos_bti: jax.Array,
    sin_bti: jax.Array,
    scale_k: jax.Array | None = None,
    eps: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """`rms_norm` over each head where there is a scale, float32 [K], then the rotation of `positions.rotate`.

    Cosine and sine are float32 [B or 1, T, K/2]. TPU, or any platform with `interpret`; on a mesh each device does its
    own rows and heads.
    """
    cos_btk, sin_btk = (jnp.concatenate(pair, axis=-1) for pair in ((cos_bti, cos_bti), (-sin_bti, sin_bti)))
    scale_1k = jnp.ones((1, x_bhtk.shape[-1])) if scale_k is None else scale_k[None]
    local = functools.partial(_turned, None if scale_k is None else eps, interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        rows = dividing(("data", "fsdp"), x_bhtk.shape[0], mesh)
        spec = P(rows, dividing("tensor", x_bhtk.shape[1], mesh), None, None)
        table = P(rows if len(cos_bti) > 1 else None, None, None)
        local = jax.shard_map(local, in_specs=(spec, table, table, P(None, None)), out_specs=spec, check_vma=False)
    return local(x_bhtk, cos_btk, sin_btk, scale_1k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _turned(eps: float | None, interpret: bool, x: jax.Array, cos: jax.Array, sin: jax.Array, scale: jax.Array) -> Any:
    return _call(_forward, eps, interpret, (x,), cos, sin, scale)[0]


def _turned_forward(eps: float | None, interpret: bool, *inputs: jax.Array) -> tuple[jax.Array, Any]:
    return _turned(eps, interpret, *inputs), inputs


def _turned_backward(eps: float | None, interpret: bool, kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
    x, cos, sin, scale = kept
    dx, dscale = _call(_backward, eps, interpret, (x, gradient), cos, sin, scale)
    return dx, None, None, dscale  # positions have no gradient


_turned.defvjp(_turned_forward, _turned_backward)


def _call(kernel: Any, eps: float | None, interpret: bool, arrays: Any, cos: Any, sin: Any, scale: Any) -> Any:
    """The kernel over blocks of tokens, then rows, then heads; the blocks of a table are read anew when they change."""
    from jax.experimental import pallas as pl

    b, h, t, k = arrays[0].shape
    block = math.gcd(t, ROWS)
    one = pl.BlockSpec((None, None, block, k), lambda i, row, head: (row, head, i, 0))
    table = pl.BlockSpec((None, block, k), lambda i, row, head: (row if len(cos) > 1 else 0, i, 0))
    whole = pl.BlockSpec((1, k), lambda i, row, head: (0, 0))
    results = [jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype), jax.ShapeDtypeStruct((1, k), jnp.float32)]
    outputs = 1 if kernel is _forward else 2
    return pl.pallas_call(
        functools.partial(kernel, eps),
        grid=(t // block, b, h),
        in_specs=[*[one] * len(arrays), table, table, whole],
        out_specs=[one, whole][:outputs],
        out_shape=results[:outputs],
        interpret=interpret,
        name=f"norm_and_rotate{kernel.__name__}",
    )(*arrays, cos, sin, scale)


def _rate(x: jax.Array, eps: float | None) -> jax.Array:
    """One over the root mean square of each head, or 1 without a norm."""
    if eps is None:
        return jnp.ones((len(x), 1))
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def _half_a_turn(x: jax.Array) -> jax.Array:
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.roll(x, LANES // 2, 1)


def _forward(eps: float | None, x_ref: Any, cos_ref: Any, sin_ref: Any, scale_ref: Any, out_ref: Any) -> None:
    x = x_ref[...].astype(jnp.float32)
    y = x * _rate(x, eps) * scale_ref[...]
    out_ref[...] = (y * cos_ref[...] + _half_a_turn(y) * sin_ref[...]).astype(out_ref.dtype)


def _backward(
    eps: float | None,
    x_ref: Any,
    gradient_ref: Any,
    cos_ref: Any,
    sin_ref: Any,
    scale_ref: Any,
    dx_ref: Any,
    dscale_ref: Any,
) -> None:
    from jax.experimental import pallas as pl

    x, gradient = x_ref[...].astype(jnp.float32), gradient_ref[...].astype(jnp.float32)
    dy = gradient * cos_ref[...] + _half_a_turn(gradient * sin_ref[...])
    rate = _rate(x, eps)
    normed, inner = x * rate, dy * scale_ref[...]
    common = 0.0 if eps is None else normed * jnp.mean(inner * normed, axis=-1, keepdims=True)
    dx_ref[...] = (rate * (inner - common)).astype(dx_ref.dtype)

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        dscale_ref[...] = jnp.zeros_like(dscale_ref)

    dscale_ref[...] += jnp.sum(dy * normed, axis=0, keepdims=True)
