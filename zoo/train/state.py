"""The train state, one pure dict: {"step", "params", "stats", "opt", "ema"?}, made where it will live.

No random state is stored: the key of a step is `fold_in(key(seed), step)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from zoo.train.mesh import BATCH, Rules, place_batch, replicated, state_shardings

State = dict[str, Any]
Init = Callable[..., tuple[Any, Any]]
Update = Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """The random key of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def make_init(init: Init, tx: Any, seed: int, ema: bool = False) -> Callable[..., State]:
    """The function that makes the state at step 0, to be traced or compiled.

    `init(key, *given) -> (params, stats)`, where `given` are arrays to start from, such as weights to fine-tune;
    `tx.init(params)` makes the optimizer state.
    """

    def make(*given: Any) -> State:
        params, stats = init(jax.random.key(seed), *given)
        state = {"step": jnp.zeros((), jnp.int32), "params": params, "stats": stats, "opt": tx.init(params)}
        return state | {"ema": jax.tree.map(jnp.copy, params)} if ema else state

    return make


def abstract_state(make: Callable[..., State], rules: Rules, mesh: Mesh, given: tuple[Any, ...] = ()) -> State:
    """Shapes, dtypes and shardings of the state, without making it."""
    shapes = jax.eval_shape(make, *given)
    shardings = state_shardings(shapes, rules, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def create_state(make: Callable[..., State], abstract: State, given: tuple[Any, ...] = ()) -> State:
    """The state at step 0, each shard made on the device that keeps it; the same bits on every mesh."""
    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(*given)


def make_step(update: Update, seed: int, abstract: State, mesh: Mesh, resident: bool = False) -> Any:
    """`step(state, batch) -> (state, metrics)`, jitted once over the mesh, the state donated.

    With `resident` it is `step(state, batch, data)` and does many steps, whose metrics are stacked: `batch["index"]`,
    int32 [B, steps], says which rows of the arrays in `data` each of them takes.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def step(state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        return update(state, batch, step_key(seed, state["step"]))

    def steps(state: State, batch: Any, data: Any) -> tuple[State, dict[str, jax.Array]]:
        def body(state: State, index_b: jax.Array) -> tuple[State, dict[str, jax.Array]]:
            rows = jax.tree.map(lambda x: x[index_b], data)
            return step(state, jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, BATCH)))

        return jax.lax.scan(body, state, batch["index"].T)

    chosen = steps if resident else step
    return jax.jit(chosen, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def evaluated(state: State) -> tuple[Any, Any]:
    """(params, stats) that are judged and kept: the averaged weights, where the state has them."""
    return state.get("ema", state["params"]), state["stats"]


def over_batches(function: Callable[[Any, Any, Any], Any], batches: Any, mesh: Mesh) -> Callable[[State], list[Any]]:
    """Applies `function(params, stats, batch)`, compiled, to every one of `batches`; results on the host.

    The averaged weights are used where the state has them.
    """
    jitted = jax.jit(function, out_shardings=replicated(mesh))

    def apply(state: State) -> list[Any]:
        with jax.set_mesh(mesh):
            params, stats = evaluated(state)
            return jax.device_get([jitted(params, stats, place_batch(batches, i, mesh)) for i in range(len(batches))])

    return apply


def make_evaluate(metrics: Callable[[Any, Any, Any], dict[str, jax.Array]], batches: Any, mesh: Mesh) -> Any:
    """An evaluation over all of `batches`: `evaluate(state) -> {"eval_loss": ...}`.

    `metrics(params, stats, batch)` returns sums over the batch and their `count`; the result holds the
    quotients, each name led by "eval_".
    """
    apply = over_batches(metrics, batches, mesh)

    def evaluate(state: State) -> dict[str, float]:
        parts = apply(state)
        total = {key: sum(float(part[key]) for part in parts) for key in parts[0]}
        count = total.pop("count")
        return {f"eval_{key}": value / count for key, value in total.items()}

    return evaluate


def make_predict(
    outputs: Callable[[Any, Any, Any], jax.Array], batches: Any, mesh: Mesh
) -> Callable[[State], np.ndarray]:
    """What the model says of each of the `batches.examples`, in order: `predict(state) -> [N, ...]`."""
    apply = over_batches(outputs, batches, mesh)
    return lambda state: np.concatenate(apply(state))[: batches.examples]
