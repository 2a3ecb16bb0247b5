"""Padded [B, T] batches, one frozen type per stage, and how they are made from groups.

Index rule: entry `t` of every per-token tensor describes token `t` given tokens `< t`; where
`loss_mask` is False it is 0. Rows are right-padded: a prompt, its response, then padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rlstack.types import Group


def _check(batch: object, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = getattr(batch, name)
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{type(batch).__name__}.{name}: expected {dtype} {list(shape)}, "
            f"got {tensor.dtype} {list(tensor.shape)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch:
    """What was generated.

    token_ids: int64 [B, T]. attention_mask: bool [B, T], True on real tokens.
    loss_mask: bool [B, T], True on tokens the policy wrote.
    rollout_logprobs: float32 [B, T], nats, recorded by the engine.
    group_ids: int64 [B], equal for rollouts that share a prompt.
    rewards: float32 [B], reward units; NaN where a rollout could not be judged.
    baseline_rewards: float32 [B], reward units, of the greedy response to each row's prompt, NaN
    where it could not be judged; None where no algorithm asked for one.
    """

    token_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    rollout_logprobs: Tensor
    group_ids: Tensor
    rewards: Tensor
    baseline_rewards: Tensor | None = None

    def __post_init__(self) -> None:
        num_rows, num_columns = self.token_ids.shape
        shape = (num_rows, num_columns)
        _check(self, "token_ids", shape, torch.int64)
        _check(self, "attention_mask", shape, torch.bool)
        _check(self, "loss_mask", shape, torch.bool)
        _check(self, "rollout_logprobs", shape, torch.float32)
        _check(self, "group_ids", (num_rows,), torch.int64)
        _check(self, "rewards", (num_rows,), torch.float32)
        if self.baseline_rewards is not None:
            _check(self, "baseline_rewards", (num_rows,), torch.float32)
        if bool((self.loss_mask & ~self.attention_mask).any()):
            raise ValueError(f"{type(self).__name__}: loss_mask is True on padding")

    @property
    def num_rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """int64 [B], real tokens per row."""
        return self.attention_mask.sum(dim=1)

    def select(self, rows: Tensor) -> Self:
        """The same batch with only `rows` (int64 [N]), in that order."""
        per_row = {
            f.name: getattr(self, f.name)[rows]
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **per_row)

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        tensors = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyBatch(TokenBatch):
    """What one optimizer step trains on.

    old_logprobs, ref_logprobs: float32 [B, T], nats; the trainer's before this step's updates, the
    reference's (equal to old_logprobs when the run has no reference).
    advantages: float32 [B, T], reward units.
    correction_weights: float32 [B, T], factor on each token's policy loss for the mismatch between
    engine and trainer; 1 where nothing is corrected.
    num_loss_tokens, num_rollouts: the denominators of the loss, over every rank and micro-batch of
    this optimizer step. kl_coef: weight of the KL to the reference in this step, reward units per
    nat. All three stay as they are when rows are selected.
    """

    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    correction_weights: Tensor
    num_loss_tokens: int
    num_rollouts: int
    kl_coef: float

    def __post_init__(self) -> None:
        # dataclass(slots=True) makes a new class, so zero-argument super() would not find it.
        TokenBatch.__post_init__(self)
        shape = tuple(self.token_ids.shape)
        for name in ("old_logprobs", "ref_logprobs", "advantages", "correction_weights"):
            _check(self, name, shape, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CriticBatch(TokenBatch):
    """What one optimizer step of the critic trains on.

    old_values, returns: float32 [B, T], reward units; entry t of both is of the state before token
    t, and where loss_mask is False it is 0.
    num_loss_tokens, num_rollouts: the denominators of the loss, as in `PolicyBatch`.
    """

    old_values: Tensor
    returns: Tensor
    num_loss_tokens: int
    num_rollouts: int

    def __post_init__(self) -> None:
        TokenBatch.__post_init__(self)
        for name in ("old_values", "returns"):
            _check(self, name, tuple(self.token_ids.shape), torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SFTBatch:
    """Demonstrations: token_ids int64 [B, T], attention_mask and loss_mask bool [B, T].

    num_loss_tokens: the denominator of the loss over the whole optimizer step.
    """

    token_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    num_loss_tokens: int

    @property
    def lengths(self) -> Tensor:
        """int64 [B], real tokens per row."""
        return self.attention_mask.sum(dim=1)


def collate(groups: Sequence[Group], *, pad_token_id: int) -> TokenBatch:
    """Right-pad the rollouts of `groups` into one batch, rows in group order then sample order.

    Raises:
        ValueError: if there is no rollout.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not rollouts:
        raise ValueError("collate: no rollouts")
    lengths = [len(r.prompt.token_ids) + len(r.response_ids) for r in rollouts]
    shape = (len(rollouts), max(lengths))
    token_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.bool_)
    loss_mask = np.zeros(shape, dtype=np.bool_)
    logprobs = np.zeros(shape, dtype=np.float32)
    for row, (rollout, length) in enumerate(zip(rollouts, lengths, strict=True)):
        start = len(rollout.prompt.token_ids)
        token_ids[row, :start] = rollout.prompt.token_ids
        token_ids[row, start:length] = rollout.response_ids
        attention_mask[row, :length] = True
        loss_mask[row, start:length] = rollout.loss_mask
        logprobs[row, start:length] = np.where(rollout.loss_mask, rollout.logprobs, 0.0)
    sizes = [len(group.rollouts) for group in groups]
    group_ids = np.repeat(np.arange(len(groups)), sizes)
    baselines = [group.baseline for group in groups if group.baseline is not None]
    baseline_rewards = None
    if baselines:
        per_group = [np.nan if score.value is None else score.value for score in baselines]
        baseline_rewards = torch.tensor(np.repeat(per_group, sizes), dtype=torch.float32)
    return TokenBatch(
        token_ids=torch.from_numpy(token_ids),
        attention_mask=torch.from_numpy(attention_mask),
        loss_mask=torch.from_numpy(loss_mask),
        rollout_logprobs=torch.from_numpy(logprobs),
        group_ids=torch.from_numpy(group_ids.astype(np.int64)),
        rewards=torch.from_numpy(np.concatenate([g.rewards for g in groups])),
        baseline_rewards=baseline_rewards,
    )
