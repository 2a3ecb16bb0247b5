"""Padded [B, T] batches, one frozen type per stage, and how they are made from groups.

Index rule: entry `t` of every per-token tensor describes token `t` given tokens `< t`; where
`loss_mask` is False it is 0. Rows are right-padded: a prompt, its response, then padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlstack.types import FinishReason, Group


def check_tensor(batch: object, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise ValueError, naming batch and tensor, if it is not as it must be."""
    tensor = getattr(batch, name)
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{type(batch).__name__}.{name}: expected {dtype} {list(shape)}, "
            f"got {tensor.dtype} {list(tensor.shape)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """What every batch has.

    token_ids: int64 [B, T]. attention_mask: bool [B, T], True on real tokens.
    loss_mask: bool [B, T], True on tokens that train.
    """

    token_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor

    def __post_init__(self) -> None:
        num_rows, num_tokens = self.token_ids.shape
        check_tensor(self, "token_ids", (num_rows, num_tokens), torch.int64)
        check_tensor(self, "attention_mask", (num_rows, num_tokens), torch.bool)
        check_tensor(self, "loss_mask", (num_rows, num_tokens), torch.bool)
        if bool((self.loss_mask & ~self.attention_mask).any()):
            raise ValueError(f"{type(self).__name__}: loss_mask is True on padding")

    @property
    def num_rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """int64 [B], real tokens per row."""
        return self.attention_mask.sum(dim=1)

    @property
    def sample_lengths(self) -> Tensor:
        """int64 [N], real tokens of each sample that `select` takes: here a row."""
        return self.lengths

    def select(self, samples: Tensor) -> Self:
        """The same batch with only `samples` (int64 [M], here rows), in that order."""
        return self._map(lambda tensor: tensor[samples])

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with `change` made to every tensor; numbers stay as they are."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: change(v) for n, v in values.items() if isinstance(v, Tensor)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch(Rows):
    """What was generated.

    token_ids: int64 [B, T]. attention_mask: bool [B, T], True on real tokens.
    loss_mask: bool [B, T], True on tokens the policy wrote.
    rollout_logprobs: float32 [B, T], nats, recorded by the engine.
    group_ids: int64 [B], equal for rollouts that share a prompt.
    rewards: float32 [B], reward units; NaN where a rollout could not be judged.
    baseline_rewards: float32 [B], reward units, of the greedy response to each row's prompt, NaN
    where it could not be judged; None where no algorithm asked for one.
    turn_rewards: float32 [B, T], reward units, the part of `rewards` that is due at the last token
    of a turn; what `rewards` has beyond their sum is due at the last token of the row, so that a
    row's total is `rewards` whatever lies here. None where no rollout was given any.
    truncated: bool [B], True where the response was cut for its length; None: all have ended.
    """

    rollout_logprobs: Tensor
    group_ids: Tensor
    rewards: Tensor
    baseline_rewards: Tensor | None = None
    turn_rewards: Tensor | None = None
    truncated: Tensor | None = None

    def __post_init__(self) -> None:
        # dataclass(slots=True) makes a new class, so zero-argument super() would not find it.
        Rows.__post_init__(self)
        shape, num_rows = tuple(self.token_ids.shape), self.num_rows
        check_tensor(self, "rollout_logprobs", shape, torch.float32)
        check_tensor(self, "group_ids", (num_rows,), torch.int64)
        check_tensor(self, "rewards", (num_rows,), torch.float32)
        if self.baseline_rewards is not None:
            check_tensor(self, "baseline_rewards", (num_rows,), torch.float32)
        if self.turn_rewards is not None:
            check_tensor(self, "turn_rewards", shape, torch.float32)
        if self.truncated is not None:
            check_tensor(self, "truncated", (num_rows,), torch.bool)


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
        TokenBatch.__post_init__(self)
        shape = tuple(self.token_ids.shape)
        for name in ("old_logprobs", "ref_logprobs", "advantages", "correction_weights"):
            check_tensor(self, name, shape, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CriticBatch(TokenBatch):
    """What one optimizer step of the critic trains on.

    old_values, returns: float32 [B, T], reward units; entry t of both is of the state before token
    t, and where loss_mask is False it is 0.
    num_loss_tokens: the denominator of the loss, as in `PolicyBatch`.
    """

    old_values: Tensor
    returns: Tensor
    num_loss_tokens: int

    def __post_init__(self) -> None:
        TokenBatch.__post_init__(self)
        for name in ("old_values", "returns"):
            check_tensor(self, name, tuple(self.token_ids.shape), torch.float32)


def collate(groups: Sequence[Group], *, pad_token_id: int) -> TokenBatch:
    """Right-pad the rollouts of `groups` into one batch, rows in group order then sample order.

    Raises:
        ValueError: if there is no rollout.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not rollouts:
        raise ValueError("collate: no rollouts")
    rows = padded_rows(
        [response_row(r.prompt.token_ids, r.response_ids, r.loss_mask) for r in rollouts],
        pad_token_id=pad_token_id,
    )
    recorded = np.concatenate([r.logprobs[r.loss_mask] for r in rollouts]).astype(np.float32)
    logprobs = torch.zeros(rows.loss_mask.shape)
    sizes = [len(group.rollouts) for group in groups]
    group_ids = np.repeat(np.arange(len(groups)), sizes)
    baselines = [group.baseline for group in groups if group.baseline is not None]
    baseline_rewards = None
    if baselines:
        per_group = [np.nan if score.value is None else score.value for score in baselines]
        baseline_rewards = torch.tensor(np.repeat(per_group, sizes), dtype=torch.float32)
    return TokenBatch(
        token_ids=rows.token_ids,
        attention_mask=rows.attention_mask,
        loss_mask=rows.loss_mask,
        rollout_logprobs=logprobs.masked_scatter(rows.loss_mask, torch.from_numpy(recorded)),
        group_ids=torch.from_numpy(group_ids.astype(np.int64)),
        rewards=torch.from_numpy(np.concatenate([g.rewards for g in groups])),
        baseline_rewards=baseline_rewards,
        turn_rewards=_turn_rewards(groups, rows.loss_mask.numpy()),
        truncated=torch.tensor([r.finish_reason is FinishReason.LENGTH for r in rollouts]),
    )


def _turn_rewards(groups: Sequence[Group], loss_mask: NDArray[np.bool_]) -> Tensor | None:
    """Float32 [B, T]: what each turn was given, on its last token; None if no turn was."""
    pairs = [pair for group in groups for pair in zip(group.rollouts, group.scores, strict=True)]
    if not any(score.turn_rewards for _, score in pairs):
        return None
    per_token = np.zeros(loss_mask.shape, dtype=np.float32)
    for row, (rollout, score) in enumerate(pairs):
        if score.turn_rewards:
            ends = np.array([turn.end for turn in rollout.turns], dtype=np.int64)
            np.add.at(per_token[row], len(rollout.prompt.token_ids) + ends - 1, score.turn_rewards)
    # Of an action without tokens nothing can be placed: it stays in what is due at the end.
    return torch.from_numpy(np.where(loss_mask, per_token, np.float32(0.0)))


def response_row(
    prompt_ids: NDArray[np.int64],
    response_ids: NDArray[np.int64],
    mask: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens of both, int64 [L], and bool [L]: True on the response, or where `mask` [R] is."""
    own = np.ones(len(response_ids), dtype=np.bool_) if mask is None else mask
    return (
        np.concatenate((prompt_ids, response_ids)),
        np.concatenate((np.zeros(len(prompt_ids), dtype=np.bool_), own)),
    )


def padded_rows(
    rows: Sequence[tuple[NDArray[np.int64], NDArray[np.bool_]]], *, pad_token_id: int
) -> Rows:
    """Rows of (token_ids, loss_mask), right-padded."""
    if not rows:
        raise ValueError("nothing to make a batch of")
    shape = (len(rows), max(len(token_ids) for token_ids, _ in rows))
    padded = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.bool_)
    loss_mask = np.zeros(shape, dtype=np.bool_)
    for index, (token_ids, trains) in enumerate(rows):
        padded[index, : len(token_ids)] = token_ids
        attention_mask[index, : len(token_ids)] = True
        loss_mask[index, : len(token_ids)] = trains
    return Rows(
        token_ids=torch.from_numpy(padded),
        attention_mask=torch.from_numpy(attention_mask),
        loss_mask=torch.from_numpy(loss_mask),
    )
