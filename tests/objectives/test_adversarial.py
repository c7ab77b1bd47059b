import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.errors import ZooError
from zoo.objectives import adversarial
from zoo.objectives.adversarial import AdversarialConfig, Optimizers, adversarial_update

REAL = np.array([1.5, -0.5, 0.25])
FAKE = np.array([-2.0, 0.5, 0.25])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("minimax", -(np.log(sigmoid(REAL)) + np.log(1 - sigmoid(FAKE))), -np.log(sigmoid(FAKE))),
        ("lsgan", ((REAL - 1) ** 2 + FAKE**2) / 2, (FAKE - 1) ** 2 / 2),
        ("hinge", [0, 1.5 + 1.5, 0.75 + 1.25], [2, -0.5, -0.25]),
        ("wgan-gp", [-3.5, 1, 0], [2, -0.5, -0.25]),
        ("relativistic", -np.log(sigmoid(REAL - FAKE)), -np.log(sigmoid(FAKE - REAL))),
    ],
)
def test_losses_by_hand(name, discriminator, generator):
    real, fake = jnp.asarray(REAL, jnp.float32), jnp.asarray(FAKE, jnp.float32)
    np.testing.assert_allclose(adversarial.discriminator_loss(name, real, fake), discriminator, rtol=1e-5)
    np.testing.assert_allclose(adversarial.generator_loss(name, real, fake), generator, rtol=1e-5)


@pytest.mark.parametrize("name", ["minimax", "relativistic"])
def test_logits_of_a_hundred(name):
    """Values and gradients where a sigmoid is 0 or 1 in float32."""
    losses = lambda real, fake: (
        adversarial.discriminator_loss(name, real, fake),
        adversarial.generator_loss(name, real, fake),
    )
    right, wrong = losses(jnp.array([100.0]), jnp.array([-100.0])), losses(jnp.array([-100.0]), jnp.array([100.0]))
    full = 200.0  # both losses of minimax at 100 each; the difference of the logits
    np.testing.assert_allclose(np.ravel(right), [0, 100 if name == "minimax" else full], atol=1e-6)
    np.testing.assert_allclose(np.ravel(wrong), [full, 0], atol=1e-6)
    slopes = jax.grad(lambda real, fake: losses(real, fake)[0].sum(), (0, 1))(jnp.array([-100.0]), jnp.array([100.0]))
    np.testing.assert_allclose(np.ravel(slopes), [-1, 1])
    slope = jax.grad(lambda fake: losses(jnp.array([100.0]), fake)[1].sum())(jnp.array([-100.0]))
    np.testing.assert_allclose(slope, [-1])


def logits_of(x_bhwc):
    """Three images of 2×2×1, each with a gradient of its own: sum(w x + x³)."""
    weights = jnp.array([[1.0, -2.0], [0.5, 3.0]])[None, :, :, None]
    return jnp.sum(weights * x_bhwc + x_bhwc**3, axis=(1, 2, 3))


def images(seed):
    return np.random.default_rng(seed).uniform(-1, 1, (3, 2, 2, 1)).astype(np.float32)


def norms(x):
    """|gradient| of each image's own logit, by finite differences in float64."""
    total, step = np.zeros(len(x)), 1e-4
    for i in np.ndindex(x.shape[1:]):
        up, down = (x.astype(float) for _ in range(2))
        up[:, *i] += step
        down[:, *i] -= step
        value = lambda x: np.sum(np.array([[1.0, -2.0], [0.5, 3.0]])[None, :, :, None] * x + x**3, axis=(1, 2, 3))
        total += ((value(up) - value(down)) / (2 * step)) ** 2
    return np.sqrt(total)


def test_zero_centred_penalty_by_finite_differences():
    x = images(0)
    np.testing.assert_allclose(
        adversarial.zero_centred_penalty(logits_of, jnp.asarray(x)), norms(x) ** 2 / 2, rtol=1e-4
    )


def test_one_centred_penalty_by_finite_differences():
    """One share an image: shares of pixels would leave the line, one share of a batch would be the same for all."""
    real, fake, key = images(0), images(1), jax.random.key(3)
    # The shares are read off the points that were asked about.
    points = []
    value = adversarial.one_centred_penalty(
        lambda x: jax.debug.callback(points.append, x) or logits_of(x), jnp.asarray(real), jnp.asarray(fake), key
    )
    jax.effects_barrier()
    shares = (np.asarray(points[0]) - fake) / (real - fake)
    assert np.ptp(shares.reshape(3, -1), axis=1).max() < 1e-4
    assert np.ptp(shares[:, 0, 0, 0]) > 0.05
    assert np.all((shares > 0) & (shares < 1))
    np.testing.assert_allclose(value, (norms(np.asarray(points[0])) - 1) ** 2, rtol=1e-3)


def test_a_gradient_of_zero_has_a_penalty_with_a_gradient():
    flat = lambda w: adversarial.one_centred_penalty(
        lambda x: w * jnp.sum(x, axis=(1, 2, 3)), jnp.ones((2, 2, 2, 1)), jnp.zeros((2, 2, 2, 1)), jax.random.key(0)
    ).sum()
    assert np.isfinite(jax.grad(flat)(0.0))


# Augmentation


def augmented(*names, seed=0, size=8, channels=3, x=None):
    x = (
        jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (64, size, size, channels)), jnp.float32)
        if x is None
        else x
    )
    return np.asarray(x), np.asarray(adversarial.augment_differentiably(names, jax.random.key(seed), x))


def test_translation_moves_each_image_whole():
    x, y = augmented("translation", size=16)
    moves = set()
    for before, after in zip(x, y, strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)))
        crops = {(i, j): padded[i : i + 16, j : j + 16] for i in range(5) for j in range(5)}
        found = [move for move, crop in crops.items() if np.array_equal(crop, after)]
        assert len(found) == 1
        moves |= set(found)
    assert {i for i, _ in moves} == {j for _, j in moves} == set(range(5))


def test_cutout_is_one_square_of_half_the_sides():
    _, y = augmented("cutout", x=jnp.ones((200, 8, 8, 1)))
    whole = 0
    for image in y[..., 0]:
        rows, columns = (np.flatnonzero(np.any(image == 0, axis=axis)) for axis in (1, 0))
        assert np.sum(image == 0) == len(rows) * len(columns) > 0
        assert max(len(rows), len(columns)) <= 4
        assert np.all(np.diff(rows) == 1)
        assert np.all(np.diff(columns) == 1)
        whole += len(rows) == len(columns) == 4
    assert 30 < whole < 110  # 5 of 9 places in each direction leave it whole: 62 of 200


def test_color_is_the_formula():
    """What brightness, saturation and contrast leave: ratios of distances between pixels and channels."""
    x, y = augmented("color")
    gray_x, gray_y = x.mean(3), y.mean(3)
    contrast = np.std(gray_y, axis=(1, 2)) / np.std(gray_x, axis=(1, 2))
    saturation = (
        np.std(y - gray_y[..., None], axis=(1, 2, 3)) / np.std(x - gray_x[..., None], axis=(1, 2, 3)) / contrast
    )
    brightness = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    for values, low, high in ((contrast, 0.5, 1.5), (saturation, 0, 2), (brightness, -0.5, 0.5)):
        span = high - low
        assert low - 1e-3 < values.min() < low + 0.1 * span
        assert high - 0.1 * span < values.max() < high + 1e-3
    expected = (gray_x[..., None] + (x - gray_x[..., None]) * saturation[:, None, None, None]) * contrast[
        :, None, None, None
    ]
    expected += (y.mean((1, 2, 3)) - expected.mean((1, 2, 3)))[:, None, None, None]
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_augmentation_has_a_gradient_and_keeps_its_streams():
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)), jnp.float32)
    run = lambda names, x: adversarial.augment_differentiably(names, jax.random.key(0), x)
    grads = jax.grad(lambda x: jnp.sum(run(adversarial.AUGMENTATIONS, x) * 2))(x)
    assert np.all(np.any(np.asarray(grads), axis=(1, 2, 3)))
    both = run(("translation", "cutout"), x)
    np.testing.assert_array_equal(both, run(("cutout",), run(("translation",), x)))


# The update, with networks small enough to work by hand: G(z) = a + b z, D(x) = w · mean(x) + c · mean(x)²


def generate(params, stats, batch, key):
    z = jax.random.normal(key, (len(batch["image"]), 1, 1, 1))
    images = params["generator"]["a"] + params["generator"]["b"] * z
    return images, stats | {"made": stats["made"] + 1}


def discriminate(params, stats, images, batch, key):
    mean = jnp.mean(images, axis=(1, 2, 3))
    logits = params["discriminator"]["w"] * mean + params["discriminator"]["c"] * mean**2
    return logits, stats | {"judged": stats["judged"] + 1}


def fresh(tx):
    params = {
        "generator": {"a": jnp.float32(0.2), "b": jnp.float32(0.7)},
        "discriminator": {"w": jnp.float32(0.5), "c": jnp.float32(-0.3)},
    }
    stats = {"made": jnp.int32(0), "judged": jnp.int32(0)}
    return {"step": jnp.int32(0), "params": params, "stats": stats, "opt": tx.init(params), "ema": params}


TX = Optimizers(optax.sgd(0.1), optax.sgd(0.2))


@functools.cache
def update_of(config, tx=TX, **options):
    return jax.jit(adversarial_update(generate, discriminate, tx, config, **options))


def run(config, tx=TX, rows=8, state=None, **options):
    """(state, metrics) after an update, and the real images."""
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (rows, 1, 1, 1)), jnp.float32)
    return update_of(config, tx, **options)(state or fresh(tx), {"image": x}, jax.random.key(0)), x


def test_both_networks_change_in_one_step_and_the_average_follows():
    (new, metrics), _ = run(AdversarialConfig("minimax"), ema=0.75, schedule=optax.cosine_decay_schedule(0.5, 10))
    old = fresh(TX)
    assert all(
        np.all(a != b) for a, b in zip(jax.tree.leaves(new["params"]), jax.tree.leaves(old["params"]), strict=True)
    )
    for name in ("a", "b"):
        expected = 0.75 * old["params"]["generator"][name] + 0.25 * new["params"]["generator"][name]
        np.testing.assert_allclose(new["ema"]["generator"][name], expected, rtol=1e-6)
    assert new["ema"]["discriminator"] == new["params"]["discriminator"]
    assert int(new["step"]) == 1
    assert {k: int(v) for k, v in new["stats"].items()} == {"made": 2, "judged": 2}
    assert set(metrics) == {"d_loss", "g_loss", "d_real", "d_fake", "d_grad_norm", "g_grad_norm", "lr"}
    np.testing.assert_allclose(metrics["lr"], 0.5)


def test_the_discriminators_step_by_finite_differences():
    """Loss and penalties of the first step, as functions of w and c in float64."""
    config = AdversarialConfig("relativistic", r1=0.8, r2=0.6)
    (new, metrics), x = run(config)
    real = np.asarray(x, float).ravel()
    # Generated images: those whose mean logit is reported.
    w, c, lr = 0.5, -0.3, 0.2
    d_key = jax.random.split(jax.random.split(jax.random.key(0))[0], 1)[0]
    z = np.asarray(jax.random.normal(jax.random.split(d_key, 4)[0], (8,)), float)
    fake = 0.2 + 0.7 * z
    logit = lambda x, w, c: w * x + c * x**2
    np.testing.assert_allclose(metrics["d_fake"], logit(fake, w, c).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["d_real"], logit(real, w, c).mean(), rtol=1e-5)
    penalty = lambda x, w, c: np.mean((w + 2 * c * x) ** 2) / 2
    np.testing.assert_allclose(metrics["r1"], penalty(real, w, c), rtol=1e-5)
    np.testing.assert_allclose(metrics["r2"], penalty(fake, w, c), rtol=1e-5)

    def total(w, c):
        loss = np.mean(np.log1p(np.exp(logit(fake, w, c) - logit(real, w, c))))
        return loss + 0.8 * penalty(real, w, c) + 0.6 * penalty(fake, w, c)

    slopes = [(total(w + 1e-5, c) - total(w - 1e-5, c)) / 2e-5, (total(w, c + 1e-5) - total(w, c - 1e-5)) / 2e-5]
    found = new["params"]["discriminator"]
    np.testing.assert_allclose([found["w"], found["c"]], [w - lr * slopes[0], c - lr * slopes[1]], rtol=1e-5)
    np.testing.assert_allclose(metrics["d_grad_norm"], np.hypot(*slopes), rtol=1e-4)


@pytest.mark.parametrize("config", [AdversarialConfig("minimax"), AdversarialConfig("relativistic")])
def test_the_generators_step_meets_the_new_discriminator(config):
    (new, metrics), x = run(config)
    w, c = (float(new["params"]["discriminator"][name]) for name in "wc")
    real = np.asarray(x, float).ravel()
    z = np.asarray(jax.random.normal(jax.random.split(jax.random.split(jax.random.key(0))[1], 3)[0], (8,)), float)

    def total(a, b):
        fake = w * (a + b * z) + c * (a + b * z) ** 2
        return np.mean(np.log1p(np.exp((w * real + c * real**2 if config.loss == "relativistic" else 0) - fake)))

    a, b = 0.2, 0.7
    slopes = [(total(a + 1e-5, b) - total(a - 1e-5, b)) / 2e-5, (total(a, b + 1e-5) - total(a, b - 1e-5)) / 2e-5]
    found = new["params"]["generator"]
    np.testing.assert_allclose(metrics["g_loss"], total(a, b), rtol=1e-5)
    np.testing.assert_allclose([found["a"], found["b"]], [a - 0.1 * slopes[0], b - 0.1 * slopes[1]], rtol=1e-5)


def test_lazy_penalties():
    """Every second step, twice as much; the steps between are those of a loss without penalty."""
    config = AdversarialConfig("lsgan", r1=1.0)
    lazy = dataclasses.replace(config, penalty_every=2)
    plain = dataclasses.replace(config, r1=0.0)
    w = lambda config, state=None: run(config, state=state)[0][0]["params"]["discriminator"]["w"]
    (_, metrics), _ = run(lazy)
    assert float(metrics["r1"]) == pytest.approx(float(run(config)[0][1]["r1"]), rel=1e-6)
    assert float(w(lazy) - w(plain)) == pytest.approx(2 * float(w(config) - w(plain)), rel=1e-3)
    assert abs(float(w(config) - w(plain))) > 1e-3
    later = fresh(TX) | {"step": jnp.int32(1)}
    assert float(w(lazy, later)) == float(w(plain, later))
    (_, metrics), _ = run(lazy, state=later)
    assert float(metrics["r1"]) == 0


def test_penalties_of_some_rows():
    """The penalty of every second image, weighing twice: the mean over them."""
    (_, metrics), x = run(AdversarialConfig("lsgan", r1=1.0, penalty_rows=2))
    slopes = 0.5 - 0.6 * np.asarray(x, float).ravel()
    np.testing.assert_allclose(metrics["r1"], np.mean(slopes[::2] ** 2) / 2, rtol=1e-5)


def test_discriminator_steps_each_take_a_batch_of_their_own():
    # Every second row at each step: w moves by the mean of those real images, less that of the generated ones, 1.
    only_w = {"generator": {"a": jnp.float32(1.0), "b": jnp.float32(0.0)}}
    tx = Optimizers(optax.sgd(0.0), optax.sgd(0.1))
    state = fresh(tx)
    state["params"] = only_w | {"discriminator": {"w": jnp.float32(0.0), "c": jnp.float32(0.0)}}
    (new, metrics), x = run(AdversarialConfig("wgan-gp", gp=0.0, d_steps=2), tx, 8, state)
    assert {k: int(v) for k, v in new["stats"].items()} == {"made": 3, "judged": 4}
    x = np.asarray(x, float).ravel()
    np.testing.assert_allclose(new["params"]["discriminator"]["w"], 0.1 * 2 * (x.mean() - 1), rtol=1e-5)
    w, c, seen = 0.0, 0.0, []
    for i in range(2):
        part = x[i::2]
        seen.append(w * part.mean() + c * np.mean(part**2))
        w, c = w + 0.1 * (part.mean() - 1), c + 0.1 * (np.mean(part**2) - 1)
    np.testing.assert_allclose(metrics["d_real"], np.mean(seen), rtol=1e-5)
    with pytest.raises(ZooError, match="8 images are not 3 batches"):
        run(AdversarialConfig(d_steps=3))


def test_accumulation_is_the_gradient_of_the_whole_mean():
    """With a generator that ignores its noise, micro-batches see what the whole batch sees."""
    state = fresh(TX)
    state["params"]["generator"]["b"] = jnp.float32(0.0)
    config = AdversarialConfig("relativistic", r1=0.3, r2=0.1)
    (whole, m1), _ = run(config, state=state)
    (parts, m2), _ = run(config, state=state, accumulate=4)
    for name in ("discriminator", "generator"):
        for key, value in whole["params"][name].items():
            if key != "b":  # its gradient is that of the noise
                np.testing.assert_allclose(parts["params"][name][key], value, rtol=1e-5, err_msg=key)
    for key in ("d_loss", "g_loss", "d_real", "d_fake", "r1", "r2"):
        np.testing.assert_allclose(m2[key], m1[key], rtol=1e-5, err_msg=key)


def test_augmentation_reaches_real_and_generated_images_in_both_updates():
    """Images of one brightness, changed one by one: real ones of 1/4 and generated ones of 1/2, twice each."""
    seen = []

    def watched(params, stats, images, batch, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
        return discriminate(params, stats, images, batch, key)

    constant = lambda params, stats, batch, key: (0.5 + 0 * batch["image"] * params["generator"]["a"], stats)
    update = adversarial_update(constant, watched, TX, AdversarialConfig(augment=("color",)))
    update(fresh(TX), {"image": jnp.full((64, 4, 4, 1), 0.25)}, jax.random.key(0))
    jax.effects_barrier()
    calls = [x.mean((1, 2, 3)) for x in seen]
    assert len(calls) == 4
    middles = sorted(round(float(x.mean()) * 4) for x in calls)  # brightness moves each by up to a half
    assert middles == [1, 1, 2, 2]
    assert all(np.ptp(x) > 0.8 for x in calls)
    assert all(np.any(x != y) for i, x in enumerate(calls) for y in calls[:i])


def test_uint8_images_are_scaled():
    image = jnp.array([0, 51, 255], jnp.uint8)
    np.testing.assert_allclose(adversarial.signed(image), [-1, -0.6, 1], atol=1e-6)


def test_optimizer_states_are_named_as_their_parameters():
    """So that the rules of sharding find them: a suffix of every path is that of a parameter."""
    tx = Optimizers(optax.adam(1e-3), optax.adam(1e-3))
    params = fresh(tx)["params"]
    paths = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree_util.tree_leaves_with_path(tx.init(params))
    ]
    for name in ("generator/a", "generator/b", "discriminator/w", "discriminator/c"):
        assert sum(path.endswith("/" + name) for path in paths) == 2, name


def test_errors():
    for changes, message in (
        ({"loss": "wgan"}, "did you mean wgan-gp"),
        ({"augment": ("colour",)}, "did you mean color"),
        ({"r1": -1.0}, "at least 0"),
        ({"d_steps": 0}, "at least 1"),
    ):
        with pytest.raises(ZooError, match=message):
            AdversarialConfig(**changes)
    with pytest.raises(ZooError, match="unknown adversarial loss"):
        adversarial.discriminator_loss("wgan", jnp.zeros(1), jnp.zeros(1))
    with pytest.raises(ZooError, match="needs the logits of real images"):
        adversarial.generator_loss("relativistic", None, jnp.zeros(1))
    assert AdversarialConfig("hinge", r1=1.0).penalties == {"r1": 1.0}
    assert AdversarialConfig("wgan-gp").penalties == {"gp": 10.0}
