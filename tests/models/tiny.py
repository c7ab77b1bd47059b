"""Decoders small enough to test, and weights for them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from zoo.models.decoder import Decoder, DecoderConfig
from zoo.models.functional import abstract

TINY = DecoderConfig(vocab_size=13, context=8, layers=2, d_model=12, heads=2, d_ff=20)
RICH = replace(
    TINY,
    heads=4,
    kv_heads=2,
    head_size=6,
    positions="rotary",
    norm="rms",
    activation="swiglu",
    qk_norm=True,
    tied=False,
    softcap=5.0,
)


def noisy(config):
    """Parameters away from the zeros and ones of a new model, which would hide gradients and bugs."""
    graphdef, shapes, _ = abstract(lambda rngs: Decoder(config, rngs))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = 0.3 * rng.standard_normal(leaf.shape)
        return jnp.asarray(noise + ("scale" in jax.tree_util.keystr(path)), jnp.float32)

    return graphdef, jax.tree_util.tree_map_with_path(draw, shapes)
