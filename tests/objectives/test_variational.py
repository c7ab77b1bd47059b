import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zoo.errors import ZooError
from zoo.objectives import variational as vi

log_prob = jax.jit(vi.logistic_mixture_log_prob)
VALUES = np.arange(256, dtype=np.float32) / 255


def pixels(*channels):
    """Values [N] of each channel as N images of one pixel, float32 [N, 1, 1, C]."""
    return jnp.asarray(np.stack(channels, -1)[:, None, None], jnp.float32)


def mixture(logits, means, log_scales, coefficients=None):
    """Outputs [1, 1, 1, P] of one pixel: of each component its logit, means, log-scales and raw coefficients."""
    parts = [np.asarray(logits)[:, None], means, log_scales, *([] if coefficients is None else [coefficients])]
    return jnp.asarray(np.concatenate(parts, axis=1).reshape(1, 1, 1, -1), jnp.float32)


def test_bernoulli_is_stable_and_right():
    logits = jnp.array([100.0, -100.0, 100.0, -100.0, 0.7])[:, None, None, None]
    x = jnp.array([1.0, 0.0, 0.0, 1.0, 0.25])[:, None, None, None]
    soft = 0.25 * math.log(1 / (1 + math.exp(-0.7))) + 0.75 * math.log(1 / (1 + math.exp(0.7)))
    np.testing.assert_allclose(vi.bernoulli_log_prob(x, logits), [0, 0, -100, -100, soft], rtol=1e-6, atol=1e-30)
    slope = jax.grad(lambda logits: vi.bernoulli_log_prob(x, logits).sum())(logits)[:, 0, 0, 0]
    np.testing.assert_allclose(slope, [0, 0, -1, 1, 0.25 - 1 / (1 + math.exp(-0.7))], atol=1e-6)
    rng = np.random.default_rng(0)
    x, p = rng.random((3, 2, 4, 5)) < 0.5, rng.random((3, 2, 4, 5))
    expected = stats.bernoulli.logpmf(x, p).sum((1, 2, 3))
    logits = jnp.asarray(np.log(p / (1 - p)), jnp.float32)
    np.testing.assert_allclose(vi.bernoulli_log_prob(jnp.asarray(x, jnp.float32), logits), expected, rtol=1e-5)


def test_gaussian_and_its_best_variance():
    rng = np.random.default_rng(0)
    x, mean = (jnp.asarray(rng.random((3, 2, 4, 5)), jnp.float32) for _ in range(2))
    expected = stats.norm.logpdf(x, mean, math.sqrt(0.3)).sum((1, 2, 3))
    np.testing.assert_allclose(vi.gaussian_log_prob(x, mean, jnp.float32(0.3)), expected, rtol=1e-5)

    def total(variance):
        return vi.gaussian_log_prob(x, mean, variance).sum()

    best = vi.optimal_variance(x, mean)
    grid = np.geomspace(0.5, 2, 2001) * float(best)
    assert grid[np.argmax([stats.norm.logpdf(x, mean, math.sqrt(v)).sum() for v in grid[::10]]) * 10] == pytest.approx(
        float(best), rel=0.01
    )
    assert abs(float(jax.grad(total)(best))) < 1e-5 * abs(float(jax.grad(total)(1.1 * best))) + 1e-2
    assert float(total(best)) == pytest.approx(-x.size / 2 * (math.log(2 * math.pi * float(best)) + 1), rel=1e-5)
    assert float(vi.optimal_variance(x, x)) == pytest.approx(1e-6)


def test_logistic_mixture_sums_to_one():
    for log_scale in (-9.0, -7.0, -4.0, -1.0, 3.0):
        out = mixture([0.3, -1.0, 2.0], [[-1.1], [0.2], [1.5]], [[log_scale], [-2.0], [log_scale]])
        p = np.exp(np.asarray(log_prob(pixels(VALUES), out), np.float64))
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-5)


def test_colours_sum_to_one_and_each_sees_those_before():
    rng = np.random.default_rng(0)
    logits, means, scales = rng.standard_normal(2), 0.4 * rng.standard_normal((2, 3)), np.full((2, 3), -2.0)
    coefficients = rng.standard_normal((2, 3))
    both = [values.ravel() for values in np.meshgrid(VALUES, VALUES, indexing="ij")]
    # Over green and blue for one red: what is left is red's own mixture
    p = np.exp(log_prob(pixels(np.full_like(both[0], 90 / 255), *both), mixture(logits, means, scales, coefficients)))
    red = log_prob(pixels(VALUES[90:91]), mixture(logits, means[:, :1], scales[:, :1]))
    assert p.sum(dtype=np.float64) == pytest.approx(float(jnp.exp(red[0])), rel=1e-4)

    # One pixel by the formulas, from cumulative distributions in float64
    colour = np.array([90, 255, 40])
    x, half, total = colour / 127.5 - 1, 1 / 255, 0.0
    for k, weight in enumerate(np.exp(logits) / np.exp(logits).sum()):
        c = np.tanh(coefficients[k])
        centres = means[k] + [0, c[0] * x[0], c[1] * x[0] + c[2] * x[1]]
        high, low = (stats.logistic.cdf(x + side, centres, np.exp(-2.0)) for side in (half, -half))
        total += weight * np.prod(np.where(colour == 255, 1, high) - np.where(colour == 0, 0, low))
    found = log_prob(pixels(*(colour[:, None] / 255)), mixture(logits, means, scales, coefficients))
    assert float(found[0]) == pytest.approx(math.log(total), rel=1e-5)


def test_logistic_gradients_are_finite_at_extremes():
    out = mixture([0.0, 0.0], [[-50.0], [50.0]], [[-20.0], [20.0]])
    grads = jax.jit(jax.grad(lambda out: log_prob(pixels(VALUES), out).sum()))(out)
    assert np.all(np.isfinite(grads))


def test_a_uniform_model_has_8_bits():
    # A narrow component on each of the 256 values
    out = mixture(np.zeros(256), 2 * VALUES[:, None].astype(float) - 1, np.full((256, 1), -7.0))
    log_p = log_prob(pixels(VALUES), out)
    np.testing.assert_allclose(vi.bits_per_dim(-log_p, 1), 8, atol=1e-4)
    assert vi.bits_per_dim(784 * math.log(256), 784) == pytest.approx(8, abs=1e-12)
    assert vi.bits_per_dim(0.0, 784, density=True) == 8
    assert vi.bits_per_dim(784 * math.log(2), 784) == pytest.approx(1, abs=1e-12)


def test_kl_against_integrals():
    mean, log_var = np.array([0.0, 1.0, -0.5, 2.0]), np.array([0.0, 0.0, math.log(4), -3.0])
    z = np.linspace(-30, 30, 200_001)[:, None]
    q, p = stats.norm(mean, np.exp(log_var / 2)), stats.norm(0, 1)
    expected = np.trapezoid(q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), z, axis=0)
    found = vi.gaussian_kl(*(jnp.asarray(v, jnp.float32)[None] for v in (mean, log_var)))[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found[:2], [0, 0.5], atol=1e-7)


def test_free_bits_by_hand():
    kl = jnp.array([[0.1, 2.0, 0.0], [0.5, 4.0, 0.2]])  # means 0.3, 3, 0.1
    assert float(vi.free_bits(kl, 0.0)) == pytest.approx(3.4)
    assert float(vi.free_bits(kl, 0.2)) == pytest.approx(0.3 + 3 + 0.2)
    grads = jax.grad(vi.free_bits)(kl, 0.2)
    np.testing.assert_allclose(grads, [[0.5, 0.5, 0], [0.5, 0.5, 0]])
    with pytest.raises(ZooError, match="free bits of -1"):
        vi.free_bits(kl, -1)


def test_warmup_by_hand():
    weights = [float(vi.kl_weight(jnp.asarray(step), 2.0, 4)) for step in range(6)]
    assert weights == pytest.approx([0.5, 1, 1.5, 2, 2, 2])
    assert float(vi.kl_weight(jnp.asarray(0), 3.0, 0)) == 3


class Linear:
    """x = W z + b + noise with orthogonal columns of W, so that the true posterior is a diagonal Gaussian.

    `wide` and `aside` spoil the proposal: factors of its deviation, and shifts of its mean in prior deviations.
    """

    config = SimpleNamespace(likelihood="gaussian", latents=2)
    weight, bias = np.array([[2.0, 0, 1, 0], [0.0, 1, 0, -0.5]]), np.array([0.1, 0.2, 0.3, 0.4])
    precision = 1 + (weight**2).sum(1) / 0.5

    def __init__(self, wide=1.0, aside=0.0):
        self.wide, self.aside, self.variance = wide, aside, jnp.float32(0.5)

    def encode(self, x, label):
        map_fd = jnp.asarray(self.weight.T / 0.5 / self.precision, jnp.float32)
        mean = (x.reshape(len(x), -1) - jnp.asarray(self.bias, jnp.float32)[None]) @ map_fd + self.aside
        log_var = 2 * jnp.log(self.wide) - jnp.asarray(np.log(self.precision), jnp.float32)
        return mean, jnp.broadcast_to(log_var[None], mean.shape)

    def decode(self, z, label):
        out = z @ jnp.asarray(self.weight, jnp.float32) + jnp.asarray(self.bias, jnp.float32)[None]
        return out.reshape(-1, 2, 2, 1)

    def exact(self, x):
        cov = self.weight.T @ self.weight + 0.5 * np.eye(4)
        return stats.multivariate_normal(self.bias, cov).logpdf(np.asarray(x, float).reshape(len(x), -1))

    def gap(self):
        """KL of the proposal from the true posterior, the same for every x."""
        return sum(0.5 * (self.wide**2 - 1 - 2 * math.log(self.wide) + self.aside**2 * p) for p in self.precision)


IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2, 2, 1)), jnp.float32)
bound = jax.jit(
    lambda wide, aside, keys, samples, chunk: vi.importance_bound(
        Linear(wide, aside), IMAGES, None, keys, samples, chunk
    ),
    static_argnums=(3, 4),
)


def test_importance_bound_of_a_linear_gaussian():
    exact, keys = Linear().exact(IMAGES), jax.random.split(jax.random.key(0), 64)
    np.testing.assert_allclose(bound(1.0, 0.0, keys, 1, 50), exact, rtol=1e-4)
    # A proposal that is too wide and off: exact in the limit, below it before, and rising
    means = [float(np.mean(bound(1.5, 0.2, keys, samples, 50) - exact)) for samples in (1, 5, 50, 5000)]
    assert means[0] < means[1] - 0.1 < means[2] - 0.12 < 0
    assert abs(means[3]) < 0.003
    assert abs(means[2]) < 0.03
    single = np.concatenate([bound(1.5, 0.2, jax.random.split(jax.random.key(i), 64), 1, 50) for i in range(40)])
    assert float(np.mean(single - np.tile(exact, 40))) == pytest.approx(-Linear(1.5, 0.2).gap(), abs=0.06)


def test_chunks_change_nothing():
    keys = jax.random.split(jax.random.key(0), 64)
    expected = bound(1.5, 0.2, keys, 10, 10)
    for chunk in (1, 4):  # the last 4 hold two that are not counted
        np.testing.assert_allclose(bound(1.5, 0.2, keys, 10, chunk), expected, rtol=1e-5)
    for samples, chunk in ((0, 1), (1, 0)):
        with pytest.raises(ZooError, match="at least 1 of both"):
            bound(1.0, 0.0, keys, samples, chunk)


def test_evidence_is_the_bound_with_one_sample_and_a_closed_kl():
    model = Linear(1.5, 0.2)
    noise = jax.random.normal(jax.random.key(0), (64 * 200, 2))
    x = jnp.tile(IMAGES, (200, 1, 1, 1))
    fit, kl = jax.jit(lambda: vi.evidence(model, x, None, noise))()
    elbo = np.asarray(fit - kl.sum(-1), float).reshape(200, 64).mean()
    assert elbo == pytest.approx(model.exact(IMAGES).mean() - model.gap(), abs=0.05)
    keys = jax.random.split(jax.random.key(1), 64)
    scores = jax.jit(lambda: vi.held_out_scores(model, IMAGES, None, keys))()
    fit, kl = vi.evidence(model, IMAGES, None, vi.normal_of(keys, 2))
    np.testing.assert_allclose(scores["loss"], scores["kl"] + scores["reconstruction"], rtol=1e-5)
    np.testing.assert_allclose(scores["reconstruction"], -fit, rtol=1e-5)
    np.testing.assert_allclose(scores["bits_per_dim"], scores["loss"] / (4 * math.log(2)) + 8, rtol=1e-5)
    sums = vi.weighted_sums(scores, jnp.array([1.0, 1.0] + [0.0] * 62))
    assert float(sums["loss"] / sums["count"]) == pytest.approx(float(scores["loss"][:2].mean()), rel=1e-5)


class Binary(Linear):
    """The same network with a Bernoulli likelihood."""

    config = SimpleNamespace(likelihood="bernoulli", latents=2)


def test_training_loss_by_hand():
    model, beta = Binary(1.5, 0.2), 0.7
    x = (IMAGES > 0).astype(jnp.float32)
    noise = jax.random.normal(jax.random.key(0), (3, 64, 2))
    loss = jax.jit(lambda noise: vi.training_loss(model, x, None, noise, beta, 0.0))
    total, sums = loss(noise)
    mean, std = (np.asarray(v, float) for v in model.encode(x, None))
    std = np.exp(std / 2)
    z = mean + std * np.asarray(noise, float)
    p = 1 / (1 + np.exp(-(z @ model.weight + model.bias)))
    fit = stats.bernoulli.logpmf(np.asarray(x, int).reshape(64, 4), p).sum(-1)
    ratio = (stats.norm.logpdf(z) - stats.norm.logpdf(z, mean, std)).sum(-1)
    expected = -np.log(np.mean(np.exp(fit + beta * ratio), axis=0)).sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(sums["reconstruction"]) == pytest.approx(-fit.mean(0).sum(), rel=1e-5)
    # Of one sample: the evidence bound with its closed KL, and free nats for each dimension
    total, sums = loss(noise[:1])
    fit, kl = vi.evidence(model, x, None, noise[0])
    assert float(total) == pytest.approx(float(beta * kl.sum() - fit.sum()), rel=1e-5)
    free, _ = vi.training_loss(model, x, None, noise[:1], beta, 50.0)
    assert float(free) == pytest.approx(float(64 * beta * 100 - fit.sum()), rel=1e-5)
    for other, rows, nats in ((model, noise, 0.1), (Linear(), noise, 0.0), (model, noise[:0], 0.0)):
        with pytest.raises(ZooError, match="bound of"):
            vi.training_loss(other, x, None, rows, beta, nats)


def test_training_takes_the_best_variance():
    model = Linear()
    model.variance = np.array(0.5, np.float32)
    noise = jnp.zeros((64, 2))
    fit, _ = vi.evidence(model, IMAGES, None, noise, train=True)
    mean = model.decode(model.encode(IMAGES, None)[0], None)
    mse = float(np.mean(np.square(IMAGES - mean)))
    assert float(fit.sum()) == pytest.approx(-64 * 4 / 2 * (math.log(2 * math.pi * mse) + 1), rel=1e-4)
    assert float(model.variance) == pytest.approx(0.99 * 0.5 + 0.01 * mse, rel=1e-5)
    fixed, _ = vi.evidence(model, IMAGES, None, noise)
    assert float(fixed.sum()) == pytest.approx(
        stats.norm.logpdf(IMAGES, mean, math.sqrt(float(model.variance))).sum(), rel=1e-4
    )


def test_binarisation_follows_from_the_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    image[1], image[2] = image[0], image[0]
    image[2, 3, 3, 0] ^= 1
    x, key = jnp.asarray(image, jnp.float32) / 255, jax.random.key(0)
    binarise = jax.jit(vi.binarise)
    drawn = np.asarray(binarise(key, x, image))
    assert set(np.unique(drawn)) == {0, 1}
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])
    order = rng.permutation(64)
    np.testing.assert_array_equal(binarise(key, x[order], image[order]), drawn[order])
    assert np.any(binarise(jax.random.key(1), x, image) != drawn)
    many = np.mean([binarise(jax.random.key(i), x, image) for i in range(400)], axis=0)
    np.testing.assert_allclose(many, x, atol=5 * 0.5 / 400**0.5)
    drawn = np.asarray(binarise(key, jnp.round(x), image))  # certain pixels stay as they are
    np.testing.assert_array_equal(drawn, np.round(x))


def test_an_unknown_likelihood():
    model = SimpleNamespace(config=SimpleNamespace(likelihood="bernouli"))
    with pytest.raises(ZooError, match="did you mean bernoulli"):
        vi.log_likelihood(model, IMAGES, IMAGES)
