import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from zoo.data.augment import crop_and_scale
from zoo.models.attention import cudnn
from zoo.models.positions import rotate_by_product
from zoo.models.projections import project
from zoo.objectives.losses import label_nats
from zoo.train.flops import count_flops, peak_flops


def count(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def test_dots_by_hand():
    assert count(lambda a, b: a @ b, (2, 3), (3, 5)) == 2 * 2 * 3 * 5
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 2, 3), (7, 3, 5)) == 7 * 2 * 2 * 3 * 5


def test_convolutions_by_hand():
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert count(conv, (2, 8, 8, 3), (3, 3, 3, 16)) == 2 * (2 * 6 * 6 * 16) * 27
    grouped = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    assert count(grouped, (2, 8, 8, 8), (3, 3, 2, 16)) == 2 * (2 * 6 * 6 * 16) * 18


def test_scan_counts_every_iteration():
    def chain(x, w):
        return jax.lax.scan(lambda h, _: (h @ w, None), x, None, length=11)[0]

    assert count(chain, (4, 6), (6, 6)) == 11 * 2 * 4 * 6 * 6
    assert count(jax.jit(jax.checkpoint(chain)), (4, 6), (6, 6)) == 11 * 2 * 4 * 6 * 6


def test_products_that_are_so_for_speed_alone_do_not_count():
    """Not sums over a vocabulary, of biases' gradients, turns of pairs, or shifts of images."""
    nats = lambda x, w: jnp.sum(label_nats(x @ w, jnp.zeros((1, 4), jnp.int32)))
    assert count(jax.grad(nats), (1, 4, 6), (6, 5)) == 2 * 2 * 4 * 6 * 5
    biased = lambda x, w, bias: jnp.sum(project("btd,dhk->bhtk", x, w, bias))
    assert count(jax.grad(biased, argnums=(1, 2)), (1, 4, 6), (6, 2, 5), (2, 5)) == 2 * 2 * 4 * 6 * 10
    turned = lambda x, angles: jnp.sum(rotate_by_product(x, angles, angles))
    assert count(jax.grad(turned), (1, 2, 4, 6), (1, 4, 3)) == 0
    assert count(lambda image: crop_and_scale(image, 1, 2, 1.0), (8, 8, 3)) == 0


def test_dearest_branch_counts():
    branch = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)
    assert count(branch, (4, 6), (6, 6)) == 2 * 2 * 4 * 6 * 6


@pytest.mark.parametrize("window", [0, 3])
def test_products_inside_of_cudnn_count(window, monkeypatch):
    """Of pairs that see each other: two products forward, four backward. Tracing needs no GPU, only jax's leave."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_is_flash_attention", lambda *_, **__: None)
    arrays = [jnp.zeros((2, heads, 8, 16), jnp.bfloat16) for heads in (4, 2, 2)]
    total = lambda q, k, v: jnp.sum(cudnn(q, k, v, window).astype(jnp.float32))
    pairs = 3 * 8 - 3 if window else 8 * 9 // 2
    assert count_flops(jax.make_jaxpr(total)(*arrays)) == 2 * 2 * 2 * 4 * 16 * pairs
    assert count_flops(jax.make_jaxpr(jax.grad(total))(*arrays)) == 6 * 2 * 2 * 4 * 16 * pairs


def test_gradient_agrees_with_the_compiler():
    """Without loops the compiler's own count is right; it adds elementwise work to the same products."""

    def loss(w, x):
        return jnp.sum(jnp.square(jnp.tanh(x @ w[0]) @ w[1]))

    w, x = (jnp.ones((64, 128)), jnp.ones((128, 32))), jnp.ones((256, 64))
    ours = count_flops(jax.make_jaxpr(jax.grad(loss))(w, x))
    theirs = jax.jit(jax.grad(loss)).lower(w, x).compile().cost_analysis()["flops"]
    assert ours == pytest.approx(theirs, rel=0.05)


def test_peaks_by_device_kind():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    assert peak_flops(Device("TPU v5 lite")) == 197e12
    assert peak_flops(Device("TPU v5")) == 459e12
    assert peak_flops(Device("TPU v6 lite")) == 918e12
    assert peak_flops(Device("NVIDIA H100 80GB HBM3")) == 989e12
    assert peak_flops(Device("cpu")) is None
