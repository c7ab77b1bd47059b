import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError
from zoo.models.layers import constrain, dropout, layer_norm, relu2, remat, resolve_dtype
from zoo.models.positions import rotary_frequencies, rotary_turns, rotate, rotate_by_product
from zoo.models.projections import project, whole


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


def test_weights_are_used_whole_over_fsdp_and_split_over_tensor():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rules = ((r"blocks/up$", P(None, "fsdp", "tensor")),)
    kept = jax.device_put(jnp.ones((1, 8, 16)), NamedSharding(mesh, P(None, "fsdp", "tensor")))
    with jax.set_mesh(mesh):
        used = jax.jit(lambda weight: whole(rules, "blocks/up", weight[0], jnp.bfloat16))(kept)
        other = jax.jit(lambda weight: whole(rules, "blocks/down", weight[0], jnp.float32))(kept)
    assert used.dtype == jnp.bfloat16
    assert used.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "tensor")), 2)
    assert other.sharding.is_equivalent_to(NamedSharding(mesh, P("fsdp", "tensor")), 2)


def test_squared_relu_and_its_gradient_by_hand():
    x = jnp.array([-2.0, 0.0, 0.5, 3.0])
    value, back = jax.vjp(relu2, x)
    np.testing.assert_array_equal(value, [0, 0, 0.25, 9])
    np.testing.assert_array_equal(back(jnp.array([1.0, 1.0, 2.0, -1.0]))[0], [0, 0, 2, -6])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("equation", "weight", "shape", "rows"),
    [("btd,dhk->bhtk", (3, 4, 2), (2, 4, 5, 2), (0, 2)), ("btd,df->btf", (3, 7), (2, 5, 7), (0, 1))],
)
def test_the_gradient_of_a_bias_is_the_sum_over_rows(equation, weight, shape, rows, dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3)).astype(dtype)
    weight, bias = jnp.ones(weight, dtype), jnp.zeros(weight[1:])
    scale = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) % 7  # whole numbers: exact in bfloat16

    def total(bias):
        return jnp.sum(project(equation, x, weight, bias).astype(jnp.float32) * scale)

    np.testing.assert_array_equal(jax.grad(total)(bias), scale.sum(rows))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotations_by_a_product_are_the_same(dtype):
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal((2, 3, 5, 8)), dtype) for _ in range(2))
    turns = rotary_turns(jnp.arange(10).reshape(2, 5), rotary_frequencies(8, 100.0))
    run = lambda rotation: jax.vjp(lambda x: rotation(x, *turns), x)
    (plain, plain_back), (found, back) = run(rotate), run(rotate_by_product)
    assert found.dtype == dtype
    step = jnp.finfo(dtype).eps
    for a, b in ((found, plain), (back(weight)[0], plain_back(weight)[0])):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=step, atol=step)


@pytest.mark.parametrize("biased", [True, False])
def test_layer_norms_gradient_is_that_of_its_formula(biased):
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(3, 2, (2, 5, 8)), jnp.float32) for _ in range(2))
    scale, bias = (jnp.asarray(rng.standard_normal(8), jnp.float32) for _ in range(2))

    def formula(x, scale, bias):
        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale[None, None]
        return jnp.sum((y if bias is None else y + bias[None, None]) * weight)

    given = (x, scale, bias if biased else None)
    both = [formula, lambda *given: jnp.sum(layer_norm(*given, 1e-5) * weight)]
    expected, found = (jax.value_and_grad(fn, argnums=(0, 1, 2)[: 2 + biased])(*given) for fn in both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    half = jax.grad(lambda x: jnp.sum(layer_norm(x, *given[1:], 1e-5)).astype(jnp.float32))(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
