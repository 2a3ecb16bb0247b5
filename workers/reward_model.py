"""Reward models as a Ray worker group: every rank takes a share of rows.

It holds the ensemble, or under ZeRO-3 a share of it.

The models and their batches are `rewards.sequence_scorer`'s; this is who holds them on devices.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rewards.sequence_scorer import SequenceScorer, SpecialTokens
from rlstack.data.packing import plan_microbatches
from rlstack.quick_imports import quick_imports
from workers.group import FrozenGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelSpec:
    """What every rank of the group is told; fields as in `SequenceScorer`."""

    checkpoints: tuple[str, ...]
    max_tokens: int
    max_tokens_per_batch: int
    dtype: str
    special_tokens: SpecialTokens = "end"
    zero_stage: Literal[0, 3] = 0
    device: str = "cpu"
    num_ranks: int = 1
    threads: int = 1


class RewardModelActor:
    """One process of the group."""

    def __init__(self, spec: RewardModelSpec, *, rank: int) -> None:
        self.spec = spec
        self.rank = rank
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


class ShardedRewardModelActor(RewardModelActor):
    """One process of a group of which none holds a model whole: DeepSpeed's ZeRO-3."""

    def __init__(self, spec: RewardModelSpec, *, rank: int) -> None:
        with quick_imports():
            from workers.meeting import Meeting

        super().__init__(spec, rank=rank)
        self.meeting = Meeting(rank=rank, num_ranks=spec.num_ranks, device=spec.device)

    def rendezvous(self) -> tuple[str, int]:
        """See `Meeting`."""
        return self.meeting.rendezvous()

    def join(self, *, address: str, port: int) -> None:
        """See `Meeting`."""
        self.meeting.join(address=address, port=port)

    def start(self) -> None:
        """Load a share of the models, once all ranks have joined.

        Raises:
            RewardError: if a checkpoint cannot serve.
        """
        import deepspeed
        from transformers.integrations import HfDeepSpeedConfig

        from workers.deepspeed_config import frozen_config

        config = frozen_config(self.spec.dtype)
        # Must outlive loading: from_pretrained shards each weight as it is read.
        self._zero3_loading = HfDeepSpeedConfig(config)
        super().start()
        for model in self.models:
            model.share_model(
                lambda module: deepspeed.initialize(model=module, config=config)[0],
                self._most_passes,
            )

    def _most_passes(self, own: int) -> int:
        """Of any rank: in each they gather the parameters together."""
        import torch

        most = torch.tensor(own, device="cpu" if self.spec.device == "cpu" else "cuda:0")
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most)


class RewardModelGroup(FrozenGroup):
    """All ranks; a call is shared between them."""

    async def score(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Raw scores, float64 [M, N], of M models and N responses, in order.

        `rewards.preference_model.combine` and its scales make one reward of the M.
        """
        shares = share_rows(
            [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], len(self.ranks)
        )
        if not responses:
            return np.zeros((0, 0))
        busy = [
            (rank, rows)
            for rank, rows in zip(self.ranks, shares, strict=True)
            if rows or self.sharded
        ]
        found = await asyncio.gather(
            *(
                rank.score.remote([prompts[row] for row in rows], [responses[row] for row in rows])
                for rank, rows in busy
            )
        )
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
