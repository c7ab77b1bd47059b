"""Optimizers, schedules and the rule that says which parameter gets what. All of it is optax."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from zoo.errors import ZooError

Matrices = Sequence[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]]


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer. Matrices are decayed (and, by Muon, orthogonalised); vectors and tables are not."""

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """AdamW, SGD with Nesterov momentum, or Muon (AdamW for all that is not a hidden matrix)."""
    lr: float = 1e-3
    """Peak learning rate; of the matrices, when the optimizer is Muon."""
    adam_lr: float = 3e-3
    """Peak learning rate of what Muon leaves to AdamW."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """After warm-up: down by a cosine or a line, or (wsd) stable and then down by a line."""
    warmup: float = 0.05
    """Part of the steps in which the rate rises from zero."""
    decay: float = 0.2
    """Part of the steps in which a wsd schedule falls."""
    final: float = 0.0
    """Last learning rate, as a part of the peak."""
    weight_decay: float = 0.0
    """Decoupled (AdamW, Muon), or added to the gradient (SGD), where it equals an L2 penalty."""
    momentum: float = 0.9
    """Of SGD and Muon."""
    b1: float = 0.9
    """First-moment decay of AdamW."""
    b2: float = 0.999
    """Second-moment decay of AdamW."""
    clip: float = 0.0
    """Largest global gradient norm; 0 is off."""
    ns_steps: int = 5
    """Newton-Schulz iterations of Muon."""


def make_schedule(config: OptimConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """Learning rate as a function of the step (0 is the first update), traceable."""
    peak = config.lr if peak is None else peak
    warm = round(config.warmup * steps)
    final = peak * config.final
    rest = max(1, steps - warm)
    if config.schedule == "cosine":
        body = optax.cosine_decay_schedule(peak, rest, config.final)
    elif config.schedule == "linear":
        body = optax.linear_schedule(peak, final, rest)
    elif config.schedule == "wsd":
        fall = max(1, round(config.decay * steps))
        body = optax.linear_schedule(peak, final, fall, transition_begin=max(0, rest - fall))
    else:
        body = optax.constant_schedule(peak)
    if warm == 0:
        return body
    # The first update already moves: rate peak/warm at step 0, peak at step warm - 1.
    rise = optax.linear_schedule(peak / warm, peak, max(1, warm - 1))
    return optax.join_schedules([rise, body], [warm])


def group(path: tuple[Any, ...], leaf: Any) -> Literal["matrix", "table", "vector"]:
    """The parameter-group rule: `vector` for norms and biases, `table` for embeddings and heads that are
    looked up by token or position, `matrix` for all else. Stacked layers count as one axis of a matrix."""
    name = _name(path)
    if leaf.ndim < 2 or re.search(r"(bias|scale)$", name):
        return "vector"
    return "table" if re.search(r"embed|position|head", name) else "matrix"


def make_optimizer(config: OptimConfig, steps: int, matrices: Matrices = ()) -> optax.GradientTransformation:
    """The optax transformation of a config.

    `matrices` is a model's table of (path regex, (reduction axes, output axes)) for Muon; a matrix that it
    does not name is taken to reduce over all axes but its last.
    """
    if config.lr <= 0 or config.adam_lr <= 0 or not 0 <= config.warmup <= 1 or not 0 <= config.decay <= 1:
        raise ZooError("--optim.lr and --optim.adam-lr must be above 0, --optim.warmup and --optim.decay in [0, 1]")
    if config.clip < 0 or config.weight_decay < 0:
        raise ZooError("--optim.clip and --optim.weight-decay must be at least 0")
    schedule = make_schedule(config, steps)

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: group(path, leaf) == "matrix", params)

    def dimensions(params: Any) -> Any:
        def of(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers | None:
            if group(path, leaf) != "matrix":
                return None
            for pattern, (reduction, output) in matrices:
                if re.search(pattern, _name(path)):
                    return MuonDimensionNumbers(reduction, output)
            return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

        return jax.tree_util.tree_map_with_path(of, params)

    if config.name == "adamw":
        base = optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=decayed)
    elif config.name == "sgd":
        base = optax.chain(
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.sgd(schedule, config.momentum, nesterov=True),
        )
    else:
        base = muon(
            schedule,
            ns_steps=config.ns_steps,
            beta=config.momentum,
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_learning_rate=make_schedule(config, steps, config.adam_lr),
            muon_weight_dimension_numbers=dimensions,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), base) if config.clip else base


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
