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

from rlstack.types import Demonstration, Group, JudgedResponse, PreferencePair


def _check(batch: object, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
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
        _check(self, "token_ids", (num_rows, num_tokens), torch.int64)
        _check(self, "attention_mask", (num_rows, num_tokens), torch.bool)
        _check(self, "loss_mask", (num_rows, num_tokens), torch.bool)
        if bool((self.loss_mask & ~self.attention_mask).any()):
            raise ValueError(f"{type(self).__name__}: loss_mask is True on padding")

    @property
    def num_rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """int64 [B], real tokens per row."""
        return self.attention_mask.sum(dim=1)

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with `change` made to every tensor; numbers stay as they are."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: change(v) for n, v in values.items() if isinstance(v, Tensor)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectableRows(Rows):
    """Rows that stand by themselves: every tensor has one entry for each."""

    def select(self, rows: Tensor) -> Self:
        """The same batch with only `rows` (int64 [N]), in that order."""
        return self._map(lambda tensor: tensor[rows])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch(SelectableRows):
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
    """

    rollout_logprobs: Tensor
    group_ids: Tensor
    rewards: Tensor
    baseline_rewards: Tensor | None = None
    turn_rewards: Tensor | None = None

    def __post_init__(self) -> None:
        # dataclass(slots=True) makes a new class, so zero-argument super() would not find it.
        Rows.__post_init__(self)
        shape, num_rows = tuple(self.token_ids.shape), self.num_rows
        _check(self, "rollout_logprobs", shape, torch.float32)
        _check(self, "group_ids", (num_rows,), torch.int64)
        _check(self, "rewards", (num_rows,), torch.float32)
        if self.baseline_rewards is not None:
            _check(self, "baseline_rewards", (num_rows,), torch.float32)
        if self.turn_rewards is not None:
            _check(self, "turn_rewards", shape, torch.float32)


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
            _check(self, name, shape, torch.float32)


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
            _check(self, name, tuple(self.token_ids.shape), torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SFTBatch(SelectableRows):
    """Demonstrations.

    num_loss_tokens: the denominator of the loss over the whole optimizer step.
    """

    num_loss_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairBatch(Rows):
    """Preference pairs: rows 2i and 2i + 1 are the chosen and the rejected response of pair i.

    loss_mask: True on the responses' tokens, the end of sequence included, but not on what an
    environment said in between.
    margins: float32 [N], by how much chosen is better, in the units of the data; 0 where it is not
    said. features: float32 [2N, F], scored attributes of each response; F may be 0.
    num_pairs: the denominator of the loss, over every rank and micro-batch of this optimizer step;
    it stays as it is when pairs are selected. data_sources: of each pair, N.
    """

    margins: Tensor
    features: Tensor
    num_pairs: int
    data_sources: tuple[str, ...]

    def __post_init__(self) -> None:
        Rows.__post_init__(self)
        if self.num_rows % 2:
            raise ValueError(f"PairBatch: {self.num_rows} rows; expected two for each pair")
        _check(self, "margins", (self.num_rows // 2,), torch.float32)
        _check(self, "features", (self.num_rows, self.features.shape[-1]), torch.float32)

    @property
    def pair_lengths(self) -> Tensor:
        """int64 [N], real tokens of both rows of each pair."""
        return self.lengths.view(-1, 2).sum(dim=1)

    def select_pairs(self, pairs: Tensor) -> Self:
        """The same batch with only `pairs` (int64 [M], indices of pairs), in that order."""
        rows = torch.stack((2 * pairs, 2 * pairs + 1), dim=1).flatten()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
        # A tensor has an entry for each row, or one for each pair.
        chosen = {n: t[rows] if len(t) == self.num_rows else t[pairs] for n, t in tensors.items()}
        sources = tuple(self.data_sources[pair] for pair in pairs.tolist())
        return replace(self, **chosen, data_sources=sources)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedBatch(SelectableRows):
    """Single responses that were judged good or bad (KTO).

    loss_mask: True on the responses' tokens, the end of sequence included. desirable: bool [N].
    num_responses: the denominator of the loss, over every rank and micro-batch of this optimizer
    step; it stays as it is when rows are selected.
    """

    desirable: Tensor
    num_responses: int

    def __post_init__(self) -> None:
        Rows.__post_init__(self)
        _check(self, "desirable", (self.num_rows,), torch.bool)


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
        turn_rewards=_turn_rewards(groups, loss_mask),
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


def collate_pairs(pairs: Sequence[PreferencePair], *, pad_token_id: int) -> PairBatch:
    """Right-pad pairs into one batch: of each, the chosen response, then the rejected one.

    Raises:
        ValueError: if there is no pair, or pairs have different numbers of features.
    """
    sizes = {len(pair.chosen_features) for pair in pairs}
    if len(sizes) > 1:
        raise ValueError(f"collate_pairs: pairs with {sorted(sizes)} features in one batch")
    rows = _padded(
        [
            _response_row(pair.prompt_ids, response, mask)
            for pair in pairs
            for response, mask in (
                (pair.chosen_ids, pair.chosen_mask),
                (pair.rejected_ids, pair.rejected_mask),
            )
        ],
        pad_token_id=pad_token_id,
    )
    features = [f for pair in pairs for f in (pair.chosen_features, pair.rejected_features)]
    margins = [0.0 if pair.margin is None else pair.margin for pair in pairs]
    return PairBatch(
        token_ids=rows.token_ids,
        attention_mask=rows.attention_mask,
        loss_mask=rows.loss_mask,
        margins=torch.tensor(margins, dtype=torch.float32),
        features=torch.tensor(features, dtype=torch.float32),
        num_pairs=len(pairs),
        data_sources=tuple(pair.data_source for pair in pairs),
    )


def collate_judged(responses: Sequence[JudgedResponse], *, pad_token_id: int) -> JudgedBatch:
    """Right-pad judged responses, behind their prompts, into one batch.

    Raises:
        ValueError: if there is none.
    """
    rows = _padded(
        [_response_row(r.prompt_ids, r.response_ids) for r in responses],
        pad_token_id=pad_token_id,
    )
    return JudgedBatch(
        token_ids=rows.token_ids,
        attention_mask=rows.attention_mask,
        loss_mask=rows.loss_mask,
        desirable=torch.tensor([r.desirable for r in responses], dtype=torch.bool),
        num_responses=len(responses),
    )


def collate_demonstrations(
    demonstrations: Sequence[Demonstration], *, pad_token_id: int
) -> SFTBatch:
    """Right-pad demonstrations into one batch.

    Raises:
        ValueError: if there is none.
    """
    rows = _padded([(d.token_ids, d.loss_mask) for d in demonstrations], pad_token_id=pad_token_id)
    return SFTBatch(
        token_ids=rows.token_ids,
        attention_mask=rows.attention_mask,
        loss_mask=rows.loss_mask,
        num_loss_tokens=int(rows.loss_mask.sum()),
    )


def _response_row(
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


def _padded(
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
