"""From an objective's type to the loss of a micro-batch: the one table of what can be learned.

A loss sees what a model says of tokens or rows, never the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlstack.algorithms.catalog import critic_loss, policy_loss
from rlstack.algorithms.preference_catalog import judged_loss, preference_loss
from rlstack.algorithms.preference_losses import bradley_terry, kto_reference_point, row_mean
from rlstack.algorithms.reductions import token_mean
from rlstack.algorithms.supervised_losses import negative_log_likelihood
from rlstack.batch import CriticBatch, PolicyBatch, Rows
from rlstack.batches.preference_reference import JudgedPreferenceBatch, PreferenceBatch
from rlstack.batches.preferences import PairBatch
from rlstack.batches.supervised import SFTBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.critic import CriticConfig
from rlstack.config.preference import (
    DPOObjective,
    IPOObjective,
    KTOObjective,
    ORPOObjective,
    PairObjective,
    RobustDPOObjective,
    SimPOObjective,
)
from rlstack.config.reward_model import RewardLossConfig
from rlstack.metrics import Metrics


@dataclass(frozen=True, slots=True)
class SFTObjective:
    """Mean negative log-likelihood of the loss tokens of demonstrations."""


Objective = (
    AlgorithmConfig | CriticConfig | RewardLossConfig | SFTObjective | PairObjective | KTOObjective
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelOutput:
    """What a model says of the rows of a micro-batch, with its gradient.

    values: float32 [B, T], 0 where loss_mask is False: logprobs (nats) of a policy, values (reward
    units) of a critic; or [B], the scores of a reward model. entropy: float32 [B, T], nats, and
    greedy: 1 where a loss token is the likeliest; a policy gives the one that the objective needs.
    """

    values: Tensor
    entropy: Tensor | None = None
    greedy: Tensor | None = None


ResponseLogprobs = Callable[[Rows], Tensor]
"""Float32 [B], nats, of whole responses, on the model's device; every rank takes part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveKind:
    """How objectives of one type become losses and metrics.

    The functions take the rows, what the model says of them, the objective, and what `prepare` gave
    (None without one).
    """

    loss: Callable[[Any, ModelOutput, Any, Any], tuple[Tensor, Metrics]]
    """The rows' share of the loss of the whole optimizer step, and its metrics: both add up."""
    measure: Callable[[Any, ModelOutput, Any, Any], Metrics]
    """Of held-out rows."""
    prepare: Callable[[Any, ResponseLogprobs], Tensor] | None = None
    """What the losses of all micro-batches need to know of the whole batch."""
    needs_entropy_gradient: Callable[[Any], bool] = lambda _: False
    measures_greedy: bool = False
    """Whether `measure` reads `ModelOutput.greedy` in place of the entropy."""
    keeps_values: bool = False
    """Whether the values before the step are given back: they are measured over the whole batch."""


def kind_of(objective: Objective) -> ObjectiveKind:
    """How `objective` is learned."""
    return KINDS[type(objective)]


def _policy(
    rows: PolicyBatch, output: ModelOutput, objective: AlgorithmConfig, _: None
) -> tuple[Tensor, Metrics]:
    assert output.entropy is not None
    return policy_loss(rows, output.values, output.entropy, config=objective)


def _critic(
    rows: CriticBatch, output: ModelOutput, objective: CriticConfig, _: None
) -> tuple[Tensor, Metrics]:
    return critic_loss(rows, output.values, config=objective)


def _sft(rows: SFTBatch, output: ModelOutput, _: SFTObjective, __: None) -> tuple[Tensor, Metrics]:
    losses = negative_log_likelihood(output.values, rows.loss_mask)
    metrics = Metrics.mean("sft/loss", float(losses.sum()), float(rows.loss_mask.sum()))
    return token_mean(losses, rows.loss_mask, num_loss_tokens=rows.num_loss_tokens), metrics


def _measure_sft(rows: SFTBatch, output: ModelOutput, _: SFTObjective, __: None) -> Metrics:
    """`eval/loss` (nats per token), and `eval/token_accuracy` of the likeliest tokens."""
    assert output.greedy is not None
    logprobs, greedy = output.values[rows.loss_mask], output.greedy[rows.loss_mask]
    loss = Metrics.mean("eval/loss", -float(logprobs.sum()), len(logprobs))
    return loss + Metrics.mean("eval/token_accuracy", float(greedy.sum()), len(greedy))


def _pairs(
    rows: PreferenceBatch, output: ModelOutput, objective: PairObjective, _: None
) -> tuple[Tensor, Metrics]:
    return preference_loss(rows, output.values, objective=objective, prefix="preference")


def _measure_pairs(
    rows: PreferenceBatch, output: ModelOutput, objective: PairObjective, _: None
) -> Metrics:
    return preference_loss(rows, output.values, objective=objective, prefix="eval")[1]


def _kto_point(batch: JudgedPreferenceBatch, response_logprobs: ResponseLogprobs) -> Tensor:
    """KTO's z_0 of the whole batch, []: the clamp at 0 does not commute with a mean over ranks."""
    found = response_logprobs(batch.mismatched)
    return kto_reference_point(found, batch.mismatched_ref_logprobs.to(found.device))


def _kto(
    rows: JudgedPreferenceBatch, output: ModelOutput, objective: KTOObjective, point: Tensor
) -> tuple[Tensor, Metrics]:
    return judged_loss(
        rows, output.values, reference_point=point, objective=objective, prefix="preference"
    )


def _measure_kto(
    rows: JudgedPreferenceBatch, output: ModelOutput, objective: KTOObjective, point: Tensor
) -> Metrics:
    return judged_loss(
        rows, output.values, reference_point=point, objective=objective, prefix="eval"
    )[1]


def _bradley_terry(
    rows: PairBatch, output: ModelOutput, objective: RewardLossConfig, _: None
) -> tuple[Tensor, Metrics]:
    chosen, rejected = output.values.view(-1, 2).unbind(dim=1)
    losses = bradley_terry(
        chosen,
        rejected,
        margins=objective.margin_scale * rows.margins,
        centering=objective.centering,
        label_smoothing=objective.label_smoothing,
    )
    loss = row_mean(losses, num_rows=rows.num_pairs)
    return loss, Metrics.mean("reward_model/loss", float(losses.sum()), len(losses))


_PAIRS = ObjectiveKind(loss=_pairs, measure=_measure_pairs)

KINDS: dict[type, ObjectiveKind] = {
    AlgorithmConfig: ObjectiveKind(
        loss=_policy,
        measure=lambda *arguments: _policy(*arguments)[1],
        needs_entropy_gradient=lambda objective: objective.entropy_coef > 0,
    ),
    CriticConfig: ObjectiveKind(loss=_critic, measure=lambda *arguments: _critic(*arguments)[1]),
    SFTObjective: ObjectiveKind(loss=_sft, measure=_measure_sft, measures_greedy=True),
    DPOObjective: _PAIRS,
    RobustDPOObjective: _PAIRS,
    IPOObjective: _PAIRS,
    ORPOObjective: _PAIRS,
    SimPOObjective: _PAIRS,
    KTOObjective: ObjectiveKind(loss=_kto, measure=_measure_kto, prepare=_kto_point),
    RewardLossConfig: ObjectiveKind(
        loss=_bradley_terry,
        measure=lambda *_: Metrics(),  # of all scores together: `preference_evaluation`
        keeps_values=True,
    ),
}
