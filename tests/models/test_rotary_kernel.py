"""The kernel of norm and rotation gives the numbers of both done one after the other, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from zoo.models import positions, rotary_kernel
from zoo.models.layers import rms_norm
from zoo.models.positions import place, rotary_frequencies, rotary_turns, rotate
from zoo.models.rotary_kernel import fits, norm_and_rotate

B, H, T, K, EPS = 2, 2, 256, 128, 1e-5


def arrays(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal((B, H, T, K)), dtype) for _ in range(2))
    return x, weight, jnp.asarray(1 + 0.3 * rng.standard_normal(K), jnp.float32)


def turns(own=False):
    """Cosines and sines of positions that the rows share, or of their own."""
    at_bt = jnp.arange(T)[None] + (7 * jnp.arange(B)[:, None] if own else 0)
    return rotary_turns(at_bt, rotary_frequencies(K, 10_000.0))


def value_and_grads(fn, x, weight, scale):
    def total(x, scale):
        y = fn(x, scale)
        return jnp.sum(y * weight), y

    (_, y), grads = jax.value_and_grad(total, argnums=(0,) if scale is None else (0, 1), has_aux=True)(x, scale)
    return y, *grads


def by_kernel(own, x, scale):
    return norm_and_rotate(x, *turns(own), scale, EPS, interpret=True)


def in_turn(own, x, scale):
    return rotate(x if scale is None else rms_norm(x, scale, EPS), *turns(own))


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_kernel_equals_norm_and_rotation(normed, own, monkeypatch):
    monkeypatch.setattr(rotary_kernel, "ROWS", 128)  # two blocks of tokens
    x, weight, scale = arrays()
    run = lambda fn: jax.jit(functools.partial(value_and_grads, functools.partial(fn, own)))
    given = (x, weight, scale if normed else None)
    assert_equal(run(by_kernel)(*given), run(in_turn)(*given))


def test_kernel_runs_on_the_shards_of_a_mesh():
    """The scale's gradient is the sum over all of them."""
    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    expected = value_and_grads(functools.partial(in_turn, True), *arrays())
    with jax.set_mesh(mesh):
        found = jax.jit(functools.partial(value_and_grads, functools.partial(by_kernel, True)))(*arrays())
    assert_equal(found, expected)


def test_kernel_keeps_the_dtype():
    x, _, scale = arrays(jnp.bfloat16)
    y, back = jax.vjp(lambda x: by_kernel(False, x, scale), x)
    assert y.dtype == back(y)[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), in_turn(False, x.astype(jnp.float32), scale), atol=0.03)


def test_queries_are_placed_by_the_kernel_on_a_tpu(monkeypatch):
    x, _, scale = arrays()
    assert [fits(x), fits(x[:, :, :100]), fits(x[..., :64])] == [True, False, False]
    expected = [place(x, turns(), *norm, factor=0.5) for norm in ((), (scale, EPS))]
    np.testing.assert_allclose(expected[0], 0.5 * rotate(x, *turns()), atol=1e-5)
    np.testing.assert_allclose(expected[1], 0.5 * rotate(rms_norm(x, scale, EPS), *turns()), atol=1e-5)
    np.testing.assert_allclose(place(x, None, factor=0.5), 0.5 * x)
    np.testing.assert_allclose(place(x, None, scale, EPS, 0.5), 0.5 * rms_norm(x, scale, EPS), atol=1e-5)
    calls = []

    def kernel(*given):
        calls.append(given)
        return norm_and_rotate(*given, interpret=True)

    monkeypatch.setattr(positions.rotary_kernel, "norm_and_rotate", kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for norm, plain in zip(((), (scale, EPS)), expected, strict=True):
        np.testing.assert_allclose(place(x, turns(), *norm, factor=0.5), plain, atol=1e-5)
    assert len(calls) == 2
    place(x[:, :, :1], (turns()[0][:, :1], turns()[1][:, :1]))  # a step of decoding
    assert len(calls) == 2
