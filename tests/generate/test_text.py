import jax
import jax.numpy as jnp
import numpy as np

from zoo.generate.text import sample_tokens, text_picture

KEY = jax.random.key(0)


def successor(tokens_bt):
    """Logits that all but surely choose the token after the sum of the last two, modulo 7."""
    before = jnp.pad(tokens_bt, ((0, 0), (1, 0)))[:, :-1]
    return 100.0 * jax.nn.one_hot((tokens_bt + before + 1) % 7, 7)


def test_greedy_follows_the_logits_past_the_context():
    """The rule looks back two tokens, so a window of two sees just enough at every step."""
    found = sample_tokens(successor, jnp.array([[1, 2], [3, 3]]), 10, 2, KEY, temperature=0)
    for row in np.asarray(found):
        for i in range(2, 12):
            assert row[i] == (row[i - 1] + row[i - 2] + 1) % 7
    np.testing.assert_array_equal(found[:, :2], [[1, 2], [3, 3]])


def test_only_the_window_is_seen():
    seen = []

    def spy(tokens_bt):
        seen.append(tokens_bt.shape)
        return successor(tokens_bt)

    sample_tokens(spy, jnp.array([[1, 2, 3]]), 9, 5, KEY)
    assert set(seen) == {(1, 5)}


def test_temperature_one_draws_from_the_distribution():
    share = jnp.array([0.5, 0.3, 0.2])
    draws = sample_tokens(
        lambda t: jnp.log(share)[None, None] + jnp.zeros((*t.shape, 3)), jnp.zeros((4000, 1), jnp.int32), 1, 8, KEY
    )
    counts = np.bincount(np.asarray(draws)[:, 1], minlength=3) / 4000
    np.testing.assert_allclose(counts, share, atol=0.03)  # four standard deviations


def test_low_temperature_and_top_k_leave_the_unlikely_out():
    share = jnp.array([0.4, 0.35, 0.25])
    logits = lambda t: jnp.log(share)[None, None] + jnp.zeros((*t.shape, 3))
    prompt = jnp.zeros((500, 1), jnp.int32)
    assert set(np.asarray(sample_tokens(logits, prompt, 1, 8, KEY, temperature=0.005))[:, 1].tolist()) == {0}
    assert set(np.asarray(sample_tokens(logits, prompt, 1, 8, KEY, top_k=2))[:, 1].tolist()) == {0, 1}


def test_the_key_fixes_the_text():
    uniform = lambda t: jnp.zeros((*t.shape, 50))
    one, same, other = (
        sample_tokens(uniform, jnp.zeros((1, 1), jnp.int32), 20, 8, jax.random.key(i)) for i in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_picture_grows_with_the_text_and_shows_it():
    short, long = text_picture("title", ["a"]), text_picture("title", ["a\n" * 10, "b" * 300])
    assert short.dtype == np.uint8
    assert short.shape[1:] == long.shape[1:]
    assert long.shape[0] > short.shape[0]
    assert (long != 255).sum() > (short != 255).sum() > 0
