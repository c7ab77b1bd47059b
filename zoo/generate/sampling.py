"""How the next token is chosen from logits."""

from dataclasses import dataclass, fields
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from zoo.errors import ZooError


@dataclass(frozen=True)
class Sampling:
    """Applied in this order: guidance, the ids that are allowed, the penalty, the temperature, then each filter to
    what the one before it left."""

    guidance: Annotated[float, tyro.conf.Suppress] = 1.0
    """Other than 1, the second half of the rows are the first without its condition, and both halves take the token
    of u + guidance · (c - u), c and u the logits with and without it (Ho and Salimans 2022, arXiv:2207.12598)."""
    allowed: Annotated[tuple[int, int] | None, tyro.conf.Suppress] = None
    """The first id to choose from, and one past the last; all if not given."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Choose among the k likeliest tokens; 0 among all (Fan et al. 2018, arXiv:1805.04833)."""
    top_p: float = 1.0
    """Choose among the fewest likely tokens that make up this probability (Holtzman et al. 2019, arXiv:1904.09751)."""
    min_p: float = 0.0
    """Leave out tokens below this share of the likeliest one's probability (Nguyen et al. 2024, arXiv:2407.01082)."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the text so far become less likely (Keskar et al. 2019, arXiv:1909.05858)."""

    def __post_init__(self) -> None:
        """Raises ZooError for values outside their range."""
        within = {
            "guidance": self.guidance >= 0,
            "allowed": self.allowed is None or 0 <= self.allowed[0] < self.allowed[1],
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0,
        }
        if wrong := [f"{name} {getattr(self, name)}" for name, fine in within.items() if not fine]:
            raise ZooError(
                f"{', '.join(wrong)} is out of range: guidance, temperature and top_k are at least 0, allowed ids a "
                "range, top_p lies in (0, 1], min_p in [0, 1], repetition_penalty above 0"
            )

    @property
    def used(self) -> frozenset[str]:
        """Names of the parts that do something; a program is compiled for each set of them, not for their values."""
        off = Sampling()
        used = {field.name for field in fields(self) if getattr(self, field.name) != getattr(off, field.name)}
        if self.temperature == 0:
            return frozenset({"greedy"} | used & {"guidance", "allowed", "repetition_penalty"})
        return frozenset(used)

    def values(self) -> dict[str, jax.Array]:
        """The numbers, as arrays for a compiled program."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        numbers = {name: jnp.asarray(x) for name, x in given.items() if x is not None}
        whole = ("top_k", "allowed")
        return {name: x.astype(jnp.int32 if name in whole else jnp.float32) for name, x in numbers.items()}


def guided(logits_bv: jax.Array, guidance: jax.Array) -> jax.Array:
    """The logits [B, V] of both halves by `Sampling.guidance`."""
    with_bv, without_bv = jnp.split(logits_bv, 2)
    return jnp.tile(without_bv + guidance * (with_bv - without_bv), (2, 1))


def penalised(logits_bv: jax.Array, seen_bv: jax.Array, penalty: jax.Array) -> jax.Array:
    """Logits of the tokens that are seen, bool [B, V], divided by the penalty where positive, else multiplied."""
    return jnp.where(seen_bv, jnp.where(logits_bv > 0, logits_bv / penalty, logits_bv * penalty), logits_bv)


def filtered(logits_bv: jax.Array, used: frozenset[str], values: dict[str, jax.Array]) -> jax.Array:
    """Logits [B, V] over the temperature, -inf where a filter of `Sampling` leaves a token out."""
    if "temperature" in used:
        logits_bv = logits_bv / values["temperature"]
    lowest = jnp.full_like(logits_bv[:, :1], -jnp.inf)
    if used & {"top_k", "top_p"}:
        ordered_bv = -jnp.sort(-logits_bv, axis=-1)
        if "top_k" in used:
            last = jnp.minimum(values["top_k"], ordered_bv.shape[-1]) - 1
            lowest = jax.lax.dynamic_index_in_dim(ordered_bv, last, axis=-1)
            ordered_bv = jnp.where(ordered_bv >= lowest, ordered_bv, -jnp.inf)
        if "top_p" in used:
            p_bv = jax.nn.softmax(ordered_bv)
            before_bv = jnp.cumsum(p_bv, axis=-1) - p_bv  # the token that crosses the line stays
            kept_bv = jnp.where(before_bv < values["top_p"], ordered_bv, jnp.inf)
            lowest = jnp.maximum(lowest, jnp.min(kept_bv, axis=-1, keepdims=True))
    if "min_p" in used:
        lowest = jnp.maximum(lowest, jnp.max(logits_bv, axis=-1, keepdims=True) + jnp.log(values["min_p"]))
    return jnp.where(logits_bv >= lowest, logits_bv, -jnp.inf)


def choose(
    logits_bv: jax.Array,
    keys_b: jax.Array,
    used: frozenset[str],
    values: dict[str, jax.Array],
    seen_bv: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A token for each row, int32 [B], and its log-probability in nats, float32 [B], by the logits as given.

    Each row has its own key, so that what it draws does not depend on the rows beside it.
    """
    # What is found over the vocabulary is found along columns, as a CPU's product for few rows writes logits.
    given_bv, total_b = logits_bv, jax.nn.logsumexp(logits_bv.T, axis=0)
    if "guidance" in used:
        logits_bv = guided(logits_bv, values["guidance"])
    if "allowed" in used:
        ids = jnp.arange(logits_bv.shape[-1])
        logits_bv = jnp.where(((ids >= values["allowed"][0]) & (ids < values["allowed"][1]))[None], logits_bv, -jnp.inf)
    if seen_bv is not None:
        logits_bv = penalised(logits_bv, seen_bv, values["repetition_penalty"])
    if "greedy" in used:
        # The first of the highest: what argmax finds, which takes a CPU three times as long.
        logits_vb, ids_v1 = logits_bv.T, jnp.arange(logits_bv.shape[-1])[:, None]
        highest_1b = jnp.max(logits_vb, axis=0, keepdims=True)
        tokens_b = jnp.min(jnp.where(logits_vb == highest_1b, ids_v1, ids_v1[-1:]), axis=0)
        if logits_bv is given_bv:  # a look-up would lay them out in rows
            return tokens_b.astype(jnp.int32), highest_1b[0] - total_b
    else:
        tokens_b = jax.vmap(jax.random.categorical)(keys_b, filtered(logits_bv, used, values))
    return tokens_b.astype(jnp.int32), jnp.take_along_axis(given_bv, tokens_b[:, None], axis=-1)[:, 0] - total_b
