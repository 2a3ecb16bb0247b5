"""Reward models as a Ray worker group: every rank holds the ensemble and takes a share of rows.

The models and their batches are `rewards.sequence_scorer`'s; this is who holds them on devices.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.sequence_scorer import SequenceScorer, SpecialTokens
from rlstack.data.packing import plan_microbatches
from workers.group import RankGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelSpec:
    """What every rank of the group is told; fields as in `SequenceScorer`."""

    checkpoints: tuple[str, ...]
    max_tokens: int
    max_tokens_per_batch: int
    dtype: str
    special_tokens: SpecialTokens = "end"
    device: str = "cpu"
    threads: int = 1


class RewardModelActor:
    """One process of the group."""

    def __init__(self, spec: RewardModelSpec) -> None:
        self.spec = spec
        self.models: list[SequenceScorer] = []

    def start(self) -> None:
        """Load the models.

        Raises:
            RewardError: if a checkpoint cannot serve.
        """
        import torch

        torch.set_num_threads(self.spec.threads)
        self.models = [
            SequenceScorer(
                checkpoint,
                max_tokens=self.spec.max_tokens,
                max_tokens_per_batch=self.spec.max_tokens_per_batch,
                special_tokens=self.spec.special_tokens,
                device="cpu" if self.spec.device == "cpu" else "cuda:0",
                dtype=self.spec.dtype,
            )
            for checkpoint in self.spec.checkpoints
        ]

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Raw scores, float64 [M, N], of M models and N responses."""
        scores = [model.score(model.token_ids(prompts, responses)) for model in self.models]
        return np.array(scores).reshape(len(self.models), len(responses))


class RewardModelGroup(RankGroup):
    """All ranks; a call is shared between them."""

    async def start(self) -> None:
        """Load the models in every rank."""
        await self.all("start")

    async def score(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Raw scores, float64 [M, N], of M models and N responses, in order.

        `rewards.preference_model.combine` and its scales make one reward of the M.
        """
        shares = share_rows(
            [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], len(self.ranks)
        )
        busy = [(rank, rows) for rank, rows in zip(self.ranks, shares, strict=True) if rows]
        found = await asyncio.gather(
            *(
                rank.score.remote([prompts[row] for row in rows], [responses[row] for row in rows])
                for rank, rows in busy
            )
        )
        if not busy:
            return np.zeros((0, 0))
        scores = np.empty((len(found[0]), len(responses)))
        for (_, rows), values in zip(busy, found, strict=True):
            scores[:, list(rows)] = values
        return scores


def share_rows(lengths: Sequence[int], num_ranks: int) -> list[tuple[int, ...]]:
    """Rows of each rank, with about the same total length; a rank may get none."""
    used = min(num_ranks, len(lengths))
    if used == 0:
        return [()] * num_ranks
    counted = [max(length, 1) for length in lengths]
    plan = plan_microbatches(counted, num_ranks=used, max_tokens=sum(counted))
    return [rows for ((rows,),) in zip(plan, strict=True)] + [()] * (num_ranks - used)
