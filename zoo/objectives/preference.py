"""Direct preference optimisation: training on pairs of a better and a worse answer, without a reward model.

Rafailov et al. 2023, arXiv:2305.18290. All is float32, with one value a pair for the caller to weigh and sum.
"""

import jax
import jax.numpy as jnp

from zoo.errors import ZooError


def sequence_logps(losses_bt: jax.Array, mask_bt: jax.Array) -> jax.Array:
    """Log-probability of each answer in nats: losses [B, T] of its tokens, as of `next_token_loss`; float32 [B].

    `mask_bt` [B, T] is true (or not 0) at the tokens of the answer; those of the prompt and the padding are
    left out, whatever their loss is. It is the sum and not the mean, as in the paper.
    """
    return -jnp.sum(jnp.where(mask_bt.astype(bool), losses_bt.astype(jnp.float32), 0.0), axis=-1)


def dpo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    ref_chosen: jax.Array,
    ref_rejected: jax.Array,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Equation 7 of the paper: -log σ(margin), for log-probabilities [N] of N pairs; losses and metrics are [N].

    The implicit reward of an answer is beta · (its log-probability under the policy - under the reference), and
    the margin is that of the chosen answer less that of the rejected one. The loss is log 2 where the policy is
    the reference. No gradient flows into the reference.

    With `label_smoothing` ε, a label is taken to be wrong with that probability: (1 - ε) · -log σ(margin) +
    ε · -log σ(-margin), the conservative loss of Mitchell 2023 (https://ericmitchell.ai/cdpo.pdf), which is
    least at a margin of log((1 - ε) / ε).

    The metrics: `reward_chosen`, `reward_rejected`, `margin`, and `accuracy`, 1 where the margin is above 0.
    Raises ZooError unless beta > 0 and 0 <= ε < 0.5.
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise ZooError(f"beta {beta} must be above 0, and label_smoothing {label_smoothing} in [0, 0.5)")

    def reward(policy: jax.Array, reference: jax.Array) -> jax.Array:
        return beta * (policy.astype(jnp.float32) - jax.lax.stop_gradient(reference).astype(jnp.float32))

    chosen, rejected = reward(policy_chosen, ref_chosen), reward(policy_rejected, ref_rejected)
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * jax.nn.log_sigmoid(margin) - label_smoothing * jax.nn.log_sigmoid(-margin)
    accuracy = (margin > 0).astype(jnp.float32)
    return losses, {"reward_chosen": chosen, "reward_rejected": rejected, "margin": margin, "accuracy": accuracy}
