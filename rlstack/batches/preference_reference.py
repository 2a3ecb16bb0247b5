"""Batches of preferences, with what the reference says of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlstack.batch import Rows, check_tensor
from rlstack.batches.preferences import JudgedBatch, PairBatch, collate_judged
from rlstack.types import JudgedResponse


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferenceBatch(PairBatch):
    """Pairs, and the reference's view of them.

    ref_logprobs: float32 [2N], nats, of whole responses: sums over their loss tokens; 0 for
    objectives without a reference.
    """

    ref_logprobs: Tensor

    def __post_init__(self) -> None:
        PairBatch.__post_init__(self)
        check_tensor(self, "ref_logprobs", (self.num_rows,), torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedPreferenceBatch(JudgedBatch):
    """Judged responses for KTO, and the reference's view of them.

    ref_logprobs: float32 [N], nats, sums over each response's tokens.
    mismatched: N rows of other responses behind these prompts, and mismatched_ref_logprobs float32
    [N]: they estimate the KL to the reference. Both stay as they are when rows are selected.
    """

    ref_logprobs: Tensor
    mismatched: Rows
    mismatched_ref_logprobs: Tensor

    def __post_init__(self) -> None:
        JudgedBatch.__post_init__(self)
        check_tensor(self, "ref_logprobs", (self.num_rows,), torch.float32)

    def select(self, samples: Tensor) -> Self:
        """The same batch with only `samples` (int64 [M], rows), in that order."""
        # dataclass(slots=True) makes a new class, so zero-argument super() would not find it.
        chosen = super(JudgedPreferenceBatch, self).select(samples)
        return replace(chosen, mismatched_ref_logprobs=self.mismatched_ref_logprobs)


def with_reference(batch: PairBatch, ref_logprobs: NDArray[np.float32]) -> PreferenceBatch:
    """The pairs with the reference's logprobs, float32 [N, 2] of chosen and rejected."""
    return PreferenceBatch(
        **_values(batch), ref_logprobs=torch.from_numpy(ref_logprobs).reshape(-1)
    )


def judged_with_reference(
    responses: Sequence[JudgedResponse],
    mismatched: Sequence[JudgedResponse],
    ref_logprobs: NDArray[np.float32],
    *,
    pad_token_id: int,
) -> JudgedPreferenceBatch:
    """Judged responses and their mismatches, with the reference's logprobs of both, float32 [N, 2].

    mismatched: of each response its prompt with another prompt's response.
    """
    reference = torch.from_numpy(ref_logprobs)
    return JudgedPreferenceBatch(
        **_values(collate_judged(responses, pad_token_id=pad_token_id)),
        ref_logprobs=reference[:, 0].contiguous(),
        mismatched=plain_rows(collate_judged(mismatched, pad_token_id=pad_token_id)),
        mismatched_ref_logprobs=reference[:, 1].contiguous(),
    )


def plain_rows(batch: Rows) -> Rows:
    """The rows alone: of pairs, both responses of each in turn."""
    return Rows(
        token_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        loss_mask=batch.loss_mask,
    )


def _values(batch: PairBatch | JudgedBatch) -> dict[str, Any]:
    return {f.name: getattr(batch, f.name) for f in fields(batch)}
