"""All processes of the reward models behind one call."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlstack.data.microbatches import plan_microbatches
from workers.groups.ranks import FrozenGroup

if TYPE_CHECKING:
    from workers.ranks.reward_model import RewardModelRank  # noqa: F401  (named as text below)


class RewardModelGroup(FrozenGroup["RewardModelRank"]):
    """All ranks; a call is shared between them."""

    async def score(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Raw scores, float64 [M, N], of M models and N responses, in order.

        `rewards.models.preference_model.combine` and its scales make one reward of the M.
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
                self.call_one(
                    rank,
                    lambda model, asked, answered: model.score(asked, answered),
                    [prompts[row] for row in rows],
                    [responses[row] for row in rows],
                )
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
    plan = plan_microbatches(counted, data_parallel=used, max_tokens=sum(counted))
    return [rows for ((rows,),) in zip(plan, strict=True)] + [()] * (num_ranks - used)
