"""Every implementation of attention gives the numbers of plain loops, forward and backward."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from jax.sharding import AxisType

from zoo.errors import ZooError
from zoo.models import attention
from zoo.models.attention import Seen, attend, attend_causally, cudnn, splash
from zoo.models.layers import remat

B, H, G, T, K, WINDOW = 2, 4, 2, 20, 8, 6
DOCUMENTS = np.array([[1] * 7 + [2] * 13, [1] * 20], np.int32)
CASES = {"causal": (0, None), "window": (WINDOW, None), "documents": (0, DOCUMENTS), "both": (WINDOW, DOCUMENTS)}


def arrays():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((B, n, T, K)), jnp.float32) for n in (H, G, G, H)]


def value_and_grads(attention, q, k, v, weight):
    def total(q, k, v):
        o = attention(q, k, v)
        return jnp.sum(o * weight), o

    (_, o), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return o, *grads


@pytest.fixture(scope="module")
def plain():
    """(values, gradients) of the XLA implementation, by case."""

    @functools.cache
    def of(case):
        window, documents = CASES[case]
        at = jnp.arange(T)[None]
        seen = Seen(at, at, window, *(() if documents is None else (jnp.asarray(documents),) * 2))
        run = jax.jit(functools.partial(value_and_grads, lambda q, k, v: attend(q, k, v, seen.mask())[0]))
        return run(*arrays())

    return of


@pytest.fixture
def asked(monkeypatch):
    """Shapes of the queries that jax's own attention is called with."""
    shapes, library = [], jax.nn.dot_product_attention
    record = lambda q, *rest, **options: shapes.append(q.shape) or library(q, *rest, **options)
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    return shapes


def assert_equal(found, expected, tolerance):
    for a, b, name in zip(found, expected, ("values", "dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_mask_and_values_equal_loops(case, plain):
    window, documents = CASES[case]
    q, k, v, _ = (np.asarray(x) for x in arrays())
    expected = np.zeros_like(q)
    for b, h, t in np.ndindex(B, H, T):
        seen = [
            s
            for s in range(t + 1)
            if (not window or t - s < window) and (documents is None or documents[b, s] == documents[b, t])
        ]
        e = np.exp(k[b, h // 2, seen] @ q[b, h, t] / K**0.5)
        expected[b, h, t] = e / e.sum() @ v[b, h // 2, seen]
    np.testing.assert_allclose(plain(case)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_splash_equals_xla(case, plain):
    window, documents = CASES[case]
    run = functools.partial(splash, window=window, documents_bt=documents, interpret=True)
    assert_equal(jax.jit(functools.partial(value_and_grads, run))(*arrays()), plain(case), 1e-4)


def test_splash_goes_backward_in_two_kernels_where_a_sequence_is_long(plain, monkeypatch):
    monkeypatch.setattr(attention, "SPLASH_WIDE", 64)
    monkeypatch.setattr(attention, "_splash_kernel", attention._splash_kernel.__wrapped__)  # it keeps kernels
    run = jax.jit(functools.partial(value_and_grads, functools.partial(splash, documents_bt=DOCUMENTS, interpret=True)))
    assert_equal(run(*arrays()), plain("documents"), 1e-4)
    assert str(jax.make_jaxpr(run)(*arrays())).count("pallas_call[") == 3  # with the one that goes forward


def test_splash_with_heads_that_fill_a_register():
    rng = np.random.default_rng(1)
    q, k, v, weight = (jnp.asarray(rng.standard_normal((1, h, 9, 128)), jnp.float32) for h in (2, 1, 1, 2))
    at = jnp.arange(9)[None]
    by_xla = lambda q, k, v: attend(q, k, v, Seen(at, at).mask())[0]
    by_kernel = functools.partial(splash, interpret=True)
    found, expected = (jax.jit(functools.partial(value_and_grads, run))(q, k, v, weight) for run in (by_kernel, by_xla))
    assert_equal(found, expected, 1e-4)


@pytest.mark.parametrize(("policy", "kept"), [("dots", 2), ("dots_no_batch", 2), ("full", 0)])
def test_what_a_kernel_of_attention_makes_is_kept_with_products(policy, kept, capsys):
    """Its values and the logarithms of its sums."""
    q, k, v, _ = arrays()
    print_saved_residuals(remat(lambda q: splash(q, k, v, interpret=True), policy), q)
    assert capsys.readouterr().out.count("splash_attention_kernel.py") == kept


@pytest.mark.parametrize("case", ["causal", "both"])
def test_blocks_of_queries_change_nothing(case, plain, monkeypatch):
    """Of 8, 8 and 4 queries."""
    monkeypatch.setattr(attention, "BLOCK", 8)
    window, documents = CASES[case]
    at = jnp.arange(T)[None]
    seen = Seen(at, at, window, *(() if documents is None else (jnp.asarray(documents),) * 2))
    run = lambda q, k, v: attend_causally(q, k, v, seen, "auto")  # on a CPU that is xla
    assert_equal(jax.jit(functools.partial(value_and_grads, run))(*arrays()), plain(case), 1e-5)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_kernels_run_on_the_shards_of_a_mesh(kernel, plain, asked):
    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    how = {"splash": functools.partial(splash, interpret=True), "cudnn": functools.partial(cudnn, implementation="xla")}
    run = functools.partial(how[kernel], window=WINDOW, documents_bt=jnp.asarray(DOCUMENTS))
    with jax.set_mesh(mesh):
        found = jax.jit(functools.partial(value_and_grads, run))(*arrays())
    assert_equal(found, plain("both"), 1e-4)
    assert set(asked) == (set() if kernel == "splash" else {(B // 2, T, H // 2, K)})


@pytest.mark.parametrize("case", CASES)
def test_the_entry_of_cudnn_equals_xla(case, plain):
    """Its own kernel needs a GPU; what is asked of it is checked with jax's other implementation."""
    window, documents = CASES[case]
    run = functools.partial(cudnn, window=window, documents_bt=documents, implementation="xla")
    assert_equal(jax.jit(functools.partial(value_and_grads, run))(*arrays()), plain(case), 1e-4)


def test_the_entry_of_cudnn_takes_an_odd_number_of_tokens(plain, asked):
    """Its kernel does not: one more token is added, which no query sees."""
    q, k, v, _ = (x[:, :, :-1] for x in arrays())
    found = jax.jit(functools.partial(cudnn, documents_bt=DOCUMENTS[:, :-1], implementation="xla"))(q, k, v)
    assert asked == [(B, T, H, K)]
    np.testing.assert_allclose(found, plain("documents")[0][:, :, :-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("capability", "dtype", "head", "why"),
    [
        ("9.0", "bfloat16", 64, ""),
        ("8.0", "float16", 128, ""),
        ("7.5", "bfloat16", 64, "8.0 (Ampere) or later"),
        ("gfx90a", "bfloat16", 64, "NVIDIA"),
        ("9.0", "float32", 64, "not float32"),
        ("9.0", "bfloat16", 60, "not 60"),
        ("9.0", "bfloat16", 256, "not 256"),
    ],
)
def test_auto_is_cudnn_where_its_kernel_can_run(capability, dtype, head, why, monkeypatch):
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    ran = []
    monkeypatch.setattr(attention, "cudnn", lambda q, *_: ran.append(q.shape[2]) or q)

    def trace(how, length):
        at, q = jnp.arange(length)[None], jax.ShapeDtypeStruct((1, 1, length, head), dtype)
        jax.eval_shape(lambda q: attend_causally(q, q, q, Seen(at, at), how), q)

    for length in (attention.LONG - 1, attention.LONG):
        trace("auto", length)
    assert ran == ([] if why else [attention.LONG])
    if why:
        with pytest.raises(ZooError, match=re.escape(why)):
            trace("cudnn", 8)


def test_absent_keys_are_not_seen():
    seen = Seen(jnp.array([[5]]), jnp.array([[4, 5, -1, 3, 6]]), window=2).mask()
    np.testing.assert_array_equal(seen, [[[True, True, False, False, False]]])
