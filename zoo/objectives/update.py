"""From a loss to an update: gradients, accumulation, optimizer and averaged weights in one pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

State = dict[str, Any]


class Aux(NamedTuple):
    """What a loss hands out besides its sum over the examples (or tokens)."""

    examples: jax.Array
    """Number of examples or tokens that the sum is over; float32 scalar."""
    stats: Any
    """New value of the state's `stats`."""
    metrics: dict[str, jax.Array]
    """Further sums over the same examples; reported divided by their number."""


Loss = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Aux]]
Gradients = Callable[[Any, Any, Any, jax.Array], tuple[Any, Any, dict[str, jax.Array]]]


def accumulated(gradients: Gradients, accumulate: int) -> Gradients:
    """`gradients(params, stats, batch, key) -> (grads, stats, sums)` over so many micro-batches, one by one.

    Gradients and sums are added, `stats` pass from one micro-batch to the next.
    """
    if accumulate == 1:
        return gradients

    def over_parts(params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
        def body(carry: Any, part: Any) -> Any:
            grads, stats, sums = carry
            more, stats, new = gradients(params, stats, *part)
            return (jax.tree.map(jnp.add, grads, more), stats, jax.tree.map(jnp.add, sums, new)), None

        parts = strided_parts(batch, accumulate)
        keys = jax.random.split(key, accumulate)
        shapes = jax.eval_shape(gradients, params, stats, *jax.tree.map(lambda x: x[0], (parts, keys)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, stats, sums), _ = jax.lax.scan(body, (zeros[0], stats, zeros[2]), (parts, keys))
        return grads, stats, sums

    return over_parts


def strided_parts(batch: Any, count: int) -> Any:
    """A batch cut into `count` parts, on a new leading axis. Every count-th row makes a part: rows stay on the device
    that holds them."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)


def gradient_update(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    schedule: optax.Schedule | None = None,
    accumulate: int = 1,
    ema: float = 0.0,
) -> Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]:
    """The update of the common case: `update(state, batch, key) -> (state, metrics)`.

    `loss(params, stats, batch, key)` returns the sum over the batch and its `Aux`. Gradients are those of the
    mean over the whole batch, however it is split: sums are divided once, by the total count. Batch
    statistics pass from one micro-batch to the next. `ema` is the decay of the averaged weights.
    """

    def gradients(params: Any, stats: Any, batch: Any, key: jax.Array) -> Any:
        (total, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, batch, key)
        return grads, aux.stats, {"loss": total, "examples": aux.examples, **aux.metrics}

    compute = accumulated(gradients, accumulate)

    def update(state: State, batch: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        grads, stats, sums = compute(state["params"], state["stats"], batch, key)
        examples = sums.pop("examples")
        grads = jax.tree.map(lambda g: g / examples.astype(g.dtype), grads)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer step counts
            updates, opt = tx.update(grads, state["opt"], state["params"])
            rate = {} if schedule is None else {"lr": jnp.asarray(schedule(state["step"]), jnp.float32)}
        params = optax.apply_updates(state["params"], updates)
        new = {"step": state["step"] + 1, "params": params, "stats": stats, "opt": opt}
        if ema:
            new["ema"] = jax.tree.map(lambda old, now: old * ema + now * (1 - ema), state["ema"], params)
        means = {key: value / examples for key, value in sums.items()}
        return new, means | {"grad_norm": optax.tree.norm(grads)} | rate

    return update
