"""Augmentation against closed forms, and the same on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.data.augment import AugmentConfig, augment, change_contrast, crop_and_scale, cut_out, rotate_and_scale
from zoo.errors import ZooError

CLASSES = 4
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 6, 7, 3), np.uint8)
LABEL = np.arange(16, dtype=np.int32) % CLASSES
FLOAT = IMAGE.astype(np.float32) * np.float32(1 / 255)
ONE_HOT = np.eye(CLASSES, dtype=np.float32)[LABEL]
ALL = AugmentConfig(flip=True, crop=2, rotate=20, scale=0.2, brightness=0.3, contrast=0.3, cutout=3, mixup=0.4)


TURN, CONTRAST = jax.jit(rotate_and_scale), jax.jit(change_contrast)
CUT = jax.jit(cut_out, static_argnums=1)


@functools.cache
def compiled(config):
    return jax.jit(functools.partial(augment, config, classes=CLASSES))


def run(config, key=0, image=IMAGE, label=LABEL):
    image, label = compiled(config)(jax.random.key(key), image, label)
    assert image.dtype == label.dtype == jnp.float32
    return np.asarray(image), np.asarray(label)


def test_off_is_the_identity():
    for image in (IMAGE, FLOAT):
        got, label = run(AugmentConfig(), image=image)
        np.testing.assert_array_equal(got, FLOAT)
        np.testing.assert_array_equal(label, ONE_HOT)


def test_flip_mirrors_some_exactly():
    image, label = run(AugmentConfig(flip=True))
    mirrored = [bool((image[i] == FLOAT[i][:, ::-1]).all()) for i in range(16)]
    for i, flipped in enumerate(mirrored):
        np.testing.assert_array_equal(image[i], FLOAT[i][:, ::-1] if flipped else FLOAT[i])
    assert 3 <= sum(mirrored) <= 13
    np.testing.assert_array_equal(label, ONE_HOT)


def test_a_window_beside_the_image_shows_it_moved():
    got = crop_and_scale(jnp.asarray(FLOAT[0]), jnp.int32(-1), jnp.int32(2), 1.0)
    expected = np.zeros_like(FLOAT[0])  # the window begins one row above and two columns right of the image
    expected[1:, :5] = FLOAT[0][:5, 2:]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_window_is_enlarged_as_an_image_of_its_own(factor):
    window = crop_and_scale(jnp.asarray(FLOAT[0]), jnp.int32(-1), jnp.int32(2), 1.0)
    got = crop_and_scale(jnp.asarray(FLOAT[0]), jnp.int32(-1), jnp.int32(2), jnp.float32(factor))
    np.testing.assert_allclose(got, TURN(window, jnp.float32(0), jnp.float32(factor)), atol=1e-5)


def test_crop_shifts_each_example_by_its_own():
    image, _ = run(AugmentConfig(crop=2))
    shifts = []
    for i in range(16):
        padded = np.pad(FLOAT[i], ((2, 2), (2, 2), (0, 0)))
        matches = [(y, x) for y in range(5) for x in range(5) if (padded[y : y + 6, x : x + 7] == image[i]).all()]
        assert len(matches) == 1
        shifts += matches
    assert len(set(shifts)) > 5
    assert {offset for pair in shifts for offset in pair} == set(range(5))  # nothing, both sides, all between


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_right_angles_equal_rot90(turns):
    square = FLOAT[0][:, :6]
    got = TURN(jnp.asarray(square), jnp.float32(90 * turns), jnp.float32(1))
    np.testing.assert_allclose(got, np.rot90(square, turns), atol=1e-5)


def test_rotation_and_scale_sample_bilinearly():
    image = FLOAT[0]
    degrees, factor = 33.0, 1.3
    got = np.asarray(TURN(jnp.asarray(image), jnp.float32(degrees), jnp.float32(factor)))
    a = np.deg2rad(degrees)
    for y in range(6):
        for x in range(7):
            # Turning counter-clockwise, with y pointing down, brings p here; undo it. Complex numbers: x - iy.
            p = complex(x - 3, -(y - 2.5)) * np.exp(-1j * a) / factor
            fx, fy = p.real + 3, -p.imag + 2.5
            expected = np.zeros(3)
            for v in range(6):
                for u in range(7):
                    expected += max(0, 1 - abs(fy - v)) * max(0, 1 - abs(fx - u)) * image[v, u]
            np.testing.assert_allclose(got[y, x], expected, atol=1e-5)


def test_doubling_enlarges_about_the_centre_and_halving_leaves_a_black_border():
    ramp = np.broadcast_to(np.arange(9, dtype=np.float32)[None, :, None] / 8, (9, 9, 1))
    double = TURN(jnp.asarray(ramp), jnp.float32(0), jnp.float32(2))
    np.testing.assert_allclose(double[4, :, 0], (4 + (np.arange(9) - 4) / 2) / 8, atol=1e-6)
    half = TURN(jnp.ones((9, 9, 1)), jnp.float32(0), jnp.float32(0.5))
    np.testing.assert_array_equal(np.asarray(half[:, :, 0]), np.pad(np.ones((5, 5)), 2))


def test_brightness_multiplies_and_clips():
    image, _ = run(AugmentConfig(brightness=0.4))
    factors = []
    for i in range(16):
        free = (image[i] < 1) & (FLOAT[i] > 0)
        factor = np.median(image[i][free] / FLOAT[i][free])
        np.testing.assert_allclose(image[i], np.clip(FLOAT[i] * factor, 0, 1), atol=1e-5)
        factors.append(factor)
    assert 0.6 <= min(factors) < 0.8
    assert 1.2 < max(factors) <= 1.4


def test_contrast_keeps_the_mean_gray():
    luma = FLOAT[0] @ np.array([0.299, 0.587, 0.114])
    got = CONTRAST(jnp.asarray(FLOAT[0]), jnp.float32(1.7))
    np.testing.assert_allclose(got, np.clip(1.7 * FLOAT[0] - 0.7 * luma.mean(), 0, 1), atol=1e-6)
    gray = FLOAT[0][..., :1]
    got = CONTRAST(jnp.asarray(gray), jnp.float32(0.25))
    np.testing.assert_allclose(got, 0.25 * gray + 0.75 * gray.mean(), atol=1e-6)


def test_cutout_blackens_one_square():
    white = jnp.ones((6, 7, 3))
    expected = np.ones((6, 7, 3))
    expected[1:4, 4:7] = 0
    np.testing.assert_array_equal(CUT(white, 3, jnp.int32(2), jnp.int32(5)), expected)
    expected = np.ones((6, 7, 3))
    expected[:2, :2] = 0
    np.testing.assert_array_equal(CUT(white, 4, jnp.int32(0), jnp.int32(0)), expected)
    image, _ = run(AugmentConfig(cutout=3), image=np.full_like(IMAGE, 255))
    black = (image == 0).all(-1).sum((1, 2))
    assert ((black >= 4) & (black <= 9)).all()
    assert len({tuple(map(tuple, (i == 0).all(-1).tolist())) for i in image}) > 8


def test_mixup_shares_out_image_and_label_alike():
    image, label = run(AugmentConfig(mixup=0.7))
    np.testing.assert_allclose(label.sum(1), 1, atol=1e-6)
    share = label[np.arange(16), LABEL]  # neighbours are of other classes here
    assert len(set(share.round(4))) == 16
    mixed = share[:, None, None, None] * FLOAT + (1 - share)[:, None, None, None] * np.roll(FLOAT, -1, 0)
    np.testing.assert_allclose(image, mixed, atol=1e-5)
    np.testing.assert_allclose(
        label, share[:, None] * ONE_HOT + (1 - share)[:, None] * np.roll(ONE_HOT, -1, 0), atol=1e-6
    )


def test_an_example_depends_on_key_and_row_alone():
    config = AugmentConfig(flip=True, crop=2, rotate=20, scale=0.2, brightness=0.3, contrast=0.3, cutout=3)
    image, _ = run(config)
    other = IMAGE.copy()
    other[8:] = 7
    again, _ = run(config, image=other)
    np.testing.assert_array_equal(again[:8], image[:8])
    assert (run(config, key=1)[0] != image).any()
    same = run(config, image=np.broadcast_to(IMAGE[:1], IMAGE.shape))[0]
    assert len({row.tobytes() for row in same}) == 16  # every row has its own draw


def test_switching_one_on_changes_no_other_draw():
    flips, _ = run(AugmentConfig(flip=True))
    both, _ = run(AugmentConfig(flip=True, cutout=3))
    kept = both != 0
    np.testing.assert_array_equal(both[kept], flips[kept])


def test_the_same_on_a_mesh():
    one, one_label = run(ALL)
    assert 0 <= one.min() < one.max() <= 1
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    image, label = compiled(ALL)(jax.random.key(0), jax.device_put(IMAGE, rows), jax.device_put(LABEL, rows))
    assert len(image.sharding.device_set) == 8
    np.testing.assert_allclose(image, one, atol=1e-6)
    np.testing.assert_allclose(label, one_label, atol=1e-6)


def test_negative_strengths_are_refused():
    with pytest.raises(ZooError, match="rotate is -3"):
        AugmentConfig(rotate=-3)
