"""What a step of RL measures of its rollouts, apart from the RL."""

from collections.abc import Sequence

import numpy as np

from rlstack.algorithms import measurements
from rlstack.batch import TokenBatch
from rlstack.evaluation import rollout_metrics
from rlstack.metrics import Metrics
from rlstack.types import Group


def step_metrics(
    groups: Sequence[Group],
    sampled: TokenBatch,
    trained: TokenBatch,
    *,
    policy_version: int,
    max_response_tokens: int,
    kl_coef: float | None,
) -> Metrics:
    """Lengths, rewards, what is trained on, and how old it is.

    sampled: all rollouts of `groups`. trained: those that the step learns from. policy_version: of
    the trainer when the step began. kl_coef: None without a reference.
    """
    metrics = rollout_metrics(groups, max_response_tokens=max_response_tokens)
    metrics += staleness(groups, policy_version=policy_version)
    metrics += measurements.of_rewards(sampled)
    metrics += measurements.of_training(sampled, trained)
    return metrics if kl_coef is None else metrics + Metrics.of({"policy/kl_coef": kl_coef})


def staleness(groups: Sequence[Group], *, policy_version: int) -> Metrics:
    """Updates between the policy that wrote a token and the one that is trained on it."""
    versions = np.concatenate([r.policy_versions for g in groups for r in g.rollouts])
    ages = policy_version - versions
    return Metrics.mean("policy/staleness", float(ages.sum()), len(ages))
