import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.objectives.losses import bits_per_byte, cross_entropy, l2_penalty, next_token_loss


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


def test_bits_per_byte():
    assert bits_per_byte(np.log(256), 1.0) == pytest.approx(8.0)
    assert bits_per_byte(np.log(2) * 12, 4.0) == pytest.approx(3.0)


def test_l2_penalty_leaves_vectors_out():
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 7.0)}
    np.testing.assert_allclose(l2_penalty(params, 0.1), 0.5 * 0.1 * 24)
