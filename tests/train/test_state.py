import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.train.toy import Noise, ToyConfig
from zoo.models import cnn, decoder, functional
from zoo.objectives.optim import OptimConfig, make_optimizer
from zoo.train.mesh import MeshConfig, make_mesh, named_leaves
from zoo.train.state import abstract_state, create_state, make_evaluate, make_init, make_predict, step_key

MODELS = {
    "resnet8": (lambda rngs: cnn.ResNet(cnn.VARIANTS["resnet8"], rngs), cnn.SHARDING),
    "decoder": (lambda rngs: decoder.Decoder(decoder.VARIANTS["gpt-modern"], rngs), decoder.SHARDING),
}


@functools.cache
def state_on(name, sizes):
    build, rules = MODELS[name]
    make = make_init(functools.partial(functional.initial, build), make_optimizer(OptimConfig(), 10), 0)
    return create_state(make, abstract_state(make, rules, make_mesh(MeshConfig(*sizes))))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
@pytest.mark.parametrize("name", MODELS)
def test_initial_state_is_the_same_bits_on_every_mesh(name, sizes):
    jax.tree.map(np.testing.assert_array_equal, state_on(name, sizes), state_on(name, (1, 1, 1)))


@pytest.mark.parametrize("name", MODELS)
def test_initial_state_is_that_of_the_model_made_eagerly(name):
    params = functional.split(MODELS[name][0](nnx.Rngs(jax.random.key(0))))[1]
    # A fused multiply may round once where two steps round twice.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), state_on(name, (1, 1, 1))["params"], params
    )


def test_large_parameters_are_really_split():
    state = state_on("decoder", (2, 2, 2))
    whole = [name for name, leaf in named_leaves(state["params"]).items() if leaf.is_fully_replicated]
    assert all("norm" in name for name in whole), whole
    up = state["params"]["blocks"]["up"]
    assert up.addressable_shards[0].data.size * 4 == up.size


def test_step_keys():
    keys = {tuple(jax.random.key_data(step_key(seed, step)).tolist()) for seed in range(3) for step in range(5)}
    assert len(keys) == 15
    np.testing.assert_array_equal(
        jax.random.key_data(step_key(3, jnp.int32(7))), jax.random.key_data(jax.random.fold_in(jax.random.key(3), 7))
    )


def test_evaluation_divides_sums_by_the_whole_count_and_uses_averages():
    """Batches count differently: the mean of their means would be wrong."""

    def metrics(params, stats, batch):
        weight = batch["y"].astype(jnp.float32)  # 0, 1 or 2
        return {"loss": jnp.sum(params["a"] * batch["x"][:, 0] * weight), "count": weight.sum()}

    batches, mesh = Noise(ToyConfig(), length=3), make_mesh()
    state = {"params": {"a": jnp.float32(1)}, "ema": {"a": jnp.float32(2)}, "stats": {}}
    host = [batches.rows(step) for step in range(3)]
    x, y = (np.concatenate([batch[key] for batch in host]) for key in ("x", "y"))
    np.testing.assert_allclose(
        make_evaluate(metrics, batches, mesh)(state)["eval_loss"], 2 * (x[:, 0] * y).sum() / y.sum(), rtol=1e-5
    )


def test_predictions_come_in_order_without_padding():
    batches = Noise(ToyConfig(), length=3)
    batches.examples = 21
    predict = make_predict(lambda params, stats, batch: batch["x"] * params, batches, make_mesh())
    expected = np.concatenate([batches.rows(step)["x"] for step in range(3)])[:21] * 2
    np.testing.assert_array_equal(predict({"params": jnp.float32(2), "stats": {}}), expected)
