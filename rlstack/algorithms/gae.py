"""Advantages from a critic: generalised advantage estimation over the loss tokens of every row.

Time runs over loss tokens alone. What a tool or an environment wrote in between belongs to the
state: the successor of an action token is the next action token, however many masked columns lie
between them, so values are carried through those, and what stands on them or on padding reaches
nothing. Nothing here carries a gradient.

`rewards`, `values` float [B, T], reward units; entry t of `values` is the critic's estimate of the
state before token t. `loss_mask` bool [B, T]; a rollout that could not be judged is left out by
leaving its row out of it. `last_values` float [B]: the value of the state after each row's last
token, for rows that were cut rather than ended, and 0 for the others; None: all have ended.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64


def gae(
    rewards: Tensor,
    values: Tensor,
    loss_mask: Tensor,
    *,
    gamma: float | Tensor,
    lam: float | Tensor,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages A and returns A + V, both [B, T], 0 where masked (arXiv 1506.02438, eq. 16).

    A_t = d_t + gamma lam A_t+1 with d_t = r_t + gamma V_t+1 - V_t.

    gamma: the discount of what follows token t, a number, [B, 1] or [B, T] for one a token.
    lam: the estimator's lambda, a number or [B, 1].

    Raises:
        ValueError: if `lam` differs within a row.
    """
    rewards = torch.where(loss_mask, rewards.detach(), 0.0)
    values = torch.where(loss_mask, values.detach(), 0.0)
    gamma = torch.as_tensor(gamma, dtype=values.dtype, device=values.device)
    lam = torch.as_tensor(lam, dtype=values.dtype, device=values.device)
    if lam.ndim and lam.shape[-1] != 1:
        raise ValueError(f"gae: expected lam to be a number or [B, 1], got {list(lam.shape)}")
    last = values.new_zeros(len(values)) if last_values is None else last_values.detach().to(values)
    # The same recursion in S = V + lam A, for which S_t = (1 - lam) V_t + lam (r_t + gamma S_t+1).
    # A masked token hands on the S that follows it, so no successor has to be looked for.
    terms = torch.lerp(values, rewards, lam)
    decay = torch.where(loss_mask, gamma * lam, 1.0)
    mixed = discounted_sum(terms, decay, last)
    following = torch.cat([mixed[:, 1:], last.unsqueeze(1)], dim=1)
    returns = torch.addcmul(rewards, gamma, following).masked_fill_(~loss_mask, 0.0)
    return returns - values, returns


def decoupled_gae(
    rewards: Tensor,
    values: Tensor,
    loss_mask: Tensor,
    *,
    gamma: float | Tensor,
    policy_lam: float | Tensor,
    critic_lam: float | Tensor,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages with the policy's lambda, returns with the critic's (arXiv 2503.01491), [B, T].

    VAPO (arXiv 2504.05118) sets the policy's to `length_adaptive_lambda` with alpha 0.05, and the
    critic's to 1. The other arguments are those of `gae`.
    """
    advantages, _ = gae(
        rewards, values, loss_mask, gamma=gamma, lam=policy_lam, last_values=last_values
    )
    _, returns = gae(
        rewards, values, loss_mask, gamma=gamma, lam=critic_lam, last_values=last_values
    )
    return advantages, returns


def length_adaptive_lambda(loss_mask: Tensor, *, alpha: float) -> Tensor:
    """1 - 1 / (alpha l) for a row of l loss tokens, at least 0: float32 [B, 1] (VAPO, 2504.05118).

    The powers of lambda then add up to alpha l: the longer a row, the further it looks ahead. Rows
    of up to 1 / alpha tokens get 0.
    """
    lengths = loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (1.0 - 1.0 / (alpha * lengths)).clamp(min=0.0)


def token_rewards(
    rewards: Tensor,
    loss_mask: Tensor,
    *,
    kl_penalty: Tensor | None,
    turn_rewards: Tensor | None = None,
) -> Tensor:
    """Rewards per token, [B, T]: minus the KL penalty, plus the rollout's reward.

    Of that reward, `turn_rewards` stand where they are due, on the last tokens of turns (MT-PPO,
    arXiv 2505.11821, and SkyRL), and what is left of it on the row's last token: without turns all
    of it (arXiv 1909.08593, eq. 2). A row's sum does not depend on `turn_rewards`.

    rewards: float [B]; NaN, where a rollout could not be judged, adds nothing. kl_penalty: float
    [B, T], reward units, its coefficient included. turn_rewards: float [B, T], reward units, None:
    no turn has any.
    """
    if kl_penalty is None:
        per_token = rewards.new_zeros(loss_mask.shape)
    else:
        per_token = torch.where(loss_mask, -kl_penalty, 0.0)
    rewarded = loss_mask.any(dim=1) & ~rewards.isnan()
    if turn_rewards is not None:
        due = torch.where(loss_mask & rewarded.unsqueeze(1), turn_rewards, 0.0)
        per_token = per_token + due
        rewards = rewards - due.sum(dim=1)
    last = loss_mask.shape[1] - 1 - loss_mask.to(torch.uint8).flip(1).argmax(dim=1)
    outcome = torch.where(rewarded, rewards, 0.0)
    return per_token.scatter_add_(1, last.unsqueeze(1), outcome.unsqueeze(1))


def discounted_sum(terms: Tensor, decay: Tensor, last: Tensor) -> Tensor:
    """x_t = terms_t + decay_t x_t+1 for every column of [B, T]; x_T, after the last, is `last` [B].

    All chunks of `CHUNK` columns are solved side by side as if nothing followed; their first
    columns are the same recursion with one step a chunk, whose solution completes the others. Sums
    and products only: a decay of 0 or 1, or powers too small to hold, cost no accuracy.
    """
    num_rows, length = terms.shape
    if length == 1:
        return torch.addcmul(terms, decay, last.unsqueeze(1))
    chunk = min(CHUNK, length)
    num_chunks = -(-length // chunk)
    padding = (0, num_chunks * chunk - length)
    # Chunks lie side by side, so that every step of the loop is one contiguous operation.
    shape = (num_rows * num_chunks, chunk)
    solved = pad(terms, padding).view(shape).t().clone(memory_format=torch.contiguous_format)
    powers = pad(decay, padding, value=1.0).view(shape).t()
    powers = powers.clone(memory_format=torch.contiguous_format)
    for step in range(chunk - 2, -1, -1):
        solved[step].addcmul_(powers[step], solved[step + 1])
        powers[step] *= powers[step + 1]
    shape = (num_rows, num_chunks)
    starts = discounted_sum(solved[0].view(shape), powers[0].view(shape), last)
    following = torch.cat([starts[:, 1:], last.unsqueeze(1)], dim=1)
    solved.addcmul_(powers, following.view(-1))
    return solved.t().reshape(num_rows, -1)[:, :length]
