import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError
from zoo.models.layers import constrain, dropout, remat, resolve_dtype


def test_dropout_keeps_the_mean_and_is_off_without_a_key():
    x = jnp.full((100, 100), 2.0)
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {0.0, np.float32(2 / 0.75)}
    assert abs(np.mean(y == 0) - 0.25) < 0.02  # five standard deviations of a binomial over 10,000
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_dtypes():
    assert resolve_dtype("auto") == jnp.float32  # tests run on CPU
    assert resolve_dtype("bfloat16") == jnp.bfloat16
    with pytest.raises(ZooError, match=r"unknown dtype 'bfloat'.*bfloat16"):
        resolve_dtype("bfloat")


def test_remat_computes_again_what_the_policy_does_not_name():
    def f(x):
        return jnp.sum(jnp.sin(jnp.sin(x) @ x))

    def count(policy, primitive):
        return str(jax.make_jaxpr(jax.grad(remat(f, policy)))(jnp.ones((2, 2)))).count(f" {primitive}")

    # Forward two sines and one product, backward two products. Full remat does the forward part twice.
    assert [count(policy, "dot_general[") for policy in ("none", "dots", "full")] == [3, 3, 4]
    assert count("full", "sin ") > count("none", "sin ")
    with pytest.raises(ZooError, match=r"unknown remat policy 'dot'.*dots"):
        remat(f, "dot")


def test_constrain_lays_out_under_a_mesh_and_does_nothing_without():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def layout(shape):
        return jax.jit(lambda: constrain(jnp.ones(shape), P(("data", "fsdp"), "tensor", None)))().sharding

    assert len(layout((8, 2, 3)).device_set) == 1
    with jax.set_mesh(mesh):
        assert layout((8, 4, 3)).shard_shape((8, 4, 3)) == (2, 2, 3)
        assert layout((6, 4, 3)).shard_shape((6, 4, 3)) == (6, 2, 3)  # 6 does not divide by 4
        x = jnp.ones((8, 2, 3))
        assert constrain(x, P("data", None, None)) is x  # not under jit
