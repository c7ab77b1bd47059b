import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.objectives.losses import next_token_loss
from zoo.objectives.preference import dpo_loss, sequence_logps

# Log-probabilities of three pairs: (policy chosen, policy rejected, reference chosen, reference rejected).
PAIRS = tuple(
    jnp.array(column)
    for column in zip((-10.0, -14.0, -12.0, -13.0), (-8.0, -5.0, -9.0, -9.0), (-3.0, -4.0, -3.0, -4.0), strict=True)
)


def test_by_hand():
    """Beta 0.5. Pair 1: rewards 0.5·2 = 1 and 0.5·(-1) = -0.5, margin 1.5, loss log(1 + e^-1.5) = 0.2014133.
    Pair 2: rewards 0.5 and 2, margin -1.5, loss 1.5 + 0.2014133. Pair 3: the policy is the reference."""
    losses, metrics = dpo_loss(*PAIRS, beta=0.5)
    np.testing.assert_allclose(losses, [0.2014133, 1.7014133, math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(metrics["reward_chosen"], [1.0, 0.5, 0.0])
    np.testing.assert_allclose(metrics["reward_rejected"], [-0.5, 2.0, 0.0])
    np.testing.assert_allclose(metrics["margin"], [1.5, -1.5, 0.0])
    np.testing.assert_array_equal(metrics["accuracy"], np.float32([1, 0, 0]))


def test_conservative_by_hand():
    """ε 0.1: 0.9 · 0.2014133 + 0.1 · 1.7014133 for the first pair, and the other way round for the second."""
    losses, _ = dpo_loss(*PAIRS, beta=0.5, label_smoothing=0.1)
    np.testing.assert_allclose(losses, [0.3514133, 1.5514133, math.log(2)], rtol=1e-6)


def test_conservative_loss_is_least_where_the_labels_say():
    """At margin log(0.9 / 0.1) the slope is zero; without smoothing it is not."""
    zeros = jnp.zeros(1)
    slope = lambda smoothing: jax.grad(lambda chosen: dpo_loss(chosen, zeros, zeros, zeros, 1.0, smoothing)[0].sum())(
        jnp.array([math.log(9)])
    )
    np.testing.assert_allclose(slope(0.1), [0.0], atol=1e-7)
    np.testing.assert_allclose(slope(0.0), [-0.1], rtol=1e-5)


def test_gradient_is_the_closed_form_of_the_paper():
    """Section 4: -β σ(r_rejected - r_chosen) for the chosen log-probability, the opposite for the rejected."""
    grads = jax.grad(lambda *pairs: dpo_loss(*pairs, beta=0.5)[0].sum(), argnums=(0, 1, 2, 3))(*PAIRS)
    expected = -0.5 / (1 + np.exp([1.5, -1.5, 0.0]))
    np.testing.assert_allclose(grads[0], expected, rtol=1e-5)
    np.testing.assert_allclose(grads[1], -expected, rtol=1e-5)
    for reference in grads[2:]:
        np.testing.assert_array_equal(reference, np.zeros(3, np.float32))


def test_far_margins_stay_finite():
    far = jnp.array([1e4, -1e4])
    zeros = jnp.zeros(2)
    value, grads = jax.value_and_grad(lambda chosen: dpo_loss(chosen, zeros, zeros, zeros, 1.0)[0].sum())(far)
    np.testing.assert_allclose(value, 1e4)
    np.testing.assert_allclose(grads, [0.0, -1.0])


def test_gradient_through_a_policy_by_finite_differences():
    """A policy of unconditional token logits, against a float64 numpy formula and its central differences."""
    answers = np.array([[0, 1, 2, 0], [0, 2, 2, 1]])  # prompt token 0, then answers; the last of the second is padding
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    reference = np.array([-3.0, -2.0])

    def by_numpy(logits):
        logp = logits - np.log(np.exp(logits).sum())
        sums = (logp[answers[:, 1:]] * mask).sum(-1) - reference
        return np.log1p(np.exp(-0.7 * (sums[0] - sums[1])))

    def loss(logits):
        logps = sequence_logps(
            next_token_loss(jnp.broadcast_to(logits, (2, 3, 3)), jnp.array(answers)), jnp.array(mask)
        )
        pairs = logps[0:1], logps[1:2], jnp.array(reference[:1]), jnp.array(reference[1:])
        return dpo_loss(*pairs, beta=0.7)[0].sum()

    logits = np.array([0.3, -0.8, 0.5])
    value, grads = jax.value_and_grad(loss)(jnp.array(logits, jnp.float32)[None, None])
    steps = 1e-5 * np.eye(3)
    slopes = [(by_numpy(logits + step) - by_numpy(logits - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(value, by_numpy(logits), rtol=1e-5)
    np.testing.assert_allclose(grads[0, 0], slopes, rtol=1e-4)


def test_masked_tokens_do_not_count_whatever_their_loss():
    losses = jnp.array([[1.0, 2.0, jnp.inf], [jnp.nan, 0.5, 0.25]], jnp.bfloat16)
    mask = jnp.array([[1, 1, 0], [0, 1, 1]], bool)
    found = sequence_logps(losses, mask)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.float32([-3.0, -0.75]))


@pytest.mark.parametrize("changes", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}])
def test_bad_values(changes):
    with pytest.raises(ZooError, match="beta"):
        dpo_loss(*PAIRS, **changes)
