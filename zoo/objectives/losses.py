"""Losses, in nats. All reduce in float32 and return one value an example, for the caller to weigh and sum."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo.errors import ZooError


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

    The inputs of the model are `tokens[:, :-1]`: slicing logits by one row instead costs a copy on TPU. Logits may be
    bfloat16: what the gradient needs of them is kept as they are, and their gradient is of their dtype.
    """
    return label_nats(logits_btv, tokens_bt[:, 1:])


@jax.custom_vjp
def label_nats(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`cross_entropy` of int labels, of which a gradient keeps the logits and the log of their sum, and no float32.

    The sum over the vocabulary is a product with ones, of which a TPU takes eight at least: it then costs little more
    than reading the logits. Exponentials are rounded to the logits' dtype before. The label's logit is the largest of
    those that are the label's, since a TPU finds largest ones as it makes the logits.
    """
    return _label_nats_forward(logits, labels)[0]


def _label_nats_forward(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    least = jnp.finfo(logits.dtype).min
    target = jnp.max(jnp.where(_is_label(logits, labels), logits, least), axis=-1).astype(jnp.float32)
    highest = jnp.max(logits, axis=-1).astype(jnp.float32)
    shares = jnp.exp(logits.astype(jnp.float32) - highest[..., None]).astype(logits.dtype)
    ones = jnp.ones((logits.shape[-1], 8), logits.dtype)
    with jax.named_scope("as_product"):
        total = jnp.matmul(shares, ones, precision="highest", preferred_element_type=jnp.float32)[..., 0]
    normalizer = jnp.log(total) + highest
    return normalizer - target, (logits, labels, normalizer)


def _label_nats_backward(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, None]:
    logits, labels, normalizer = kept
    shares = jnp.exp(logits.astype(jnp.float32) - normalizer[..., None])
    gradients = jnp.where(_is_label(logits, labels), shares - 1, shares) * gradient[..., None]
    return gradients.astype(logits.dtype), None


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]


label_nats.defvjp(_label_nats_forward, _label_nats_backward)


def chunked_next_token_loss(
    hidden_btd: jax.Array,
    logits_of: Callable[[jax.Array], jax.Array],
    tokens_bt: jax.Array,
    chunk: int = 256,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """`next_token_loss` of `logits_of(hidden)` without all the logits at once: float32 [B, T].

    `hidden_btd` [B, T, D] goes through `logits_of` ([B, C, D] to [B, C, vocab], such as a decoder's `logits`; it
    may close over parameters, which get their gradients) in chunks of C <= `chunk` positions. The backward pass
    computes the logits of a chunk again, so both passes hold B · C · vocab of them and not B · T · vocab, for
    one more product with the head. Values and gradients are those of the plain loss; weigh the result for a mask.
    """
    if chunk < 1:
        raise ZooError(f"a chunk of {chunk} positions; give at least 1")
    length = hidden_btd.shape[1]
    chunks = -(-length // chunk)
    width = -(-length // chunks)  # equal chunks: fewer rows of padding than there are chunks

    # Along time: the batch is what is split over a mesh, and stays where it is.
    def parts(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * width - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, width, *x.shape[2:]), 1, 0)

    def body(carry: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        hidden_bcd, labels_bc = part
        return carry, cross_entropy(logits_of(hidden_bcd), labels_bc, label_smoothing)

    # The scan keeps the compiler from merging the second computation of the logits with the first.
    body = jax.checkpoint(body, prevent_cse=False)
    _, losses_nbc = jax.lax.scan(body, None, (parts(hidden_btd), parts(tokens_bt[:, 1:])))
    return jnp.moveaxis(losses_nbc, 0, 1).reshape(-1, chunks * width)[:, :length]


def l2_penalty(params: Any, weight: float) -> jax.Array:
    """weight / 2 times the squared norm of all matrices and kernels (Krizhevsky et al. 2012); vectors are left out."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return 0.5 * weight * sum(squares, jnp.zeros((), jnp.float32))
