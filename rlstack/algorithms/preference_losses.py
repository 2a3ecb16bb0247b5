"""Losses of pairs (or single judged responses) for reward models and direct preference learning.

Logprobs of sequences are float [N], nats, made by `sequence_logprobs`; each function says whether
it wants sums or means over the response's tokens. Results are per row; `row_mean` reduces.
Implicit rewards are detached: they are for logging.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, slots=True, eq=False)
class PreferenceLoss:
    """Per pair, all [N]: the loss, and the implicit rewards of both responses (nats times beta)."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def sequence_logprobs(logprobs: Tensor, loss_mask: Tensor, *, average: bool) -> Tensor:
    """Sum, or mean with `average`, of the logprobs of a row's loss tokens, float [N].

    logprobs: float [N, T], nats. loss_mask: bool [N, T]. A row without loss tokens gives 0.
    """
    sums = torch.where(loss_mask, logprobs, 0.0).sum(dim=1)
    return sums / loss_mask.sum(dim=1).clamp(min=1) if average else sums


def row_mean(losses: Tensor, *, num_rows: int) -> Tensor:
    """Mean over the num_rows pairs (or judged responses) of the whole optimizer step.

    losses: float [N], those of this rank and micro-batch; the results add up to the step's loss.
    """
    return losses.sum() / max(num_rows, 1)


def _smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid, with `label_smoothing` of the weight on the opposite label."""
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def bradley_terry(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    margins: Tensor | None,
    centering: float,
    label_smoothing: float,
) -> Tensor:
    """Loss of a reward model: -log sigmoid(r_c - r_r - margin) + centering (r_c + r_r)^2, [N].

    Sources: Llama 2 (arXiv 2307.09288, equation 2) for the margin; arXiv 2312.09244 for the
    centering, 0.01 there, which holds the free constant of the scores near 0. `label_smoothing` is
    the assumed share of wrong labels. Scores and margins: float [N], reward units.
    """
    margin = 0.0 if margins is None else margins
    loss = _smoothed(chosen_scores - rejected_scores - margin, label_smoothing)
    return loss + centering * (chosen_scores + rejected_scores).square()


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> PreferenceLoss:
    """-log sigmoid(h), h = beta ((chosen - ref_chosen) - (rejected - ref_rejected)).

    Source: DPO (arXiv 2305.18290, equation 7); with `label_smoothing` the conservative DPO of
    Mitchell (2023), which has its optimum at a finite h. Logprobs are sums over tokens.
    """
    rewards = _implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    return _preference(_smoothed(rewards[0] - rewards[1], label_smoothing), *rewards)


def robust_dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> PreferenceLoss:
    """DPO that is unbiased if a share `label_smoothing` of the labels is flipped.

    Source: robust DPO (arXiv 2403.00409): ((1 - e) l(h) - e l(-h)) / (1 - 2 e) with
    l(h) = -log sigmoid(h). Logprobs are sums over tokens.

    Raises:
        ValueError: unless 0 <= label_smoothing < 0.5.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"robust_dpo: label_smoothing={label_smoothing} must be within [0, 0.5)")
    rewards = _implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    logits = rewards[0] - rewards[1]
    loss = (1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    return _preference(-loss / (1 - 2 * label_smoothing), *rewards)


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    length_normalised: bool = True,
) -> PreferenceLoss:
    """(d - 1 / (2 beta))^2 with d the difference of the two log-ratios to the reference.

    Source: IPO (arXiv 2310.12036, equation 17, tau there is beta here). Log-ratios are divided by
    the response's length, as the authors told TRL they did; the paper's plain sums otherwise.
    Logprobs are sums over tokens; lengths: int64 [N], loss tokens.
    """
    chosen_ratio, rejected_ratio = chosen - ref_chosen, rejected - ref_rejected
    if length_normalised:
        chosen_ratio = chosen_ratio / chosen_lengths.clamp(min=1)
        rejected_ratio = rejected_ratio / rejected_lengths.clamp(min=1)
    loss = (chosen_ratio - rejected_ratio - 1 / (2 * beta)).square()
    return _preference(loss, beta * chosen_ratio, beta * rejected_ratio)


def kto_reference_point(mismatched: Tensor, ref_mismatched: Tensor) -> Tensor:
    """z_0 of KTO: an estimate of KL(policy || reference), never negative, without gradient; [].

    Source: KTO (arXiv 2402.01306, section 4.1). Logprob sums [M] of every response of the optimizer
    step behind the prompt of another row (rolling responses by one is enough); all ranks' rows
    together, since the clamp at 0 does not commute with their mean.
    """
    return (mismatched - ref_mismatched).detach().mean().clamp(min=0)


def kto(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    *,
    reference_point: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> tuple[Tensor, Tensor]:
    """Losses and implicit rewards of single responses that were judged good or bad, both [N].

    Source: KTO (arXiv 2402.01306, equations 7 and 8): w_d (1 - sigmoid(beta (rho - z))) for
    desirable ones, w_u (1 - sigmoid(beta (z - rho))) for the others, rho = logprob - reference.
    Keep w_d n_desirable / (w_u n_undesirable) within [1, 4/3].

    logprobs, ref_logprobs: sums over tokens. desirable: bool [N]. reference_point: float [], from
    `kto_reference_point`; no gradient goes through it.
    """
    rewards = beta * (logprobs - ref_logprobs)
    gain = rewards - beta * reference_point.detach()
    # sigmoid(-x) and not 1 - sigmoid(x), which loses all digits for large x.
    good = desirable_weight * torch.sigmoid(-gain)
    bad = undesirable_weight * torch.sigmoid(gain)
    return torch.where(desirable, good, bad), rewards.detach()


def orpo(chosen: Tensor, rejected: Tensor, *, weight: float) -> PreferenceLoss:
    """NLL(chosen) - weight log sigmoid(log odds(chosen) - log odds(rejected)); no reference.

    Source: ORPO (arXiv 2403.07691, equations 6 and 7), weight is lambda, 0.1 there. odds = p / (1 -
    p) with p = exp(logprob). Logprobs are means over tokens; rewards are weight * logprob.
    """
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    loss = -chosen - weight * logsigmoid(log_odds)
    return _preference(loss, weight * chosen, weight * rejected)


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> PreferenceLoss:
    """-log sigmoid(beta (chosen - rejected) - gamma); no reference.

    Source: SimPO (arXiv 2405.14734, equation 6). Logprobs are means over tokens. gamma is the
    margin itself, in units of beta * nats; some peers take gamma / beta instead.
    """
    rewards = beta * chosen, beta * rejected
    return _preference(-logsigmoid(rewards[0] - rewards[1] - gamma), *rewards)


def _implicit_rewards(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    return beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)


def _preference(loss: Tensor, chosen: Tensor, rejected: Tensor) -> PreferenceLoss:
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p <= 0, accurate at both ends.

    Constant, with gradient 0, where p is so close to 1 that 1 - p is below the rounding error.
    """
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return logprobs - (-torch.expm1(logprobs)).log()
