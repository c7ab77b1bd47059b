"""Losses, in nats. All reduce in float32 and return one value an example, for the caller to weigh and sum."""

from typing import Any

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of logits [..., classes] with labels: int [...], or probabilities [..., classes].

    Returns float32 [...]. Smoothing mixes the target with the uniform distribution (Szegedy et al. 2016,
    section 7).
    """
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        target = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    else:
        target = jnp.sum(logits * labels.astype(jnp.float32), axis=-1)
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * jnp.mean(logits, axis=-1)
    return normalizer - target


def next_token_loss(logits_btv: jax.Array, tokens_bt: jax.Array) -> jax.Array:
    """Nats of each token but the first, given those before it: logits [B, T, V] of tokens [B, T + 1], float32 [B, T].

    The inputs of the model are `tokens[:, :-1]`: slicing logits by one row instead costs a copy on TPU.
    """
    return cross_entropy(logits_btv, tokens_bt[:, 1:])


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """A loss in nats a token as bits for each byte of text, which does not depend on the vocabulary."""
    return nats_per_token / (0.6931471805599453 * bytes_per_token)


def l2_penalty(params: Any, weight: float) -> jax.Array:
    """weight / 2 times the squared norm of all matrices and kernels (Krizhevsky et al. 2012); vectors are left out."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return 0.5 * weight * sum(squares, jnp.zeros((), jnp.float32))
