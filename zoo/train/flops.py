"""How much arithmetic a step is, and what part of the chip's peak that makes.

Counted from the jaxpr, since the compiler's own cost analysis counts a loop body once.
"""

import math
from typing import Any

import jax

# Peak bfloat16 TFLOP/s of one JAX device, by the start of its `device_kind`; the longest match wins.
# On v2, v3 and 7x a device is one of a chip's two cores. Source: the vendor's system pages.
PEAK_TFLOPS = {
    "TPU v2": 23.0,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5": 459.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "TPU7x": 1153.5,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}


def peak_flops(device: Any) -> float | None:
    """Peak bfloat16 FLOP/s of a device; None where the table has no entry (a CPU)."""
    matches = [kind for kind in PEAK_TFLOPS if device.device_kind.startswith(kind)]
    return PEAK_TFLOPS[max(matches, key=len)] * 1e12 if matches else None


# The `jax.named_scope` of sums, turns and shifts that are written as products because chips are fast at those
AS_PRODUCT = "as_product"


def count_flops(jaxpr: Any) -> int:
    """FLOPs that a (closed) jaxpr needs for its dots and convolutions, two for each multiply-add.

    Scan bodies count once per iteration, the dearest branch of a conditional counts, and the body of a loop of unknown
    length counts once. What is a product only for speed does not count.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(equation_flops(equation) for equation in jaxpr.eqns if not as_product(equation))


def as_product(equation: Any) -> bool:
    """Whether an equation lies in the scope AS_PRODUCT, or is the gradient of one that does."""
    return AS_PRODUCT in str(equation.source_info.name_stack)


def equation_flops(equation: Any) -> int:
    """`count_flops` of one equation, in whatever scope it lies."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracting, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracting)
    if name == "conv_general_dilated":
        # Each output sums over the kernel's window and the input channels of its group. Strided
        # backward passes dilate, and most of the products with inserted zeros are not computed.
        kernel = equation.invars[1].aval
        out_channels = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        inserted = math.prod(params["lhs_dilation"])
        return 2 * equation.outvars[0].aval.size * (kernel.size // out_channels) // inserted
    if name.startswith("dot_product_attention_"):  # cuDNN's: two products forward, four backward
        (b, t, h, k), causal = equation.invars[0].aval.shape, params["mask_type"].name == "CAUSAL"
        seen = sum(min(i, params["sliding_window_length"] or t) if causal else t for i in range(1, t + 1))
        return (4 if "fwd" in name else 8) * b * h * k * seen
    if name == "scan":
        return params["length"] * count_flops(params["jaxpr"])
    if name == "cond":
        return max(count_flops(branch) for branch in params["branches"])
    return sum(
        count_flops(inner) for inner in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(inner)
    )


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
