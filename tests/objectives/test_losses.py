import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError
from zoo.objectives.losses import chunked_next_token_loss, cross_entropy, l2_penalty, next_token_loss


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0, 2])), -np.log([0.5, 0.7]), rtol=1e-6)
    soft = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    expected = [-(np.log(0.5) + np.log(0.25)) / 2, -np.log(0.7)]
    np.testing.assert_allclose(cross_entropy(logits, soft), expected, rtol=1e-6)


def test_label_smoothing_is_a_soft_target():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    labels = jnp.array([0, 1, 2, 3, 0])
    target = jax.nn.one_hot(labels, 4) * 0.9 + 0.1 / 4
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.1), cross_entropy(logits, target), rtol=1e-5)


def test_large_and_low_precision_logits():
    logits = jnp.array([[1000.0, -1000.0]], jnp.bfloat16)
    value = cross_entropy(logits, jnp.array([1]))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, [2000.0], rtol=1e-2)


def test_next_token_loss_of_uniform_logits_is_log_vocabulary():
    losses = next_token_loss(jnp.zeros((2, 3, 65)), jnp.zeros((2, 4), jnp.int32))
    np.testing.assert_allclose(losses, np.full((2, 3), np.log(65)), rtol=1e-6)


def test_next_token_loss_pairs_position_with_the_following_token():
    tokens = jnp.array([[3, 1, 2]])
    logits = 50.0 * jax.nn.one_hot(jnp.array([[1, 2]]), 4)
    np.testing.assert_allclose(next_token_loss(logits, tokens), np.zeros((1, 2)), atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_its_own_gradient_is_that_of_cross_entropy(dtype, tolerance):
    """The last token of a padded vocabulary, of which the logit is the least float, gets none."""
    logits = (3 * jax.random.normal(jax.random.key(0), (2, 3, 7))).astype(dtype).at[..., -1].set(jnp.finfo(dtype).min)
    tokens, weights = jnp.array([[0, 1, 2, 5], [4, 4, 0, 3]]), jnp.array([[1.0, 0.0, 2.0], [0.5, 1.0, 1.0]])
    ours = lambda x: jnp.sum(next_token_loss(x, tokens) * weights)
    plain = lambda x: jnp.sum(cross_entropy(x, tokens[:, 1:]) * weights)
    found, gradient = jax.value_and_grad(ours)(logits)
    expected, wanted = jax.value_and_grad(plain)(logits.astype(jnp.float32))
    assert gradient.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance / 10)
    np.testing.assert_allclose(gradient.astype(jnp.float32), wanted, atol=tolerance)
    assert not gradient[..., -1].any()


def test_l2_penalty_leaves_vectors_out():
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 7.0)}
    np.testing.assert_allclose(l2_penalty(params, 0.1), 0.5 * 0.1 * 24)


def problem(b, t, d, v):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (b, t, d))
    table = jax.random.normal(keys[1], (v, d))
    tokens = jax.random.randint(keys[2], (b, t + 1), 0, v)
    weights = jax.random.uniform(keys[3], (b, t)) * (jnp.arange(t) > 1).astype(jnp.float32)[None]
    return hidden, table, tokens, weights


def total(hidden, table, tokens, weights, chunk=None, label_smoothing=0.0, dtype=jnp.float32):
    """The weighted sum of the losses, plain or in chunks; the table is closed over."""
    logits_of = lambda h: jnp.einsum(
        "btd,vd->btv", h.astype(dtype).astype(jnp.float32), table.astype(dtype).astype(jnp.float32)
    )
    if chunk is None:
        losses = cross_entropy(logits_of(hidden), tokens[:, 1:], label_smoothing)
    else:
        losses = chunked_next_token_loss(hidden, logits_of, tokens, chunk, label_smoothing)
    assert losses.shape == weights.shape
    assert losses.dtype == jnp.float32
    return jnp.sum(losses * weights)


GRADIENTS = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), static_argnames=("chunk", "label_smoothing", "dtype"))


def assert_same(found, expected, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max()))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_do_not_change_the_loss_nor_its_gradients(chunk):
    """Of seven positions: chunks that divide them, that do not, and one that holds them all."""
    inputs = problem(2, 7, 4, 11)
    assert_same(GRADIENTS(*inputs, chunk=chunk), GRADIENTS(*inputs))


def test_chunks_with_label_smoothing_and_low_precision():
    inputs = problem(2, 7, 4, 11)
    assert_same(GRADIENTS(*inputs, chunk=3, label_smoothing=0.2), GRADIENTS(*inputs, label_smoothing=0.2))
    # The table's gradient is rounded to bfloat16 once a chunk and summed in float32.
    assert_same(GRADIENTS(*inputs, chunk=3, dtype=jnp.bfloat16), GRADIENTS(*inputs, dtype=jnp.bfloat16), rtol=1e-2)


def test_chunked_losses_are_those_of_each_token():
    hidden, table, tokens, _ = problem(2, 7, 4, 11)
    logits_of = lambda h: h @ table.T
    found = chunked_next_token_loss(hidden, logits_of, tokens, 4)
    np.testing.assert_allclose(found, next_token_loss(logits_of(hidden), tokens), rtol=1e-5, atol=1e-6)


def test_chunks_need_less_memory():
    b, t, d, v, chunk = 2, 64, 8, 4096, 8
    inputs = problem(b, t, d, v)
    memory = {
        size: GRADIENTS.lower(*inputs, chunk=size).compile().memory_analysis().temp_size_in_bytes
        for size in (None, chunk)
    }
    logits = 4 * b * t * v
    assert memory[None] >= logits
    # A few copies of one chunk's logits, and the table's gradient.
    assert memory[chunk] <= 4 * logits * chunk // t + 4 * 4 * v * d


def test_chunks_on_a_mesh():
    """The batch over data and fsdp, the table over fsdp: no device gathers another's part of the batch."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    inputs = problem(8, 6, 4, 16)
    specs = (P(("data", "fsdp")), P("fsdp"), P(("data", "fsdp")), P(("data", "fsdp")))
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(inputs, specs, strict=True)]
    assert_same(GRADIENTS(*placed, chunk=4), GRADIENTS(*inputs))
    program = GRADIENTS.lower(*placed, chunk=4).compile().as_text()
    for batch_shape in ("f32[8,3,4]", "f32[2,8,3,4]", "f32[8,3,16]", "f32[8,6,4]"):
        assert batch_shape not in program


def test_a_chunk_of_nothing():
    with pytest.raises(ZooError, match="at least 1"):
        chunked_next_token_loss(jnp.zeros((1, 2, 3)), lambda h: h, jnp.zeros((1, 3), jnp.int32), 0)
