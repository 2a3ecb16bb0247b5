"""From the configured objective to the loss of a batch of preferences."""

from typing import Literal

import torch
from torch import Tensor

from rlstack.algorithms import preference_losses
from rlstack.algorithms.preference_losses import PreferenceLoss, row_mean, sequence_logprobs
from rlstack.batches.preference_reference import JudgedPreferenceBatch, PreferenceBatch
from rlstack.config.preference import (
    DPOObjective,
    IPOObjective,
    KTOObjective,
    ORPOObjective,
    PairObjective,
    RobustDPOObjective,
    SimPOObjective,
)
from rlstack.metrics import Metrics

Prefix = Literal["preference", "eval"]


def preference_loss(
    batch: PreferenceBatch, logprobs: Tensor, *, objective: PairObjective, prefix: Prefix
) -> tuple[Tensor, Metrics]:
    """The loss of the pairs of `batch`: their share of the loss of the whole optimizer step.

    logprobs: float32 [2N, T], nats, of the policy being trained. Losses of micro-batches and ranks
    add up; so do the metrics, `PREFIX/...`: `accuracy` is the share of pairs whose chosen response
    has the larger implicit reward, logprobs are those of whole responses.
    """
    found = _pair_losses(batch, logprobs, objective)
    chosen, rejected = found.chosen_rewards, found.rejected_rewards
    sums = sequence_logprobs(logprobs.detach(), batch.loss_mask, average=False)
    observed = {
        "loss": found.loss.detach(),
        "accuracy": (chosen > rejected).float(),
        "reward_margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_logprob": sums[0::2],
        "rejected_logprob": sums[1::2],
    }
    return row_mean(found.loss, num_rows=batch.num_pairs), _means(observed, prefix)


def _pair_losses(
    batch: PreferenceBatch, logprobs: Tensor, objective: PairObjective
) -> PreferenceLoss:
    average = isinstance(objective, ORPOObjective | SimPOObjective)
    values = sequence_logprobs(logprobs, batch.loss_mask, average=average)
    pair = (values[0::2], values[1::2])
    reference = (batch.ref_logprobs[0::2], batch.ref_logprobs[1::2])
    match objective:
        case DPOObjective(beta=beta, label_smoothing=smoothing):
            return preference_losses.dpo(*pair, *reference, beta=beta, label_smoothing=smoothing)
        case RobustDPOObjective(beta=beta, label_smoothing=smoothing):
            return preference_losses.robust_dpo(
                *pair, *reference, beta=beta, label_smoothing=smoothing
            )
        case IPOObjective(beta=beta, length_normalised=normalised):
            lengths = batch.loss_mask.sum(dim=1)
            return preference_losses.ipo(
                *pair,
                *reference,
                lengths[0::2],
                lengths[1::2],
                beta=beta,
                length_normalised=normalised,
            )
        case ORPOObjective(weight=weight):
            return preference_losses.orpo(*pair, weight=weight)
        case SimPOObjective(beta=beta, gamma=gamma):
            return preference_losses.simpo(*pair, beta=beta, gamma=gamma)


def judged_loss(
    batch: JudgedPreferenceBatch,
    logprobs: Tensor,
    *,
    reference_point: Tensor,
    objective: KTOObjective,
    prefix: Prefix,
) -> tuple[Tensor, Metrics]:
    """Like `preference_loss` for single responses, of which `logprobs` float32 [N, T] are.

    reference_point: float [], the whole step's, from `preference_losses.kto_reference_point`.
    `accuracy` is the share of responses on the right side of it.
    """
    losses, rewards = preference_losses.kto(
        sequence_logprobs(logprobs, batch.loss_mask, average=False),
        batch.ref_logprobs,
        batch.desirable,
        reference_point=reference_point,
        beta=objective.beta,
        desirable_weight=objective.desirable_weight,
        undesirable_weight=objective.undesirable_weight,
    )
    good = batch.desirable
    right = (rewards > objective.beta * reference_point) == good
    observed = {
        "loss": losses.detach(),
        "accuracy": right.float(),
        "desirable_reward": rewards[good],
        "undesirable_reward": rewards[~good],
        "kl": torch.full_like(rewards, float(reference_point)),
    }
    return row_mean(losses, num_rows=batch.num_responses), _means(observed, prefix)


def _means(observed: dict[str, Tensor], prefix: Prefix) -> Metrics:
    means = {
        f"{prefix}/{name}": (float(values.sum()), float(len(values)))
        for name, values in observed.items()
    }
    return Metrics(means=means)
