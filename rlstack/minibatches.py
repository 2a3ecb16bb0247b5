"""From a step's rollouts and what was estimated of them to the batches of its optimizer steps."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import lcm

import numpy as np
import torch
from torch import Tensor

from rlstack.algorithms.catalog import AdvantageEstimate
from rlstack.batch import CriticBatch, PolicyBatch, TokenBatch
from rlstack.config.run import RLConfig
from rlstack.protocols import Filtration
from rlstack.seeds import Domain, generator
from rlstack.types import Candidates, FinishReason, Group


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forward:
    """What the models said of a step's rollouts before its updates, float32 [B, T].

    old_logprobs, ref_logprobs: nats; without a reference the old ones stand in, unused. values:
    reward units; None without a critic.
    """

    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor | None


def minibatch_rows(config: RLConfig, *, step: int, num_rows: int) -> list[Tensor]:
    """Row indices of every optimizer step of a step, in the order that the seed gives."""
    algorithm = config.algorithm
    minibatches: list[Tensor] = []
    for epoch in range(algorithm.epochs):
        order = generator(config.seed, Domain.MINIBATCHES, step, epoch).permutation(num_rows)
        minibatches += torch.chunk(torch.from_numpy(order), algorithm.updates_per_epoch)
    return minibatches


def row_multiple(config: RLConfig) -> int:
    """What the number of a step's rows must be a multiple of: equal shares for every rank."""
    placement, algorithm = config.placement, config.algorithm
    shared_by = [placement.trainer_ranks]
    if algorithm.needs_critic:
        shared_by.append(placement.critic.ranks or placement.trainer_ranks)
    if algorithm.needs_reference:
        shared_by.append(placement.reference.ranks or placement.trainer_ranks)
    return algorithm.updates_per_epoch * lcm(*shared_by)


def filtered(
    batch: TokenBatch, groups: Sequence[Group], *, filtration: Filtration, multiple: int, seed: int
) -> TokenBatch:
    """The rows that `filtration` keeps, filled up to a `multiple` with rows that teach nothing.

    groups: those of the batch, in its order.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    kept = filtration.select(
        Candidates(
            rewards=batch.rewards.numpy().astype(np.float64),
            group_ids=batch.group_ids.numpy(),
            lengths=np.array([len(rollout.response_ids) for rollout in rollouts], dtype=np.int64),
            truncated=np.array([r.finish_reason is FinishReason.LENGTH for r in rollouts]),
        ),
        seed=seed,
    )
    num_rows = max(multiple, -(-len(kept) // multiple) * multiple)
    # The shortest rows cost least.
    filler = batch.lengths.argsort()[torch.arange(num_rows - len(kept)) % batch.num_rows]
    result = batch.select(torch.cat([torch.from_numpy(kept), filler]))
    teaches = torch.arange(num_rows) < len(kept)
    turns = result.turn_rewards
    return replace(
        result,
        loss_mask=result.loss_mask & teaches.unsqueeze(1),
        rollout_logprobs=torch.where(teaches.unsqueeze(1), result.rollout_logprobs, 0.0),
        rewards=torch.where(teaches, result.rewards, torch.nan),
        turn_rewards=None if turns is None else torch.where(teaches.unsqueeze(1), turns, 0.0),
    )


def policy_batch(
    batch: TokenBatch,
    forward: Forward,
    estimate: AdvantageEstimate,
    rows: Tensor,
    *,
    kl_coef: float,
) -> PolicyBatch:
    """`rows` of a step for one optimizer step of the policy, with the denominators of its loss."""
    chosen = _without_turn_rewards(batch).select(rows)
    return PolicyBatch(
        **_fields(chosen),
        old_logprobs=forward.old_logprobs[rows],
        ref_logprobs=forward.ref_logprobs[rows],
        advantages=estimate.advantages[rows],
        correction_weights=estimate.correction_weights[rows],
        num_loss_tokens=int(chosen.loss_mask.sum()),
        num_rollouts=int(chosen.loss_mask.any(dim=1).sum()),
        kl_coef=kl_coef,
    )


def critic_batch(
    batch: TokenBatch, forward: Forward, estimate: AdvantageEstimate, rows: Tensor
) -> CriticBatch:
    """`rows` of a step for one optimizer step of the critic; unjudged ones teach it nothing."""
    assert forward.values is not None
    assert estimate.returns is not None
    chosen = _without_turn_rewards(batch).select(rows)
    loss_mask = chosen.loss_mask & ~chosen.rewards.isnan().unsqueeze(1)
    chosen = replace(chosen, loss_mask=loss_mask)
    return CriticBatch(
        **_fields(chosen),
        old_values=forward.values[rows],
        returns=estimate.returns[rows],
        num_loss_tokens=int(loss_mask.sum()),
    )


def _without_turn_rewards(batch: TokenBatch) -> TokenBatch:
    """They are in the advantages and returns by now, and need not travel."""
    return replace(batch, turn_rewards=None)


def _fields(batch: TokenBatch) -> dict[str, Tensor]:
    return {field.name: getattr(batch, field.name) for field in fields(TokenBatch)}
