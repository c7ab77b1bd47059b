import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.objectives.update import Aux, gradient_update

X = jax.random.normal(jax.random.key(0), (12, 3))
WEIGHT = jnp.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1], jnp.float32)


def loss(params, stats, batch, key):
    del key
    values = jnp.square(batch["x"] @ params["w"] - 1.0) * batch["weight"]
    return values.sum(), Aux(batch["weight"].sum(), {"calls": stats["calls"] + 1}, {"double": 2 * values.sum()})


def state_of(tx):
    params = {"w": jnp.array([0.5, -1.0, 2.0])}
    return {
        "step": jnp.int32(0),
        "params": params,
        "stats": {"calls": jnp.int32(0)},
        "opt": tx.init(params),
        "ema": params,
    }


@pytest.mark.parametrize("accumulate", [1, 2, 3, 6])
def test_accumulation_is_the_gradient_of_the_whole_mean(accumulate):
    """Micro-batches hold different numbers of weighted rows, so a mean of means would differ."""
    tx = optax.sgd(0.1)
    update = jax.jit(gradient_update(loss, tx, accumulate=accumulate, ema=0.75))
    new, metrics = update(state_of(tx), {"x": X, "weight": WEIGHT}, jax.random.key(0))
    mean = lambda w: jnp.sum(jnp.square(X @ w - 1.0) * WEIGHT) / WEIGHT.sum()
    old = state_of(tx)["params"]["w"]
    value, grad = jax.value_and_grad(mean)(old)
    np.testing.assert_allclose(new["params"]["w"], old - 0.1 * grad, rtol=1e-5)
    np.testing.assert_allclose(new["ema"]["w"], 0.75 * old + 0.25 * new["params"]["w"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["double"], 2 * value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], jnp.linalg.norm(grad), rtol=1e-5)
    assert int(new["stats"]["calls"]) == accumulate
    assert int(new["step"]) == 1


def test_learning_rate_is_reported():
    tx = optax.sgd(0.1)
    update = gradient_update(loss, tx, schedule=lambda step: 0.5 / (1.0 + step.astype(jnp.float32)))
    _, metrics = update(state_of(tx) | {"step": jnp.int32(4)}, {"x": X, "weight": WEIGHT}, jax.random.key(0))
    np.testing.assert_allclose(metrics["lr"], 0.1)
