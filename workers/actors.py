"""The Ray actor classes: thin shells that import their heavy half in their own process.

Ray needs an actor's class in the driver. These shells let the driver start every role at once
without first importing vLLM and DeepSpeed itself, which would take longer than starting Ray.
"""

import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from rlstack.quick_imports import quick_imports
from rlstack.types import SamplingSettings
from workers.progress import work
from workers.specs import (
    Completion,
    EngineSpec,
    Progress,
    ReferenceSpec,
    RewardModelSpec,
    TokenRequest,
    TrainerSpec,
)

if TYPE_CHECKING:
    from workers.ranks.critic import CriticRank
    from workers.ranks.policy import PolicyRank
    from workers.ranks.reference import ReferenceRank
    from workers.ranks.reward_model import RewardModelRank
    from workers.ranks.reward_trainer import RewardTrainerRank

ResultT = TypeVar("ResultT")

WATCH = "watch"
"""The concurrency group of what is answered while other calls are under way."""


class RankActor:
    """One rank of any role as an actor; `workers.groups.ranks` says what it calls, and is typed."""

    def __init__(self, make: Callable[..., Any], spec: Any, *, rank: int) -> None:
        """make: one of the functions below."""
        with quick_imports():
            self.rank = make(spec, rank=rank)

    def call(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """What `function` says of the rank."""
        with work:
            return function(self.rank, *arguments)

    @ray.method(concurrency_group=WATCH)
    def progress(self) -> Progress:
        return work.progress()


def policy(spec: TrainerSpec, *, rank: int) -> "PolicyRank":
    """A rank of the policy's trainer."""
    from workers.ranks.policy import PolicyRank

    if spec.feeds_engines:
        # It takes seconds, and the engines are not there yet.
        importlib.import_module("workers.transfer.sender")
    return PolicyRank(spec, rank=rank)


def critic(spec: TrainerSpec, *, rank: int) -> "CriticRank":
    """A rank of the critic's trainer."""
    from workers.ranks.critic import CriticRank

    return CriticRank(spec, rank=rank)


def reward_trainer(spec: TrainerSpec, *, rank: int) -> "RewardTrainerRank":
    """A rank of a reward model's trainer."""
    from workers.ranks.reward_trainer import RewardTrainerRank

    return RewardTrainerRank(spec, rank=rank)


def reference(spec: ReferenceSpec, *, rank: int) -> "ReferenceRank":
    """A rank of the reference; under ZeRO-3 it holds a share."""
    if spec.role.config.zero_stage == 3:
        from workers.ranks.sharded_reference import ShardedReferenceRank

        return ShardedReferenceRank(spec, rank=rank)
    from workers.ranks.reference import ReferenceRank

    return ReferenceRank(spec, rank=rank)


def reward_model(spec: RewardModelSpec, *, rank: int) -> "RewardModelRank":
    """A rank of the reward models; under ZeRO-3 it holds a share."""
    from workers.ranks.reward_model import RewardModelRank, ShardedRewardModelRank

    if spec.role.zero_stage == 3:
        return ShardedRewardModelRank(spec, rank=rank)
    return RewardModelRank(spec, rank=rank)


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

    async def sample(self, request: TokenRequest, sampling: SamplingSettings) -> Completion:
        return await self.engine.sample(request, sampling)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` says of the sampler, between two of its steps."""
        return await self.engine.call(function, *arguments)

    @ray.method(concurrency_group=WATCH)
    async def progress(self) -> Progress:
        return self.engine.progress()
