"""Groups of ranks behind one call each."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from rlstack.algorithms.preference_evaluation import PairScores, pair_metrics
from rlstack.batch import CriticBatch, PairBatch, PolicyBatch, Rows, SFTBatch, TokenBatch
from rlstack.batches.preference_reference import JudgedPreferenceBatch, PreferenceBatch, plain_rows
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.critic import CriticConfig
from rlstack.config.preference import KTOObjective, PairObjective
from rlstack.config.reward_model import RewardLossConfig
from rlstack.metrics import Metrics, merge
from rlstack.planning.phases import Transport
from workers.specs import SendReport


class RankGroup:
    """Ranks of one role; every call runs on all of them at the same time.

    turn: held by whoever uses the devices, where several roles share them.
    """

    def __init__(self, ranks: Sequence[ActorHandle], *, turn: asyncio.Lock | None = None) -> None:
        self.ranks = ranks
        self.turn = turn or asyncio.Lock()

    async def all(self, method: str, *arguments: Any, **named: Any) -> list[Any]:
        """What `method` returns on each rank."""
        calls = [getattr(rank, method).remote(*arguments, **named) for rank in self.ranks]
        return await asyncio.gather(*calls)

    async def meet(self) -> None:
        """Let the ranks meet, before they start."""
        address, port = await self.ranks[0].rendezvous.remote()
        await self.all("join", address=address, port=port)

    async def rows(self, method: str, batch: TokenBatch) -> Tensor:
        """Float32 [B, T], put together from what each rank says of its rows of `batch`."""
        result = torch.zeros(batch.token_ids.shape)
        for rows, values in await self.all(method, ray.put(batch)):
            result[rows] = values
        return result


class FrozenGroup(RankGroup):
    """Ranks of a model that is not trained: whole on each of them, or shared out over them.

    sharded: then every rank takes part in every call.
    """

    def __init__(
        self, ranks: Sequence[ActorHandle], *, turn: asyncio.Lock | None = None, sharded: bool
    ) -> None:
        super().__init__(ranks, turn=turn)
        self.sharded = sharded

    async def start(self) -> None:
        """Load the model in every rank, or each rank's share."""
        if self.sharded:
            await self.meet()
        await self.all("start")


class TrainerGroup(RankGroup):
    """All ranks of a trainer; see `rlstack.protocols.Trained` for what is said in common."""

    async def start(self) -> None:
        """Let the ranks meet and load the model."""
        await self.meet()
        await self.all("start")

    async def save(self, directory: Path) -> None:
        """Weights, optimizer, scheduler and RNG of every rank."""
        await self.all("save", directory)

    async def load(self, directory: Path) -> None:
        """Restore what `save` wrote, exactly."""
        await self.all("load", directory)

    async def export(self, directory: Path) -> None:
        """Weights, configuration and tokenizer in Hugging Face format."""
        await self.all("export", directory)

    async def merge_adapters(self) -> None:
        """Merge the adapters into the weights below them and go on with fresh ones.

        The optimizer is reset too. Engines must be sent the weights anew.
        """
        await self.all("merge_adapters")

    async def reset_optimizer(self) -> None:
        """Forget the moments of the gradients; the learning rate goes on as scheduled."""
        await self.all("reset_optimizer")

    async def visible_devices(self) -> list[str]:
        """The GPU of each rank, as CUDA_VISIBLE_DEVICES names it on its node."""
        return await self.all("visible_device")

    async def offload(self) -> None:
        """Free device memory."""
        await self.all("offload")

    async def reload(self) -> None:
        """Undo `offload`."""
        await self.all("reload")

    async def step(self, method: str, batch: Any, *arguments: Any) -> Metrics:
        """One optimizer step of all ranks by `method`; what they measured, together."""
        return merge(await self.all(method, ray.put(batch), *arguments))


class PolicyGroup(TrainerGroup):
    """All ranks of the policy trainer."""

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.PolicyTrainer`."""
        return await self.rows("logprobs", batch)

    async def update(self, batch: PolicyBatch, algorithm: AlgorithmConfig) -> Metrics:
        """See `rlstack.protocols.PolicyTrainer`."""
        return await self.step("update", batch, algorithm)

    async def update_supervised(self, batch: SFTBatch) -> Metrics:
        """One optimizer step on demonstrations."""
        return await self.step("update_supervised", batch)

    async def evaluate_supervised(self, batch: SFTBatch) -> Metrics:
        """Loss and accuracy of demonstrations that are not learned from."""
        return merge(await self.all("evaluate_supervised", ray.put(batch)))

    async def connect(
        self, transport: Transport, *, engines: Sequence[ActorHandle], workers_per_engine: int
    ) -> None:
        """Let the trainer meet the engines it will send weights to."""
        await self.all(
            "connect", transport, engines=list(engines), workers_per_engine=workers_per_engine
        )

    async def send_weights(self) -> SendReport:
        """Put the weights into every engine; what was sent."""
        return (await self.all("send_weights"))[0]

    # --- preferences

    async def response_logprobs(self, batch: Rows) -> Tensor:
        """Float32 [N], nats: the sum over the loss tokens of each row; any number of rows."""
        result = torch.zeros(batch.num_rows)
        for rows, sums in await self.all("response_logprobs", ray.put(plain_rows(batch))):
            result[rows] = sums
        return result

    async def update_pairs(self, batch: PreferenceBatch, objective: PairObjective) -> Metrics:
        """One optimizer step on preference pairs."""
        return await self.step("update_pairs", batch, objective)

    async def evaluate_pairs(self, batch: PreferenceBatch, objective: PairObjective) -> Metrics:
        """Metrics `eval/...` of pairs that are not learned from; any number of them."""
        return merge(await self.all("evaluate_pairs", ray.put(batch), objective))

    async def update_judged(self, batch: JudgedPreferenceBatch, objective: KTOObjective) -> Metrics:
        """One optimizer step on judged responses."""
        return await self.step("update_judged", batch, objective)

    async def evaluate_judged(
        self, batch: JudgedPreferenceBatch, objective: KTOObjective
    ) -> Metrics:
        """Metrics `eval/...` of judged responses that are not learned from; any number of them."""
        return merge(await self.all("evaluate_judged", ray.put(batch), objective))


class BaseOfPolicy:
    """The reference of a policy that is trained by adapters: the policy without them."""

    def __init__(self, policy: PolicyGroup) -> None:
        self.policy = policy
        self.turn = policy.turn

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.Reference`."""
        return await self.policy.rows("base_logprobs", batch)


class CriticGroup(TrainerGroup):
    """All ranks of the critic."""

    async def values(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.Critic`."""
        return await self.rows("values", batch)

    async def update(self, batch: CriticBatch, config: CriticConfig) -> Metrics:
        """See `rlstack.protocols.Critic`."""
        return await self.step("update", batch, config)


class RewardTrainerGroup(TrainerGroup):
    """All ranks of the trainer of a reward model."""

    async def update(self, batch: PairBatch, config: RewardLossConfig) -> Metrics:
        """One optimizer step on the whole batch; `reward_model/...` of its scores before it."""
        found = await self.all("update", ray.put(batch), config)
        scores = _pair_scores(batch, [(pairs, values) for pairs, values, _ in found])
        measured = merge(metrics for _, _, metrics in found)
        return measured + pair_metrics(scores, prefix="reward_model")

    async def scores(self, batch: PairBatch) -> PairScores:
        """Scores of any number of pairs, without learning from them."""
        return _pair_scores(batch, await self.all("scores", ray.put(batch)))


def _pair_scores(batch: PairBatch, parts: Sequence[tuple[Tensor, Tensor]]) -> PairScores:
    """Put together from the pairs (int64 [n]) and scores (float32 [n, 2]) of every rank."""
    scores = torch.zeros((batch.num_rows // 2, 2), dtype=torch.float64)
    for pairs, values in parts:
        scores[pairs] = values.double()
    chosen, rejected = scores.numpy().T
    return PairScores(
        chosen=chosen,
        rejected=rejected,
        lengths=batch.loss_mask.sum(dim=1).view(-1, 2).T.double().numpy(),
        data_sources=batch.data_sources,
    )


class ReferenceGroup(FrozenGroup):
    """All ranks of the frozen reference."""

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """See `rlstack.protocols.Reference`."""
        return await self.rows("logprobs", batch)
