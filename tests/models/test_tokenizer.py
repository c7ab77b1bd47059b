"""Image tokenizers: quantisers by hand and against formulas, the network around them, and their losses."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import ZooError
from zoo.models import functional, tokenizer
from zoo.models.tokenizer import FSQ, VARIANTS, JudgedTokenizer, Tokenizer, TokenizerConfig, VectorQuantiser, rotate
from zoo.objectives import quantise
from zoo.train.mesh import BATCH, MeshConfig, make_mesh

TINY = TokenizerConfig(
    image_size=8,
    channels=1,
    patch=2,
    widths=(4, 6),
    blocks=1,
    levels=(4, 3),
    codes=5,
    code_width=3,
    decay=0.75,
    revive=0.0,
)
EMA = replace(TINY, quantiser="ema")
VQ = replace(TINY, quantiser="vq")


def images(batch=2, size=8, channels=1):
    """Noise, from dark images to bright ones."""
    noise = np.random.default_rng(0).random((batch, size, size, channels))
    return jnp.asarray(noise * np.linspace(0, 1, batch)[:, None, None, None], jnp.float32)


def vector_quantiser(config, codebook_kd):
    """A quantiser whose codes are given."""
    quantiser = VectorQuantiser(config, nnx.Rngs(0))
    quantiser.embedding[...] = jnp.asarray(codebook_kd, jnp.float32)
    if config.quantiser == "ema":
        quantiser.sums[...] = jnp.asarray(codebook_kd, jnp.float32)
    return quantiser


def grid(rows):
    """Vectors [N, D] as features [1, 1, N, D]."""
    return jnp.asarray(rows, jnp.float32)[None, None]


def drawn(build):
    """(graphdef, params, stats) of a module with all its arrays drawn anew: initialising it would compile for long."""
    graphdef, *shapes = functional.abstract(build)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if re.search("scale|counts", jax.tree_util.keystr(path)):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        scale = 0.1 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return graphdef, *jax.tree_util.tree_map_with_path(draw, shapes)


def drawn_tokenizer(config):
    return functional.merge(*drawn(functools.partial(Tokenizer, config)))


def compiled(config):
    """(params, stats, a jitted function of params, stats, images and key) of a model.

    The function gives the reconstruction with its ids, the ids of `encode`, what `decode` makes of them, and the
    gradients of the squared error and the losses of the codes.
    """
    graphdef, params, stats = drawn(functools.partial(Tokenizer, config))

    def loss(params, stats, x, key):
        model = functional.merge(graphdef, params, stats)
        image, quantised = model(x, train=True, key=key)
        terms = jnp.mean(jnp.square(image - x)) + quantise.commitment_loss(*quantised[2:]).mean()
        return terms + quantise.codebook_loss(*quantised[2:]).mean()

    def run(params, stats, x, key):
        model = functional.merge(graphdef, params, stats)
        image, quantised = model(x)
        ids = model.encode(x)
        return image, quantised.ids, ids, model.decode(ids), jax.grad(loss)(params, stats, x, key)

    return params, stats, jax.jit(run)


# FSQ


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (7, 5, 4, 3, 2), (2,), (6,)])
def test_fsq_numbers_every_code_once(levels):
    fsq, size = FSQ(levels), int(np.prod(levels))
    codes = np.asarray(fsq.codes_of(jnp.arange(size, dtype=jnp.int32)[None, None])[0, 0])
    # Written independently: the levels in the order in which the first one counts fastest.
    each = [(np.arange(n) - n // 2) / (n // 2) for n in levels]
    expected = np.stack([part.ravel(order="F") for part in np.meshgrid(*each, indexing="ij")], axis=-1)
    np.testing.assert_allclose(codes, expected, atol=1e-7)
    # Features that tanh takes to a code come back as that code and its number.
    odd, reach = np.array(levels) % 2, (np.array(levels) - 1) * 0.4995
    down = 0.5 * (1 - odd)
    levelled = np.clip((codes * (np.array(levels) // 2) + down) / reach, -0.9999, 0.9999)
    quantised = fsq(grid(np.arctanh(levelled) - np.tan(down / reach)))
    np.testing.assert_array_equal(quantised.ids[0, 0], np.arange(size))
    np.testing.assert_array_equal(quantised.code[0, 0], codes)


def test_fsq_by_hand():
    # 5 levels: 2 tanh(z) rounds to -2 … 2, edges at tanh(z) = ±0.25 and ±0.75 (z = 0.2554 and 0.973, and a hair more).
    z = [-9.0, -0.97, -0.26, -0.25, 0.0, 0.25, 0.26, 0.97, 0.98, 9.0]
    quantised = FSQ((5,))(grid(np.array(z)[:, None]))
    np.testing.assert_array_equal(quantised.code[0, 0, :, 0], [-1, -0.5, -0.5, 0, 0, 0, 0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(quantised.ids[0, 0], [0, 1, 1, 2, 2, 2, 3, 3, 4, 4])
    # 4 levels, -1, -1/2, 0 and 1/2, the middle edge at z = -tan(0.5 / 1.4985) = -0.3467: 0 is inside of its level.
    quantised = FSQ((4,))(grid(np.array([-9.0, -0.36, -0.34, 0.0, 9.0])[:, None]))
    np.testing.assert_array_equal(quantised.code[0, 0, :, 0], [-1, -0.5, 0, 0, 0.5])
    np.testing.assert_array_equal(quantised.ids[0, 0], [0, 1, 2, 2, 3])


def test_fsq_gradient_is_that_of_its_bound():
    z = grid(np.random.default_rng(0).standard_normal((6, 3)))
    upstream = grid(np.random.default_rng(1).standard_normal((6, 3)))
    _, pull = jax.vjp(lambda z: FSQ((5, 3, 7))(z).code, z)
    slope = np.array([4 / 2, 2 / 1, 6 / 3]) * 0.4995 * (1 - np.tanh(np.asarray(z)) ** 2)
    np.testing.assert_allclose(pull(upstream)[0], upstream * slope, rtol=1e-5)


def test_fsq_against_a_library():
    library = pytest.importorskip("vector_quantize_pytorch")
    torch = pytest.importorskip("torch")
    ids = np.arange(8 * 5 * 4 * 3)
    codes = library.FSQ([8, 5, 4, 3]).indices_to_codes(torch.tensor(ids)).numpy()
    np.testing.assert_array_equal(FSQ((8, 5, 4, 3)).codes_of(jnp.asarray(ids, jnp.int32)[None, None])[0, 0], codes)


# Gradients through a codebook


def test_straight_through_has_the_code_and_the_gradient_of_the_features():
    quantiser = vector_quantiser(VQ, np.eye(5, 3))
    z = grid([[0.9, 0.3, 0.1], [0.2, 0.1, 5.0]])
    code, pull = jax.vjp(lambda z: quantiser(z).code, z)
    np.testing.assert_array_equal(code[0, 0], np.eye(3)[[0, 2]])
    np.testing.assert_array_equal(pull(2 * z)[0], 2 * z)


def test_rotation_trick():
    z = np.array([[0.3, 0.8, 0.3], [-1.3, 0.9, 0.4], [1.0, 0.0, 0.0]])
    code = np.array([[-0.5, 0.6, 0.4], [0.3, 0.0, 0.5], [-2.0, 0.0, 0.0]])
    upstream = np.array([[-0.7, -0.2, -0.5], [0.6, 0.0, -0.3], [0.5, 0.25, 0.0]])
    value, pull = jax.vjp(lambda z: rotate(z, grid(code)), grid(z))
    np.testing.assert_array_equal(value, grid(code))
    (gradient,) = pull(grid(upstream))
    for i in range(2):  # the matrix of the paper, section 4.2
        e, q = z[i] / np.linalg.norm(z[i]), code[i] / np.linalg.norm(code[i])
        r = (e + q) / np.linalg.norm(e + q)
        turn = np.eye(3) - 2 * np.outer(r, r) + 2 * np.outer(q, e)
        np.testing.assert_allclose(turn @ e, q, atol=1e-12)
        scaled = np.linalg.norm(code[i]) / np.linalg.norm(z[i]) * turn
        np.testing.assert_allclose(gradient[0, 0, i], scaled.T @ upstream[i], rtol=1e-5, atol=1e-6)
    # The same numbers from lucidrains/vector-quantize-pytorch 1.32.0, `rotate_to`.
    golden = [[-0.736061, 0.388362, -0.199570], [0.122014, 0.143666, 0.148296]]
    np.testing.assert_allclose(gradient[0, 0, :2], golden, atol=2e-6)
    assert np.all(np.isfinite(gradient))  # the third code lies straight behind its features
    quantiser = vector_quantiser(replace(VQ, rotation=True), np.eye(5, 3))
    turned = jax.grad(lambda z: jnp.sum(quantiser(z).code * grid([[0.0, 1.0, 0.0]])))(grid([[2.0, 1.0, 0.0]]))
    # Onto the first axis from (2, 1)/√5: what was the second axis is (-1, 2)/√5, and lengths shrink by √5.
    np.testing.assert_allclose(turned[0, 0, 0], [-1 / 5, 2 / 5, 0], atol=1e-6)


def test_losses_of_codes_move_only_what_they_should():
    rng = np.random.default_rng(0)
    z, codes = rng.standard_normal((2, 3, 2, 4)), rng.standard_normal((2, 3, 2, 4))
    for loss, moves in ((quantise.commitment_loss, 0), (quantise.codebook_loss, 1)):
        single = [jnp.asarray(x, jnp.float32) for x in (z, codes)]
        np.testing.assert_allclose(loss(*single), np.mean((z - codes) ** 2, axis=(1, 2, 3)), rtol=1e-5)
        gradients = jax.grad(lambda *inputs, loss=loss: loss(*inputs).sum(), argnums=(0, 1))(*single)
        assert not np.any(gradients[1 - moves])
        for index in ((0, 0, 0, 0), (1, 2, 1, 3)):
            step = np.zeros_like(z)
            step[index] = 1e-5
            ends = [[z, codes], [z, codes]]
            for end, sign in zip(ends, (1, -1), strict=True):
                end[moves] = end[moves] + sign * step
            up, down = (np.mean((a - b) ** 2, axis=(1, 2, 3)).sum() for a, b in ends)
            assert gradients[moves][index] == pytest.approx((up - down) / 2e-5, rel=1e-4)


# Codebooks that are averages


def test_one_step_of_averages_by_hand():
    quantiser = vector_quantiser(replace(EMA, codes=3, code_width=2), [[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
    quantised = quantiser(grid([[1.0, 0.0], [1.5, 0.5], [3.0, 1.0]]), train=True)
    np.testing.assert_array_equal(quantised.ids[0, 0], [0, 0, 1])
    np.testing.assert_array_equal(quantised.code[0, 0], [[0, 0], [0, 0], [4, 0]])  # those before the step
    # Each keeps 3/4 of (count 1, sum = code) and takes 1/4 of (2 features, their sum), (1, (3, 1)), (0, 0).
    np.testing.assert_allclose(quantiser.counts[...], [1.25, 1.0, 0.75])
    np.testing.assert_allclose(quantiser.sums[...], [[0.625, 0.125], [3.75, 0.25], [0, 6.75]])
    np.testing.assert_allclose(quantiser.embedding[...], [[0.5, 0.1], [3.75, 0.25], [0, 9]], rtol=1e-6)
    before = [np.asarray(x) for x in (quantiser.counts[...], quantiser.sums[...])]
    quantiser(grid([[1.0, 0.0]]))
    np.testing.assert_array_equal(before[0], quantiser.counts[...])  # only training changes them
    quantiser.counts[...] = jnp.zeros(3)
    quantiser(grid([[0.5, 0.1]]), train=True)
    np.testing.assert_allclose(quantiser.embedding[...][2], [0, 9])  # unused for ever, and still a number


@pytest.mark.parametrize("kind", ["ema", "vq"])
def test_revival_by_hand(kind):
    config = replace(EMA, quantiser=kind, codes=3, code_width=2, revive=0.5)
    codebook = [[0.0, 0.0], [50.0, 0.0], [0.0, 90.0]]
    features = [[1.0, 0.0], [2.0, 1.0], [0.0, 80.0]]
    quantiser = vector_quantiser(config, codebook)
    quantiser.counts[...] = jnp.array([1.0, 0.2, 1.0])
    with pytest.raises(ZooError, match="key of the step"):
        vector_quantiser(config, codebook)(grid(features), train=True)
    key = jax.random.key(3)
    quantiser(grid(features), train=True, key=key)
    # Counts 3/4 old + 1/4 new are 1.25, 0.15 and 1: mean 0.8, so the second code is below half of an even use.
    np.testing.assert_allclose(quantiser.counts[...], [1.25, 0.8, 1.0], rtol=1e-6)
    drawn = np.array(features)[int(jax.random.randint(key, (3,), 0, 3)[1])]
    np.testing.assert_allclose(quantiser.codebook()[1], drawn)
    if kind == "ema":
        np.testing.assert_allclose(quantiser.sums[...][1], 0.8 * drawn, rtol=1e-6)
        np.testing.assert_allclose(quantiser.codebook()[2], [0, (0.75 * 90 + 0.25 * 80) / 1.0], rtol=1e-6)
    else:
        np.testing.assert_array_equal(quantiser.codebook()[jnp.array([0, 2])], np.array(codebook)[[0, 2]])
        np.testing.assert_array_equal(quantiser.embedding[...], codebook)  # a parameter is for gradients to change


@pytest.mark.parametrize("kind", ["ema", "vq"])
def test_cosine_codes(kind):
    config = replace(EMA, quantiser=kind, codes=2, code_width=2, cosine=True)
    quantiser = vector_quantiser(config, [[10.0, 0.0], [0.6, 0.8]])
    z = [[1.0, 0.4], [0.03, 0.03], [0.0, 7.0]]  # by distance, 0.03 would be nearer to the second code
    quantised = quantiser(grid(z), train=True)
    np.testing.assert_array_equal(quantised.ids[0, 0], [0, 1, 1])
    np.testing.assert_allclose(quantised.code[0, 0], [[1, 0], [0.6, 0.8], [0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(quantised.features[0, 0], np.array(z) / np.linalg.norm(z, axis=1)[:, None], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(quantiser.codebook(), axis=1), 1, rtol=1e-6)
    if kind == "ema":  # sums are of features of length 1
        expected = 0.75 * np.array([0.6, 0.8]) + 0.25 * np.array([0.5**0.5, 1 + 0.5**0.5])
        np.testing.assert_allclose(quantiser.sums[...][1], expected, rtol=1e-6)


def test_the_nearest_code_by_brute_force():
    rng = np.random.default_rng(0)
    codebook, z = rng.standard_normal((40, 3)), rng.standard_normal((200, 3))
    quantiser = vector_quantiser(replace(VQ, codes=40), codebook)
    expected = np.argmin(np.sum((z[:, None] - codebook) ** 2, axis=-1), axis=1)
    np.testing.assert_array_equal(quantiser(grid(z)).ids[0, 0], expected)


@pytest.mark.parametrize("kind", ["ema", "vq"])
def test_codebooks_are_the_same_on_a_mesh(kind):
    config = replace(EMA, quantiser=kind, codes=16, revive=0.5)
    graphdef, params, stats = functional.split(VectorQuantiser(config, nnx.Rngs(0)))
    z = jnp.asarray(np.random.default_rng(0).standard_normal((16, 2, 2, 3)), jnp.float32)

    def learn(stats, z):
        for i in range(2):
            quantiser = functional.merge(graphdef, params, stats)
            quantiser(z, train=True, key=jax.random.key(i))
            stats = functional.stats_of(quantiser)
        return stats, quantiser.codebook()

    single = jax.jit(learn)(stats, z)
    for sizes in ((8, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*sizes))
        with jax.set_mesh(mesh):
            many = jax.jit(learn, out_shardings=NamedSharding(mesh, P()))(
                jax.device_put(stats, NamedSharding(mesh, P())), jax.device_put(z, NamedSharding(mesh, BATCH))
            )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), many, single)
    moved = np.any(np.asarray(single[1]) != functional.merge(graphdef, params, stats).codebook(), axis=1)
    assert moved.sum() > 3  # revival alone moves the codes of vq


# The network


@pytest.mark.parametrize("config", [TINY, replace(EMA, rotation=True), replace(VQ, revive=0.5, cosine=True)])
def test_tokens_go_round_and_every_parameter_learns(config):
    params, stats, run = compiled(config)
    image, seen, ids, again, grads = run(params, stats, images(8), jax.random.key(0))
    assert (image.shape, image.dtype) == ((8, 8, 8, 1), jnp.float32)
    assert (ids.shape, ids.dtype) == ((8, 2, 2), jnp.int32)
    assert 0 <= ids.min() <= ids.max() < config.vocab_size
    assert len(np.unique(ids)) > 1
    np.testing.assert_array_equal(ids, seen)
    np.testing.assert_array_equal(again, image)
    assert 0 <= image.min() <= image.max() <= 1
    for name, gradient in functional.flatten(grads).items():
        assert np.any(gradient), f"no gradient at {name}"
    assert (config.quantiser == "vq") == ("quantiser" in params)


def test_sizes_are_told():
    model = drawn_tokenizer(TINY)
    assert (model.vocab_size, model.grid, TINY.factor) == (12, (2, 2), 4)
    assert (VQ.vocab_size, EMA.vocab_size) == (5, 5)
    wide = jax.ShapeDtypeStruct((3, 12, 20, 1), jnp.float32)
    assert jax.eval_shape(model.encode, wide).shape == (3, 3, 5)


@pytest.mark.parametrize(("sight", "seen"), [(1, 1), (3, 9)])
def test_how_far_a_token_sees(sight, seen):
    """With convolutions of 1×1 a change of one square of pixels changes the features of its own token alone."""
    config = TokenizerConfig(16, 1, shrink=2, patch=2, widths=(4,), blocks=1, levels=(4, 3), sight=sight)
    model = drawn_tokenizer(config)
    x = images(1, 16)
    moved = model.features(x) != model.features(x.at[:, 8:12, 4:8].add(0.5))
    assert moved.any(axis=-1).sum() >= seen
    assert moved[0, 2, 1].any()
    assert (moved.any(axis=-1).sum() == 1) == (sight == 1)


def test_bfloat16_network_with_float32_codes():
    model = drawn_tokenizer(replace(EMA, dtype="bfloat16"))
    image, quantised = jax.eval_shape(lambda x: model(x), jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    assert {x.dtype for x in (image, quantised.code, quantised.features)} == {np.dtype("float32")}


def test_bad_input_is_refused():
    model = drawn_tokenizer(TINY)
    for ids, message in (
        ([[[0, 12], [0, 0]]], "ids go from 0 to 12; this tokenizer has 0 to 11"),
        ([[[0, -1], [0, 0]]], "ids go from -1 to 0"),
        ([[0, 1]], r"tokens are int32\[1, 2\]"),
        ([[[0.0]]], "tokens are float32"),
    ):
        with pytest.raises(ZooError, match=message):
            model.decode(jnp.array(ids))
    with pytest.raises(ZooError, match="images of 8×10 do not divide into squares of 4 pixels"):
        model.encode(jnp.zeros((1, 8, 10, 1)))
    with pytest.raises(ZooError, match=r"images are float32\[1, 8, 8, 3\]"):
        model(jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ZooError, match="images are uint8"):
        model(jnp.zeros((1, 8, 8, 1), jnp.uint8))
    for config, message in (
        (replace(TINY, image_size=10), "image_size 10 does not divide into squares of 4"),
        (replace(TINY, quantiser="vqq"), "unknown quantiser 'vqq'; did you mean vq"),
        (replace(TINY, levels=(4, 1)), "two or more levels"),
        (replace(TINY, levels=(100,) * 4), "at most 2"),
        (replace(VQ, codes=0), "at least 1"),
        (replace(TINY, widths=()), "widths"),
        (replace(TINY, sight=2), "1×1 or 3×3"),
    ):
        with pytest.raises(ZooError, match=message):
            Tokenizer(config, nnx.Rngs(0))


def test_parameter_counts():
    _, params, _ = functional.abstract(functools.partial(Tokenizer, TINY))
    conv = lambda size, a, b: size * size * a * b + b
    block = lambda width: width + 2 * conv(3, width, width)
    ends = block(4) + block(6) + 6
    assert functional.count(params["encoder"]) == conv(3, 4, 4) + conv(1, 16, 6) + ends + conv(1, 6, 2)
    assert functional.count(params["decoder"]) == conv(3, 2, 6) + conv(1, 6, 16) + ends - 2 + conv(3, 4, 4)


def test_sharding_table_names_every_kernel_and_codebook():
    used = set()
    for config in (*VARIANTS.values(), VQ, EMA):
        _, params, stats = functional.abstract(functools.partial(JudgedTokenizer, config, 4))
        for name, leaf in functional.flatten({"params": params, "stats": stats}).items():
            matches = [(pattern, spec) for pattern, spec in tokenizer.SHARDING if re.search(pattern, name)]
            assert len(matches) == (leaf.ndim > 1), name
            assert all(len(spec) == leaf.ndim for _, spec in matches), name
            used |= {pattern for pattern, _ in matches}
    assert used == {pattern for pattern, _ in tokenizer.SHARDING}


# Objectives


def test_reconstruction_loss_by_hand():
    image, target = jnp.zeros((2, 1, 2, 1)), jnp.array([[[[0.5], [0.0]]], [[[-1.0], [0.5]]]])
    np.testing.assert_allclose(quantise.reconstruction_loss(image, target), [0.125, 0.625])
    np.testing.assert_allclose(quantise.reconstruction_loss(image, target, l1=1.0), [0.25, 0.75])
    np.testing.assert_allclose(quantise.reconstruction_loss(image, target, l1=0.25), [0.15625, 0.65625])


def test_codebook_use():
    ids = jnp.array([[[0, 1], [1, 3]], [[2, 2], [2, 2]]])
    counts = quantise.count_ids(ids, 5, jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(counts, [1, 2, 0, 1, 0])  # the second image is padding
    used, perplexity = quantise.codebook_use(counts)
    assert used == 3 / 5
    assert perplexity == pytest.approx(4 ** (1 / 4) * 2 ** (1 / 2) * 4 ** (1 / 4))
    assert quantise.codebook_use(np.full(7, 3)) == (1.0, pytest.approx(7))


def test_adaptive_weight_by_hand():
    # Images k·(3, 4): gradients at k are 3 and 4 times those at the pixels, so 3·2 + 4·1 = 10 and 3·0 + 4·5 = 20.
    draw = lambda k: k[:, None] * jnp.array([[3.0, 4.0]])
    pixels = lambda *slopes: lambda image: jnp.sum(image * jnp.array([slopes]))
    weight = quantise.adaptive_weight(draw, jnp.ones(1), pixels(2.0, 1.0), pixels(0.0, 5.0))
    assert weight == pytest.approx(0.5, rel=1e-4)
    assert quantise.adaptive_weight(draw, jnp.ones(1), pixels(20.0, 10.0), pixels(0.0, 0.0)) == 1e4


def test_a_critic_and_its_tokenizer_move_apart():
    graphdef, params, stats = drawn(functools.partial(JudgedTokenizer, TINY, 4))
    x, error = images(4), quantise.reconstruction_loss

    def losses(params, config):
        """Means of the squared error, of what the tokenizer loses to the critic, and of what the critic loses."""
        image, quantised = functional.merge(graphdef, params, stats).tokenizer(x, train=True)
        both = quantise.critic_losses(config, graphdef, params, stats, x, image, quantised.code, error)
        return jnp.stack([error(image, x).mean(), both[0].mean(), both[1].mean()])

    config = quantise.CriticConfig(width=4, weight=0.5)

    @jax.jit
    def run(params):
        model = functional.merge(graphdef, params, stats)
        values, pull = jax.vjp(lambda params: losses(params, config), params)
        grads = [pull(one)[0] for one in jnp.eye(3)]
        unweighted = losses(params, replace(config, adaptive=False))
        return values, grads, unweighted, (model.critic(x), model.critic(model.tokenizer(x, train=True)[0]))

    (_, fooled, critic), grads, unweighted, (real, fake) = run(params)
    assert real.shape == (4, 2, 2)
    assert critic == pytest.approx(float(np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()), rel=1e-4)
    for index, moves, stays in ((1, "tokenizer", "critic"), (2, "critic", "tokenizer")):
        assert any(np.any(leaf) for leaf in jax.tree.leaves(grads[index][moves]))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads[index][stays]))
    # The adaptive weight, by which the gradient of what fools the critic is already multiplied.
    weight = float(fooled) / -float(fake.mean())
    pulls = [np.linalg.norm(tree["tokenizer"]["decoder"]["conv_out"]["kernel"]) for tree in grads]
    assert weight == pytest.approx(0.5 * pulls[0] / (pulls[1] / weight + 1e-4), rel=1e-3)
    np.testing.assert_allclose(unweighted[1:], [-0.5 * fake.mean(), critic], rtol=1e-4)
    for field in ("width", "start", "weight"):
        with pytest.raises(ZooError, match="at least 0"):
            quantise.CriticConfig(**{field: -1})
