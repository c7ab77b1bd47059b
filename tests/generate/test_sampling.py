"""The filters of sampling against their definitions, over a distribution worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import ZooError
from zoo.generate.sampling import Sampling, choose, filtered, guided, penalised

SHARES = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
LOGITS = jnp.log(jnp.asarray(SHARES, jnp.float32))[None] + 3.0


def kept(**fields):
    """The tokens that a sampling leaves, and their shares."""
    sampling = Sampling(**fields)
    logits = filtered(LOGITS, sampling.used, sampling.values())
    shares = np.asarray(jax.nn.softmax(logits))[0]
    return np.flatnonzero(shares).tolist(), shares[shares > 0]


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.6}, [1, 3]),  # 0.4 + 0.25 is the first sum of at least 0.6
        ({"top_p": 0.7}, [1, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"min_p": 0.3}, [1, 3, 4]),  # at least 0.12
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # of what top-k left, 0.65 / 0.85 is more than 0.7
        ({"top_p": 0.9, "min_p": 0.55}, [1, 3]),
        ({"temperature": 0.5, "top_p": 0.75}, [1, 3]),  # squares: 0.16, 0.0625 of 0.275
    ],
)
def test_what_is_kept(fields, tokens):
    found, shares = kept(**fields)
    assert found == tokens
    expected = SHARES[tokens] ** (1 / fields.get("temperature", 1.0))
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-5)


def test_penalty_by_sign():
    logits = jnp.array([[2.0, -2.0, 1.0, -1.0]])
    seen = jnp.array([[True, True, False, False]])
    np.testing.assert_allclose(penalised(logits, seen, jnp.float32(4.0)), [[0.5, -8.0, 1.0, -1.0]])


def test_guidance_pulls_both_halves_alike():
    """Of two rows with a condition and two without: u + 3 (c - u), and only ids 1 and 2 are allowed."""
    given = jnp.array([[1.0, 2.0, 4.0, 9.0], [0.0, 3.0, 1.0, 0.0], [5.0, 2.0, 3.0, 9.0], [0.0, 1.0, 2.5, 0.0]])
    sampling = Sampling(guidance=3.0, allowed=(1, 3), temperature=0)
    tokens, logprobs = choose(given, jax.random.split(jax.random.key(0), 4), sampling.used, sampling.values())
    assert tokens.tolist() == [2, 1, 2, 1]  # 2 against 6, and 7 against -2
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(given)[jnp.arange(4), tokens], rtol=1e-6)
    np.testing.assert_allclose(guided(given, jnp.float32(3.0))[:2], given[2:] + 3 * (given[:2] - given[2:]))
    sampling = Sampling(allowed=(1, 3))
    keys = jax.random.split(jax.random.key(1), 400)
    tokens, _ = choose(jnp.tile(LOGITS, (400, 1)), keys, sampling.used, sampling.values())
    assert set(tokens.tolist()) == {1, 2}


def test_draws_follow_the_shares_and_tell_the_plain_log_probability():
    sampling = Sampling(top_k=3)
    keys = jax.random.split(jax.random.key(0), 4000)
    tokens, logprobs = choose(jnp.tile(LOGITS, (4000, 1)), keys, sampling.used, sampling.values())
    expected = SHARES * [0, 1, 0, 1, 1] / 0.85
    np.testing.assert_allclose(np.bincount(tokens, minlength=5) / 4000, expected, atol=0.03)  # four deviations
    np.testing.assert_allclose(logprobs, np.log(SHARES)[np.asarray(tokens)], rtol=1e-5)


def test_greedy_needs_no_randomness():
    sampling = Sampling(temperature=0, top_k=4, top_p=0.5)
    assert sampling.used == {"greedy"}
    tokens, _ = choose(LOGITS, jax.random.split(jax.random.key(0), 1), sampling.used, sampling.values())
    assert tokens.tolist() == [1]


def test_greedy_takes_the_first_of_the_highest():
    logits = jnp.asarray([[0.0, 2.0, 1.0, 2.0], [-jnp.inf] * 4, [3.0, jnp.nan, 0.0, 0.0]])
    tokens, _ = choose(logits, jax.random.split(jax.random.key(0), 3), frozenset({"greedy"}), {})
    assert tokens[:2].tolist() == np.argmax(logits[:2], axis=-1).tolist() == [1, 0]
    assert 0 <= tokens[2] < 4  # whatever a broken model says, it is an id


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": 2}, {"repetition_penalty": 0}],
)
def test_out_of_range(fields):
    with pytest.raises(ZooError, match=next(iter(fields))):
        Sampling(**fields)
