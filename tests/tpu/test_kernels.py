"""The counting of Pallas kernels, beside counts by hand and by loops over the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpu.kernels import tally
from zoo.models.attention import SPLASH_BLOCK, SPLASH_WIDE, splash
from zoo.train.flops import count_flops
from zoo.train.mesh import MeshConfig, make_mesh

BLOCK = SPLASH_BLOCK


def attention(rows, heads, length, size, window=0, dtype=jnp.bfloat16):
    """Shapes of queries, keys and values, and the kernel's call on them."""
    x = jax.ShapeDtypeStruct((rows, heads, length, size), dtype)
    return lambda q, k, v: splash(q, k, v, window), (x, x, x)


def visited(length, window=0):
    """Blocks of a causal mask with something to see in them, and those with nothing hidden, by its definition."""
    query, key = np.arange(length)[:, None], np.arange(length)[None]
    seen = (key <= query) & (query - key < (window or length))
    blocks = seen.reshape(length // BLOCK, BLOCK, length // BLOCK, BLOCK)
    return int(blocks.any((1, 3)).sum()), int(blocks.all((1, 3)).sum()), float(seen.mean())


@pytest.mark.parametrize(("length", "window", "size"), [(1024, 0, 64), (2048, 600, 128)])
def test_masked_blocks_are_skipped_and_others_count_whole(length, window, size):
    call, shapes = attention(3, 2, length, size, window)
    (kernel,) = tally(jax.make_jaxpr(call)(*shapes)).kernels
    some, whole, _ = visited(length, window)
    assert whole < some < (length // BLOCK) ** 2
    assert kernel.flops == 3 * 2 * some * 2 * (2 * BLOCK * BLOCK * size)  # rows, heads, blocks, products
    assert kernel.work == kernel.flops / min(1, size / 128)
    assert kernel.needed == kernel.flops * (whole + (some - whole) / 2) / some


def test_seconds_are_those_of_the_slower():
    call, shapes = attention(1, 1, 1024, 64)
    (kernel,) = tally(jax.make_jaxpr(call)(*shapes)).kernels
    assert kernel.seconds(1e12, 1e30) == pytest.approx(kernel.flops * 2 / (0.7 * 1e12))
    assert kernel.seconds(1e30, 1e9) == pytest.approx(kernel.bytes / 1e9)


@pytest.mark.parametrize("length", [SPLASH_WIDE, 2 * SPLASH_WIDE])
def test_a_gradient_needs_twice_the_forward(length):
    """By XLA a gradient of attention is three times its forward; of the mask's visible part that is what is needed."""
    size = 128
    call, shapes = attention(2, 2, length, size)
    grad = jax.grad(lambda *x: call(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    closed = jax.make_jaxpr(grad)(*shapes)
    forward, *backward = (kernel.flops for kernel in tally(closed).kernels)
    if length > SPLASH_WIDE:  # scores and their gradients again, for queries and for keys with values
        assert sorted(backward) == [forward * 3 / 2, forward * 4 / 2]
    else:  # at once, and for all keys: scores again, and four products
        assert backward == [forward * (length // BLOCK) ** 2 / visited(length)[0] * 5 / 2]
    square = 3 * 2 * (2 * 2 * 2 * length * length * size)
    between = 2 * (2 * 2 * length * size)  # each row of the result times its gradient
    assert tally(closed).needed == pytest.approx(square * visited(length)[2] + between, rel=1e-3)
    assert tally(closed).flops == forward + sum(backward) + between


def test_a_mesh_shares_a_kernel_and_scans_repeat_it():
    call, shapes = attention(8, 2, 512, 64)
    alone = tally(jax.make_jaxpr(call)(*shapes)).kernels[0]
    mesh = make_mesh(MeshConfig(data=4, tensor=2))

    def three_times(q, k, v):
        return jax.lax.scan(lambda q, _: (call(q, k, v), None), q, length=3)[0]

    with jax.set_mesh(mesh):
        closed = jax.make_jaxpr(jax.jit(three_times))(*shapes)
    (kernel,) = tally(closed).kernels
    assert kernel.flops * 8 == alone.flops
    assert tally(closed).flops == 3 * alone.flops


def multiply(table_ref, x_ref, y_ref, o_ref):
    """A product where the table says so, and four more in the last program of each row."""
    i, j = pl.program_id(0), pl.program_id(1)

    @pl.when(table_ref[i, j] > 0)
    def _():
        o_ref[...] = jnp.dot(x_ref[...], y_ref[...])

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        o_ref[...] = jax.lax.fori_loop(0, 4, lambda _, z: jnp.dot(z, z), x_ref[...])


def tabled(table, x, y):
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(2, 3),
        in_specs=[
            pl.BlockSpec((128, 128), lambda i, j, table: (i, 0)),
            pl.BlockSpec((128, 128), lambda i, j, table: (0, table[i, j])),
        ],
        out_specs=pl.BlockSpec((128, 128), lambda i, j, table: (i, j)),
    )
    return pl.pallas_call(
        multiply, grid_spec=grid, out_shape=jax.ShapeDtypeStruct((256, 384), jnp.float32), name="tabled"
    )(table, x, y)


TABLE = np.array([[0, 2, 2], [1, 0, 0]], np.int32)
X, Y = jax.ShapeDtypeStruct((256, 128), jnp.float32), jax.ShapeDtypeStruct((128, 384), jnp.float32)
ONE = 2 * 128**3


def test_any_kernel_by_its_table():
    (kernel,) = tally(jax.make_jaxpr(lambda x, y: tabled(jnp.asarray(TABLE) + 0, x, y))(X, Y)).kernels
    assert kernel.flops == (3 + 2 * 4) * ONE == kernel.needed  # three entries, and four in each of two rows
    # x in two blocks, y where its column changes (0 2 2 1 0 0), six blocks of the result
    assert kernel.bytes == (2 + 4 + 6) * 128 * 128 * 4
    assert (kernel.name, kernel.results) == ("tabled", ((256, 384),))


def test_what_is_not_known_counts_as_its_dearest():
    table = jax.ShapeDtypeStruct(TABLE.shape, TABLE.dtype)
    (kernel,) = tally(jax.make_jaxpr(tabled)(table, X, Y)).kernels
    assert kernel.flops == (6 + 2 * 4) * ONE
    assert kernel.bytes == (2 + 6 + 6) * 128 * 128 * 4


def test_rows_of_a_batch_are_programs_too():
    def batched(x, y):
        return jax.vmap(lambda x, y: tabled(TABLE, x, y))(x, y)

    shapes = [jax.ShapeDtypeStruct((5, *z.shape), z.dtype) for z in (X, Y)]
    (kernel,) = tally(jax.make_jaxpr(batched)(*shapes)).kernels
    assert kernel.flops == 5 * (3 + 2 * 4) * ONE
    assert kernel.bytes == 5 * (2 + 4 + 6) * 128 * 128 * 4


def test_of_a_conditional_the_dearest_branch():
    def either(x, y):
        return jax.lax.cond(x[0, 0] > 0, lambda: tabled(TABLE, x, y), lambda: jnp.tile(x, (1, 3)))

    closed = jax.make_jaxpr(either)(X, Y)
    assert tally(closed).flops == (3 + 2 * 4) * ONE


def test_without_kernels_it_is_the_count_of_all_others():
    closed = jax.make_jaxpr(lambda x, y: x @ y)(X, Y)
    assert tally(closed).flops == tally(closed).needed == count_flops(closed) == 2 * 256 * 128 * 384
