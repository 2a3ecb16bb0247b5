"""The Ray actor classes: thin shells that import their heavy half in their own process.

Ray needs an actor's class in the driver. These shells let the driver start every role at once
without first importing vLLM and DeepSpeed itself, which would take longer than starting Ray.
"""

import importlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.actor import ActorHandle
from torch import Tensor

from rlstack.batch import CriticBatch, PairBatch, PolicyBatch, SelectableRows, SFTBatch, TokenBatch
from rlstack.batches.preference_reference import JudgedPreferenceBatch, PreferenceBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.critic import CriticConfig
from rlstack.config.preference import KTOObjective, PairObjective
from rlstack.config.reward_model import RewardLossConfig
from rlstack.metrics import Metrics
from rlstack.planning.phases import Transport
from rlstack.quick_imports import quick_imports
from rlstack.types import SamplingSettings
from workers.specs import (
    Completion,
    EngineSpec,
    EngineState,
    ReferenceSpec,
    RewardModelSpec,
    SendReport,
    TokenRequest,
    TrainerSpec,
)


class _MeetingActor:
    """A rank that computes together with the others of its group; subclasses make it."""

    rank: Any

    def rendezvous(self) -> tuple[str, int]:
        return self.rank.meeting.rendezvous()

    def join(self, *, address: str, port: int) -> None:
        self.rank.meeting.join(address=address, port=port)

    def start(self) -> None:
        self.rank.start()


class _TrainerActor(_MeetingActor):
    """What every `workers.ranks.trainer.TrainerRank` does, as an actor."""

    def visible_device(self) -> str:
        return self.rank.visible_device()

    def offload(self) -> None:
        self.rank.offload()

    def reload(self) -> None:
        self.rank.reload()

    def save(self, directory: Path) -> None:
        self.rank.save(directory)

    def load(self, directory: Path) -> None:
        self.rank.load(directory)

    def export(self, directory: Path) -> None:
        self.rank.export(directory)

    def merge_adapters(self) -> None:
        self.rank.merge_adapters()

    def reset_optimizer(self) -> None:
        self.rank.reset_optimizer()


class PolicyActor(_TrainerActor):
    """`workers.ranks.policy.PolicyRank` as an actor."""

    def __init__(self, spec: TrainerSpec, *, rank: int) -> None:
        with quick_imports():
            from workers.ranks.policy import PolicyRank
            from workers.ranks.preferences import PreferenceLearning

        self.rank = PolicyRank(spec, rank=rank)
        self.preferences = PreferenceLearning(self.rank)
        if spec.feeds_engines:
            # It takes seconds, and the engines are not there yet.
            with quick_imports():
                importlib.import_module("workers.transfer.sender")

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return self.rank.logprobs(batch)

    def base_logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return self.rank.base_logprobs(batch)

    def update(self, batch: PolicyBatch, algorithm: AlgorithmConfig) -> Metrics:
        return self.rank.update(batch, algorithm)

    def update_supervised(self, batch: SFTBatch) -> Metrics:
        return self.rank.update_supervised(batch)

    def evaluate_supervised(self, batch: SFTBatch) -> Metrics:
        return self.rank.evaluate_supervised(batch)

    def connect(
        self, transport: Transport, *, engines: list[ActorHandle], workers_per_engine: int
    ) -> None:
        self.rank.connect(transport, engines=engines, workers_per_engine=workers_per_engine)

    def send_weights(self) -> SendReport:
        return self.rank.send_weights()

    def response_logprobs(self, batch: SelectableRows) -> tuple[Tensor, Tensor]:
        return self.preferences.response_logprobs(batch)

    def update_pairs(self, batch: PreferenceBatch, objective: PairObjective) -> Metrics:
        return self.preferences.update_pairs(batch, objective)

    def evaluate_pairs(self, batch: PreferenceBatch, objective: PairObjective) -> Metrics:
        return self.preferences.evaluate_pairs(batch, objective)

    def update_judged(self, batch: JudgedPreferenceBatch, objective: KTOObjective) -> Metrics:
        return self.preferences.update_judged(batch, objective)

    def evaluate_judged(self, batch: JudgedPreferenceBatch, objective: KTOObjective) -> Metrics:
        return self.preferences.evaluate_judged(batch, objective)


class CriticActor(_TrainerActor):
    """`workers.ranks.critic.CriticRank` as an actor."""

    def __init__(self, spec: TrainerSpec, *, rank: int) -> None:
        with quick_imports():
            from workers.ranks.critic import CriticRank

        self.rank = CriticRank(spec, rank=rank)

    def values(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return self.rank.values(batch)

    def update(self, batch: CriticBatch, config: CriticConfig) -> Metrics:
        return self.rank.update(batch, config)


class RewardTrainerActor(_TrainerActor):
    """`workers.ranks.reward_trainer.RewardModelRank` as an actor."""

    def __init__(self, spec: TrainerSpec, *, rank: int) -> None:
        with quick_imports():
            from workers.ranks.reward_trainer import RewardModelRank

        self.rank = RewardModelRank(spec, rank=rank)

    def update(self, batch: PairBatch, config: RewardLossConfig) -> tuple[Tensor, Tensor, Metrics]:
        return self.rank.update(batch, config)

    def scores(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        return self.rank.scores(batch)


class ReferenceActor:
    """`workers.ranks.reference.ReferenceRank` as an actor."""

    def __init__(self, spec: ReferenceSpec, *, rank: int) -> None:
        with quick_imports():
            from workers.ranks.reference import ReferenceRank

        self.rank = ReferenceRank(spec, rank=rank)

    def start(self) -> None:
        self.rank.start()

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return self.rank.logprobs(batch)


class ShardedReferenceActor(_MeetingActor):
    """`workers.ranks.sharded_reference.ShardedReferenceRank` as an actor."""

    def __init__(self, spec: ReferenceSpec, *, rank: int) -> None:
        with quick_imports():
            from workers.ranks.sharded_reference import ShardedReferenceRank

        self.rank = ShardedReferenceRank(spec, rank=rank)

    def logprobs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return self.rank.logprobs(batch)


class RewardModelActor:
    """`workers.ranks.reward_model.RewardModelRank` as an actor."""

    def __init__(self, spec: RewardModelSpec, *, rank: int) -> None:
        with quick_imports():
            from workers.ranks.reward_model import RewardModelRank

        self.rank = RewardModelRank(spec, rank=rank)

    def start(self) -> None:
        self.rank.start()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        return self.rank.score(prompts, responses)


class ShardedRewardModelActor(_MeetingActor):
    """`workers.ranks.reward_model.ShardedRewardModelRank` as an actor."""

    def __init__(self, spec: RewardModelSpec, *, rank: int) -> None:
        with quick_imports():
            from workers.ranks.reward_model import ShardedRewardModelRank

        self.rank = ShardedRewardModelRank(spec, rank=rank)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        return self.rank.score(prompts, responses)


class EngineActor:
    """`workers.engine.engine.RolloutEngine` as an actor."""

    def __init__(self, spec: EngineSpec) -> None:
        with quick_imports():
            from workers.engine.engine import RolloutEngine

        self.engine = RolloutEngine(spec)

    async def start(self) -> None:
        await self.engine.start()

    async def generate(
        self, requests: Sequence[TokenRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Completion]]:
        async for completions in self.engine.generate(requests, sampling):
            yield completions

    async def turns(self, session: int) -> AsyncIterator[list[Completion]]:
        async for completions in self.engine.turns(session):
            yield completions

    async def add_turn(
        self, session: int, request: TokenRequest, sampling: SamplingSettings
    ) -> None:
        await self.engine.add_turn(session, request, sampling)

    async def end_turns(self, session: int) -> None:
        await self.engine.end_turns(session)

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self.engine.init_weight_transfer_engine(request)

    async def start_weight_update(self) -> None:
        await self.engine.start_weight_update()

    async def update_weights(self, request: Any) -> None:
        await self.engine.update_weights(request)

    async def finish_weight_update(self) -> None:
        await self.engine.finish_weight_update()

    async def load_adapter(self, files: dict[str, bytes]) -> None:
        await self.engine.load_adapter(files)

    async def commit(self, version: int) -> EngineState:
        return await self.engine.commit(version)

    async def sleep(self) -> None:
        await self.engine.sleep()

    async def wake(self, tags: list[str]) -> None:
        await self.engine.wake(tags)

    async def shutdown(self) -> None:
        await self.engine.shutdown()
