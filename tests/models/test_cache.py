"""Reading a prompt into a cache and going on token by token gives what the whole sequence gives at once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import RICH, TINY, noisy
from zoo.errors import ZooError
from zoo.models.decoder import Decoder
from zoo.models.functional import abstract, merge
from zoo.models.positions import grid_cells

LENGTHS, PROMPT, STEPS = (5, 3), 5, 7
CONFIGS = {
    "learned": replace(TINY, context=16, pad_vocab=8),
    "sinusoidal": replace(TINY, context=16, positions="sinusoidal"),
    "rotary": replace(RICH, context=16, rope_factor=2.0, rope_original=8),
    "short window": replace(RICH, context=16, window=3),  # the prompt is longer than the cache
    "long window": replace(RICH, context=16, window=6),  # the cache fills while it writes
    "pictures": replace(RICH, context=16, grid=(2, 3), first_code=5),
}


@pytest.mark.parametrize("few", [False, True], ids=["stacked", "laid out for few rows"])
@pytest.mark.parametrize("name", CONFIGS)
def test_cached_equals_uncached(name, few):
    config = CONFIGS[name]
    graphdef, params = noisy(config)
    model = merge(graphdef, params, {})
    rng = np.random.default_rng(0)
    rows = [rng.integers(config.vocab_size, size=length + STEPS).astype(np.int32) for length in LENGTHS]
    padded = np.stack([np.pad(row, (PROMPT + STEPS - len(row), 0)) for row in rows])

    @jax.jit
    def cached(tokens_bt):
        start_b = jnp.asarray([PROMPT - length for length in LENGTHS])
        layers = model.layers(few)
        h_btd, cache = model.prefill(tokens_bt[:, :PROMPT], start_b, PROMPT + STEPS)
        assert cache.v[0].shape[2] == cache.k[0].shape[3] == min(config.window or PROMPT + STEPS, PROMPT + STEPS)

        def body(cache, tokens_b):
            h_b1d, cache = model.step(tokens_b, cache, layers, few)
            return cache, model.logits(h_b1d, few)[:, 0]

        _, rest_tbv = jax.lax.scan(body, cache, tokens_bt[:, PROMPT:].T)
        return jnp.concatenate([model.logits(h_btd), rest_tbv.swapaxes(0, 1)], axis=1)

    logits_btv = cached(jnp.asarray(padded))
    whole = jax.jit(model)
    for row, found in zip(rows, logits_btv, strict=True):
        expected = whole(jnp.asarray(np.pad(row, (0, PROMPT + STEPS - len(row))))[None])[0, : len(row)]
        np.testing.assert_allclose(found[-len(row) :], expected, rtol=1e-4, atol=1e-4)


def test_codes_are_told_their_cell():
    """Runs of codes, from 5 on, start anew after any other token, and go on from the top when the grid is full."""
    code = np.array([[7, 8, 0, 5, 5, 5, 5, 5, 5, 5, 1]]) >= 5
    cells = grid_cells(jnp.asarray(code))
    np.testing.assert_array_equal(cells, [[0, 1, -1, 0, 1, 2, 3, 4, 5, 6, -1]])
    config = replace(CONFIGS["pictures"], layers=1)
    graphdef, params = noisy(config)
    still = {name: value for name, value in params.items() if name not in ("row_embed", "column_embed")}
    x = jnp.asarray([[7, 8, 0, 5, 5, 5, 5, 5, 5, 5, 1]], jnp.int32)
    embedded = lambda p: merge(graphdef, p, {})(x, features=True)[1]["embedded"]
    zeros = {name: jnp.zeros_like(params[name]) for name in ("row_embed", "column_embed")}
    told = jax.jit(embedded)(params) - jax.jit(embedded)(still | zeros)
    rows, columns = params["row_embed"], params["column_embed"]
    at = [(0, 0), (0, 1), None, (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 0), None]
    expected = [jnp.zeros(config.d_model) if cell is None else rows[cell[0]] + columns[cell[1]] for cell in at]
    np.testing.assert_allclose(told[0], jnp.stack(expected), atol=1e-6)


def test_prefix_sees_itself_in_both_directions():
    config = replace(RICH, context=16, prefix=True)
    graphdef, params = noisy(config)
    model = merge(graphdef, params, {})
    run = jax.jit(lambda x, given: model(x, given=given))
    x = np.array([[1, 2, 3, 4, 5, 6, 7]], np.int32)
    given = np.arange(7)[None] < 4
    plain, changed = run(x, given), run(np.where(np.arange(7)[None] == 3, 9, x), given)
    assert np.abs(plain[0, 0] - changed[0, 0]).max() > 1e-3  # the first token sees the fourth
    later = run(np.where(np.arange(7)[None] == 5, 9, x), given)
    np.testing.assert_array_equal(plain[0, :5], later[0, :5])  # but nothing of what is to be written
    none = run(x, np.zeros_like(given))
    graphdef, params = noisy(replace(config, prefix=False))
    np.testing.assert_allclose(none, jax.jit(merge(graphdef, params, {}))(jnp.asarray(x)), atol=1e-5)

    @jax.jit
    def cached(x):
        h_btd, cache = model.prefill(x[:, :4], jnp.zeros(1, jnp.int32), 7)
        found = [model.logits(h_btd)]
        for i in (4, 5, 6):
            h_btd, cache = model.step(x[:, i], cache)
            found.append(model.logits(h_btd))
        return jnp.concatenate(found, axis=1)

    np.testing.assert_allclose(cached(jnp.asarray(x)), plain, rtol=1e-4, atol=1e-4)
    with pytest.raises(ZooError, match="prefix"):
        noisy(replace(config, window=3))


def test_padding_of_the_vocabulary_is_never_predicted():
    config = CONFIGS["learned"]
    _, shapes, _ = abstract(lambda rngs: Decoder(config, rngs))
    assert shapes["token_embed"].shape == (16, config.d_model)  # 13 tokens
    graphdef, params = noisy(config)
    logits = jax.jit(merge(graphdef, params, {}))(jnp.zeros((1, 4), jnp.int32))
    assert logits.shape[-1] == 16
    assert np.all(np.asarray(jax.nn.softmax(logits))[..., 13:] == 0)
    plain, _ = noisy(replace(config, pad_vocab=1))
    cut = params | {"token_embed": params["token_embed"][:13]}
    np.testing.assert_allclose(
        logits[..., :13], jax.jit(merge(plain, cut, {}))(jnp.zeros((1, 4), jnp.int32)), rtol=1e-5, atol=1e-5
    )


def test_documents_and_positions_pack_sequences():
    """Two sequences in one row, told apart by documents and positions, are two rows."""
    config = CONFIGS["learned"]
    graphdef, params = noisy(config)
    run = jax.jit(lambda *inputs: merge(graphdef, params, {})(inputs[0], positions=inputs[1], documents=inputs[2]))
    rng = np.random.default_rng(0)
    x = rng.integers(config.vocab_size, size=(1, 9)).astype(np.int32)
    at = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]], np.int32)
    packed = run(x, at, np.array([[1] * 4 + [2] * 5], np.int32))
    for part in (slice(0, 4), slice(4, 9)):
        alone = jax.jit(merge(graphdef, params, {}))(jnp.asarray(x[:, part]))
        np.testing.assert_allclose(packed[:, part], alone, rtol=1e-4, atol=1e-5)
