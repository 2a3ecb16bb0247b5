"""Groups of trainer and reference ranks behind one call each."""

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from rlstack.batch import PolicyBatch, SFTBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.metrics import Metrics, merge
from rlstack.planning.phases import Transport
from workers.specs import SendReport


class PolicyGroup:
    """All ranks of the policy trainer; every call runs on all of them at the same time."""

    def __init__(self, ranks: Sequence[ActorHandle]) -> None:
        self.ranks = ranks

    async def start(self) -> None:
        """Let the ranks meet and load the model."""
        address, port = await self.ranks[0].rendezvous.remote()
        await asyncio.gather(*(r.start.remote(address=address, port=port) for r in self.ranks))

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.PolicyTrainer`."""
        shared = ray.put(batch)
        return await _scatter(batch, [rank.logprobs.remote(shared) for rank in self.ranks])

    async def update(self, batch: PolicyBatch, algorithm: AlgorithmConfig) -> Metrics:
        """See `rlstack.protocols.PolicyTrainer`."""
        shared = ray.put(batch)
        calls = [rank.update.remote(shared, algorithm) for rank in self.ranks]
        return merge(await asyncio.gather(*calls))

    async def update_supervised(self, batch: SFTBatch) -> Metrics:
        """One optimizer step on demonstrations."""
        shared = ray.put(batch)
        calls = [rank.update_supervised.remote(shared) for rank in self.ranks]
        return merge(await asyncio.gather(*calls))

    async def evaluate_supervised(self, batch: SFTBatch) -> Metrics:
        """Loss and accuracy of demonstrations that are not learned from."""
        shared = ray.put(batch)
        calls = [rank.evaluate_supervised.remote(shared) for rank in self.ranks]
        return merge(await asyncio.gather(*calls))

    async def save(self, directory: Path) -> None:
        """See `rlstack.protocols.PolicyTrainer`."""
        await asyncio.gather(*(rank.save.remote(directory) for rank in self.ranks))

    async def load(self, directory: Path) -> None:
        """See `rlstack.protocols.PolicyTrainer`."""
        await asyncio.gather(*(rank.load.remote(directory) for rank in self.ranks))

    async def export(self, directory: Path) -> None:
        """See `rlstack.protocols.PolicyTrainer`."""
        await asyncio.gather(*(rank.export.remote(directory) for rank in self.ranks))

    async def connect(
        self, transport: Transport, *, engines: Sequence[ActorHandle], workers_per_engine: int
    ) -> None:
        """Let the trainer meet the engines it will send weights to."""
        calls = [
            rank.connect.remote(
                transport, engines=list(engines), workers_per_engine=workers_per_engine
            )
            for rank in self.ranks
        ]
        await asyncio.gather(*calls)

    async def send_weights(self) -> SendReport:
        """Put the weights into every engine; what was sent."""
        reports = await asyncio.gather(*(rank.send_weights.remote() for rank in self.ranks))
        return reports[0]

    async def visible_devices(self) -> list[str]:
        """The GPU of each rank, as CUDA_VISIBLE_DEVICES names it on its node."""
        return await asyncio.gather(*(rank.visible_device.remote() for rank in self.ranks))

    async def offload(self) -> None:
        """Free device memory."""
        await asyncio.gather(*(rank.offload.remote() for rank in self.ranks))

    async def reload(self) -> None:
        """Undo `offload`."""
        await asyncio.gather(*(rank.reload.remote() for rank in self.ranks))


class ReferenceGroup:
    """All ranks of the frozen reference."""

    def __init__(self, ranks: Sequence[ActorHandle]) -> None:
        self.ranks = ranks

    async def start(self) -> None:
        """Load the model in every rank."""
        await asyncio.gather(*(rank.start.remote() for rank in self.ranks))

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.Reference`."""
        shared = ray.put(batch)
        return await _scatter(batch, [rank.logprobs.remote(shared) for rank in self.ranks])


async def _scatter(batch: TokenBatch, calls: Sequence[Awaitable[tuple[Tensor, Tensor]]]) -> Tensor:
    result = torch.zeros(batch.token_ids.shape)
    for rows, values in await asyncio.gather(*calls):
        result[rows] = values
    return result
