import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from tests.models.tiny import RICH, TINY, noisy
from zoo.errors import ZooError
from zoo.models import attention, decoder, positions
from zoo.models.decoder import VARIANTS, Decoder, DecoderConfig
from zoo.models.functional import abstract, count, merge, split
from zoo.weights import imports

GOLDEN = Path(__file__).parent.parent / "golden"


def tokens(config, batch=2, length=None):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(config.vocab_size, size=(batch, length or config.context)), jnp.int32)


def initial(config):
    return jax.jit(lambda: split(Decoder(config, nnx.Rngs(0)))[1])()


def loss_and_grads(graphdef, params, tokens_bt):
    def loss(params):
        logits_btv = merge(graphdef, params, {})(tokens_bt[:, :-1], train=True)
        targets = jnp.take_along_axis(jax.nn.log_softmax(logits_btv), tokens_bt[:, 1:, None], axis=-1)
        return -jnp.mean(targets), logits_btv

    (value, logits_btv), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, logits_btv, grads


def norms(tree):
    return {name: np.linalg.norm(x) for name, x in tree.items()}


@pytest.fixture(scope="module")
def tiny():
    graphdef, params = noisy(TINY)
    return merge(graphdef, params, {})


@pytest.fixture(scope="module")
def apply(tiny):
    """The tiny model on full-length tokens, compiled once: (logits, features)."""
    return jax.jit(lambda tokens_bt: tiny(tokens_bt, features=True))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.1-8b", 8_030_261_248),
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen3-0.6b", 596_049_920),
        ("mistral-7b", 7_241_732_096),
        # Embeddings, then a layer of four projections and the MLP, two norms and all biases; and the last norm.
        ("gpt-nano", (256 + 64) * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128),
        ("gpt-mini", (256 + 256) * 384 + 6 * (12 * 384**2 + 13 * 384) + 2 * 384),
        # No positions and no biases; two norms over d_model and two over the head.
        ("gpt-modern", 256 * 128 + 4 * (12 * 128**2 + 2 * 128 + 2 * 32) + 128),
        ("gpt-modern-s", 256 * 128 + 3 * (10 * 128**2 + 2 * 128 + 2 * 32) + 128),
        ("gpt-modern-xs", 256 * 128 + 2 * (8 * 128**2 + 2 * 128 + 2 * 32) + 128),
    ],
)
def test_parameter_counts(name, parameters):
    _, params, stats = abstract(lambda rngs: Decoder(VARIANTS[name], rngs))
    assert count(params) == parameters
    assert stats == {}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_gpt2_equals_the_reference(loop):
    golden = load_file(GOLDEN / "gpt2_tiny.safetensors")
    weights = {name.removeprefix("weights/"): x for name, x in golden.items() if name.startswith("weights/")}
    config = DecoderConfig(vocab_size=64, context=16, layers=2, d_model=24, heads=4, loop=loop)
    graphdef, shapes, _ = abstract(lambda rngs: Decoder(config, rngs))
    params = imports.assign({"params": shapes}, weights, imports.GPT2)["params"]

    loss, logits, grads = loss_and_grads(graphdef, params, golden["tokens"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    grad_norms = norms(imports.export({"params": grads}, imports.GPT2))
    assert len(grad_norms) == len(weights)
    for name, norm in grad_norms.items():
        np.testing.assert_allclose(norm, golden[f"grad_norms/{name}"], rtol=1e-3, atol=1e-6, err_msg=name)


def test_modern_parts_equal_the_reference():
    golden = load_file(GOLDEN / "qwen3_tiny.safetensors")
    d, h, g, k = 24, 4, 2, 8

    def stack(name, *shape):
        layers = [golden[f"weights/model.layers.{i}.{name}.weight"] for i in range(2)]
        return np.stack([(w.T if w.ndim == 2 else w).reshape(shape or w.T.shape) for w in layers])

    params = {
        "token_embed": golden["weights/model.embed_tokens.weight"],
        "final_norm_scale": golden["weights/model.norm.weight"],
        "head": golden["weights/lm_head.weight"],
        "blocks": {
            "attn_norm_scale": stack("input_layernorm"),
            "q": stack("self_attn.q_proj", d, h, k),
            "k": stack("self_attn.k_proj", d, g, k),
            "v": stack("self_attn.v_proj", d, g, k),
            "q_norm_scale": stack("self_attn.q_norm"),
            "k_norm_scale": stack("self_attn.k_norm"),
            "out": stack("self_attn.o_proj", h, k, d),
            "mlp_norm_scale": stack("post_attention_layernorm"),
            "gate": stack("mlp.gate_proj"),
            "up": stack("mlp.up_proj"),
            "down": stack("mlp.down_proj"),
        },
    }
    config = DecoderConfig(
        vocab_size=64,
        context=16,
        layers=2,
        d_model=d,
        heads=h,
        kv_heads=g,
        head_size=k,
        d_ff=40,
        positions="rotary",
        rope_theta=1000.0,
        norm="rms",
        norm_eps=1e-6,
        activation="swiglu",
        bias=False,
        qk_norm=True,
        tied=False,
    )
    graphdef, shapes, _ = abstract(lambda rngs: Decoder(config, rngs))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    logits = jax.jit(lambda params, x: merge(graphdef, params, {})(x))(params, golden["tokens"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)


def shrunk(config):
    """The same architecture, tiny, without what takes no part in the gradient's flow."""
    return replace(
        TINY,
        kv_heads=1 if config.kv_heads else None,
        window=min(config.window, 3),
        rope_factor=min(config.rope_factor, 2.0),
        **{
            name: getattr(config, name)
            for name in ("positions", "norm", "activation", "bias", "qkv_bias", "qk_norm", "tied")
        },
    )


@pytest.mark.parametrize(
    "config",
    [*{shrunk(config): None for config in VARIANTS.values()}, RICH, replace(TINY, positions="sinusoidal")],
    ids=lambda config: f"{config.positions}-{config.norm}-{config.activation}",
)
def test_every_parameter_gets_a_gradient(config):
    loss, _, grads = loss_and_grads(*noisy(config), tokens(config))
    assert np.isfinite(loss)
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.any(g)]
    # A softmax over keys does not see what is the same for all of them.
    assert [name for name in dead if "k_bias" not in name] == []
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_loops_and_remat_change_nothing():
    _, params = noisy(RICH)

    def run(**fields):
        graphdef, _, _ = abstract(lambda rngs: Decoder(replace(RICH, **fields), rngs))
        return loss_and_grads(graphdef, params, tokens(RICH))

    expected = run()
    for fields in ({"remat": "full"}, {"loop": "unroll", "remat": "dots"}):
        loss, _, grads = run(**fields)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6, err_msg=str(fields))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads, expected[2])


def test_past_does_not_see_the_future(apply):
    x = tokens(TINY)
    before, after = apply(x)[0], apply(x.at[:, 5].set((x[:, 5] + 1) % TINY.vocab_size))[0]
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.any(before[:, 5:] != after[:, 5:], axis=-1))


def test_features(tiny, apply):
    x = tokens(TINY)
    logits_btv, out = apply(x)
    b, t = x.shape
    assert out["attention"].shape == (TINY.layers, b, TINY.heads, t, t)
    np.testing.assert_allclose(np.sum(out["attention"], -1), 1, rtol=1e-6)
    assert not np.any(np.triu(out["attention"], 1))
    np.testing.assert_allclose(out["embedded"], tiny.token_embed[...][x] + tiny.position_embed[...][None], rtol=1e-6)
    r = np.asarray(out["residual"][-1])
    final = (r - r.mean(-1, keepdims=True)) / np.sqrt(r.var(-1, keepdims=True) + TINY.norm_eps)
    final = final * np.asarray(tiny.final_norm_scale[...]) + np.asarray(tiny.final_norm_bias[...])
    np.testing.assert_allclose(out["final"], final, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits_btv, final @ np.asarray(tiny.token_embed[...]).T, rtol=1e-4, atol=1e-5)
    part_btv = jax.jit(lambda x: tiny.logits(tiny.hidden(x)[:, 3:5]))(x)
    np.testing.assert_allclose(part_btv, logits_btv[:, 3:5], rtol=1e-5, atol=1e-5)


def test_attend_equals_loops_over_heads_and_times():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 5, 4)).astype(np.float32) for n in (6, 2, 2))
    mask = np.tril(np.ones((5, 5), bool)) & (rng.random((5, 5)) < 0.7) | np.eye(5, dtype=bool)
    o, weights = attention.attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(mask)[None])
    for b, h, t in np.ndindex(2, 6, 5):
        allowed = np.flatnonzero(mask[t])
        e = np.exp(k[b, h // 3, allowed] @ q[b, h, t] / 2)
        np.testing.assert_allclose(weights[b, h, t, allowed], e / e.sum(), rtol=1e-5)
        np.testing.assert_allclose(o[b, h, t], e / e.sum() @ v[b, h // 3, allowed], rtol=1e-4, atol=1e-6)


def test_sinusoids_closed_form():
    table = positions.sinusoids(jnp.arange(50), 8)
    for t in (0, 1, 7, 49):
        for i in range(4):
            angle = t / 10000 ** (2 * i / 8)
            assert table[t, 2 * i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[t, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-5)


def test_sinusoids_are_added_to_scaled_embeddings():
    config = replace(TINY, positions="sinusoidal", layers=1)
    graphdef, params = noisy(config)
    x = tokens(config)
    _, out = jax.jit(lambda x: merge(graphdef, params, {})(x, features=True))(x)
    expected = params["token_embed"][x] * 12**0.5 + positions.sinusoids(jnp.arange(8), 12)[None]
    np.testing.assert_allclose(out["embedded"], expected, rtol=1e-6, atol=1e-6)


def test_rotary_turns_pairs_by_their_position():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 6)), jnp.float32) for _ in range(2))

    def at(x, t):
        turns = positions.rotary_turns(jnp.array([[t]]), positions.rotary_frequencies(6, 100.0))
        return np.asarray(positions.rotate(x, *turns))[0, 0, 0]

    for i in range(3):  # as complex numbers, first half real and second half imaginary
        angle = 5 * 100.0 ** (-2 * i / 6)
        turned = complex(q[0, 0, 0, i], q[0, 0, 0, i + 3]) * complex(math.cos(angle), math.sin(angle))
        assert complex(at(q, 5)[i], at(q, 5)[i + 3]) == pytest.approx(turned, abs=1e-5)
    np.testing.assert_allclose(np.linalg.norm(at(q, 9)), np.linalg.norm(q), rtol=1e-5)
    np.testing.assert_allclose(at(q, 7) @ at(k, 4), at(q, 103) @ at(k, 100), rtol=1e-3)  # distance alone matters
    assert abs(at(q, 7) @ at(k, 4) - at(q, 7) @ at(k, 5)) > 1e-3


def test_dropout_needs_both_train_and_a_key(apply):
    x, key = tokens(TINY), jax.random.key(0)
    _, params = noisy(TINY)

    def run(loop, train, key):
        graphdef, _, _ = abstract(lambda rngs: Decoder(replace(TINY, dropout=0.5, loop=loop), rngs))
        return jax.jit(lambda key: merge(graphdef, params, {})(x, train=train, key=key))(key)

    evaluated = apply(x)[0]
    np.testing.assert_allclose(run("scan", True, None), evaluated, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run("scan", False, key), evaluated, rtol=1e-5, atol=1e-6)
    dropped = run("scan", True, key)
    assert np.mean(np.abs(dropped - evaluated) > 1e-3) > 0.9
    assert np.mean(np.abs(dropped - run("scan", True, jax.random.key(1))) > 1e-3) > 0.9
    np.testing.assert_allclose(run("unroll", True, key), dropped, rtol=1e-5, atol=1e-6)


def test_softcap_and_head():
    _, params = noisy(RICH)

    def run(config):
        graphdef, _, _ = abstract(lambda rngs: Decoder(config, rngs))
        return jax.jit(lambda x: merge(graphdef, params, {})(x))(tokens(RICH))

    plain = np.asarray(run(replace(RICH, softcap=0.0)))
    assert np.max(np.abs(plain)) > 2
    np.testing.assert_allclose(run(RICH), 5 * np.tanh(plain / 5), rtol=1e-4, atol=1e-5)


def test_initial_scales():
    params = initial(replace(TINY, vocab_size=500, context=500, layers=8, d_model=64))
    deviations = {name: float(np.std(x)) for name, x in (params | params["blocks"]).items() if name != "blocks"}
    for name in ("token_embed", "q", "k", "v", "up"):
        assert deviations[name] == pytest.approx(0.02, rel=0.03), name
    for name in ("out", "down"):
        assert deviations[name] == pytest.approx(0.02 / 4, rel=0.03), name  # sqrt(2 × 8 layers)
    assert deviations["position_embed"] == pytest.approx(0.01, rel=0.03)
    assert not np.any(params["blocks"]["up_bias"])
    zero = initial(replace(TINY, residual_init="zero"))["blocks"]
    assert not np.any(zero["out"])
    assert not np.any(zero["down"])
    assert np.any(zero["up"])


def test_bfloat16_computes_near_float32(tiny, apply):
    graphdef, _, _ = abstract(lambda rngs: Decoder(replace(TINY, dtype="bfloat16"), rngs))
    model = merge(graphdef, split(tiny)[1], {})
    logits_btv, out = jax.jit(lambda x: model(x, features=True))(tokens(TINY))
    assert logits_btv.dtype == jnp.float32
    assert out["residual"].dtype == out["final"].dtype == jnp.bfloat16
    expected = apply(tokens(TINY))[0]
    assert np.sqrt(np.mean((logits_btv - expected) ** 2)) < 0.03 * np.std(expected)


def test_errors(tiny):
    with pytest.raises(ZooError, match="9 tokens do not fit a context of 8"):
        tiny(tokens(TINY, length=9))
    for fields, message in (
        ({"positions": "rotery"}, "unknown positions 'rotery'; did you mean rotary"),
        ({"loop": "for"}, "unknown loop"),
        ({"remat": "al"}, "unknown remat"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"heads": 5}, "d_model 12 does not divide by heads 5"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 does not divide by kv_heads 3"),
        ({"head_size": 3, "positions": "rotary"}, "head size 3 is odd"),
        ({"d_model": 13, "heads": 1, "positions": "sinusoidal"}, "d_model 13 is odd"),
        ({"layers": 0}, "at least 1"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
    ):
        with pytest.raises(ZooError, match=message):
            Decoder(replace(TINY, **fields), nnx.Rngs(0))


def test_sharding_table_names_every_matrix():
    for config in (*VARIANTS.values(), RICH):
        _, params, _ = abstract(lambda rngs, config=config: Decoder(config, rngs))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            specs = [spec for pattern, spec in decoder.SHARDING if re.search(pattern, name)]
            vector = name.endswith(("scale", "bias"))
            assert len(specs) == (0 if vector else 1), name
            assert all(len(spec) == leaf.ndim for spec in specs), name
            axes = [axes for pattern, axes in decoder.MATRICES if re.search(pattern, name)]
            stacked = name.startswith("blocks/")
            assert len(axes) == (not vector and not re.fullmatch(r"(position|row|column)_embed", name)), name
            assert all((*range(stacked), *reduced, *output) == tuple(range(leaf.ndim)) for reduced, output in axes), (
                name
            )
    names = "\n".join(
        f"{key}\n" + "\n".join(f"blocks/{k}" for k in params["blocks"]) for key in params if key != "blocks"
    )
    patterns = [pattern for pattern, _ in (*decoder.SHARDING, *decoder.MATRICES) if "position" not in pattern]
    assert all(re.search(pattern, names, re.MULTILINE) for pattern in patterns)
