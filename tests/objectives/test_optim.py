import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.objectives.losses import l2_penalty
from zoo.objectives.optim import OptimConfig, group, make_optimizer, make_schedule
from zoo.train.mesh import named_leaves

PARAMS = {
    "embed": {"tokens": jnp.ones((7, 4))},
    "blocks": {"q": jnp.ones((2, 4, 2, 2)), "q_bias": jnp.ones((2, 2, 2)), "norm": {"scale": jnp.ones((2, 4))}},
    "head": {"kernel": jnp.ones((4, 7))},
}


def test_groups():
    names = jax.tree_util.tree_map_with_path(group, PARAMS)
    assert named_leaves(names) == {
        "embed/tokens": "table",
        "blocks/q": "matrix",
        "blocks/q_bias": "vector",
        "blocks/norm/scale": "vector",
        "head/kernel": "table",
    }


@pytest.mark.parametrize(
    ("config", "points"),
    [
        (OptimConfig(lr=1.0, warmup=0.1, schedule="constant"), {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 99: 1.0}),
        (OptimConfig(lr=1.0, warmup=0.1, schedule="linear"), {9: 1.0, 10: 1.0, 55: 0.5, 100: 0.0}),
        (OptimConfig(lr=1.0, warmup=0.1, schedule="cosine", final=0.1), {10: 1.0, 55: 0.55, 100: 0.1}),
        (OptimConfig(lr=1.0, warmup=0.1, schedule="wsd", decay=0.2), {10: 1.0, 79: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
        (OptimConfig(lr=2.0, warmup=0.0, schedule="linear", final=0.5), {0: 2.0, 50: 1.5, 100: 1.0}),
    ],
)
def test_schedules(config, points):
    schedule = make_schedule(config, 100)
    for step, rate in points.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6), step


def updates_of(config, grads, params, steps=1, matrices=()):
    tx = make_optimizer(config, 10, matrices)
    state = tx.init(params)
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):  # as in gradient_update
            updates, state = tx.update(grads, state, params)
    return updates


def test_sgd_weight_decay_is_the_l2_penalty():
    params = {"kernel": jax.random.normal(jax.random.key(0), (3, 3)), "bias": jnp.ones((3,))}
    plain = OptimConfig(name="sgd", lr=0.1, schedule="constant", warmup=0.0)
    grads = jax.tree.map(jnp.ones_like, params)
    with_l2 = jax.tree.map(jnp.add, grads, jax.grad(lambda p: l2_penalty(p, 0.3))(params))
    expected = updates_of(plain, with_l2, params, 2)
    found = updates_of(dataclasses.replace(plain, weight_decay=0.3), grads, params, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_nesterov_by_hand():
    config = OptimConfig(name="sgd", lr=0.1, momentum=0.9, schedule="constant", warmup=0.0)
    params = {"kernel": jnp.zeros((1, 1))}
    grads = {"kernel": jnp.ones((1, 1))}
    # trace 1 then 1.9; Nesterov steps along g + 0.9 trace
    np.testing.assert_allclose(updates_of(config, grads, params, 1)["kernel"], [[-0.19]], rtol=1e-6)
    np.testing.assert_allclose(updates_of(config, grads, params, 2)["kernel"], [[-0.1 * (1 + 0.9 * 1.9)]], rtol=1e-6)


def test_adamw_first_step_is_the_sign_and_decays_matrices_only():
    config = OptimConfig(name="adamw", lr=0.1, schedule="constant", warmup=0.0, weight_decay=0.5)
    grads = jax.tree.map(lambda x: -3.0 * jnp.ones_like(x), PARAMS)
    updates = named_leaves(updates_of(config, grads, PARAMS))
    for name, update in updates.items():
        decay = 0.5 * 0.1 if name == "blocks/q" else 0.0
        np.testing.assert_allclose(update, np.full(update.shape, 0.1 - decay), rtol=1e-4, err_msg=name)


def test_muon_orthogonalises_each_layer_and_leaves_tables_to_adam():
    config = OptimConfig(name="muon", lr=1.0, adam_lr=0.25, schedule="constant", warmup=0.0)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), PARAMS)
    updates = updates_of(config, grads, PARAMS, matrices=[(r"blocks/q$", ((1,), (2, 3)))])
    for layer in updates["blocks"]["q"]:
        singular = np.linalg.svd(np.asarray(layer).reshape(4, 4), compute_uv=False)
        assert np.all((singular > 0.5) & (singular < 1.4)), singular  # the quintic iteration lands near 1
    # Adam's first step is the sign; Nesterov's look-ahead (Dozat 2016) adds b1 (1 - b1) / (1 - b1²) to it.
    np.testing.assert_allclose(np.abs(updates["embed"]["tokens"]), np.full((7, 4), 0.25 * (1 + 0.09 / 0.19)), rtol=1e-3)


def test_clipping_bounds_the_global_norm():
    config = OptimConfig(name="sgd", lr=1.0, momentum=0.0, schedule="constant", warmup=0.0, clip=1.0)
    params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros((2,))}
    updates = updates_of(config, jax.tree.map(lambda x: 10.0 + x, params), params)
    assert np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(updates))) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("changes", [{"lr": 0.0}, {"warmup": 1.5}, {"decay": -1.0}])
def test_bad_values(changes):
    with pytest.raises(ZooError, match="--optim"):
        make_optimizer(OptimConfig(**changes), 10)
