"""Roles that answer at once, for tests of order and bookkeeping only."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlstack.batch import CriticBatch, PolicyBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.critic import CriticConfig
from rlstack.faults import skipped_step
from rlstack.metrics import Metrics
from rlstack.types import (
    FinishReason,
    GenerationRequest,
    Phase,
    RewardRequest,
    Rollout,
    SamplingSettings,
    Score,
)


@dataclass
class Journal:
    """What the controller asked for, in order."""

    events: list[str] = field(default_factory=list)


@dataclass
class FakeEngines:
    """Answers with the seed's parity as text, greedily with 1, last request first."""

    journal: Journal
    version: int = -1

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Rollout]]:
        greedy = sampling.temperature == 0
        self.journal.events.append(f"generate {len(requests)}" + " greedily" * greedy)
        for request in reversed(requests):
            length = 1 + request.seed % 3
            yield (
                request.request_id,
                Rollout(
                    prompt=request.prompt,
                    sample_index=request.sample_index,
                    text="1" if greedy else str(request.seed % 2),
                    response_ids=np.full(length, 5, dtype=np.int64),
                    logprobs=np.full(length, -1.0, dtype=np.float32),
                    loss_mask=np.ones(length, dtype=np.bool_),
                    finish_reason=FinishReason.STOP,
                    policy_versions=np.full(length, self.version, dtype=np.int32),
                ),
            )


@dataclass
class FakeScorer:
    """The response is its own reward; prompts named `dull` always get 0."""

    async def score_group(
        self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
    ) -> list[Score]:
        arrived = [await request for request in requests]
        return [Score(value=0.0 if r.data_source == "dull" else float(r.response)) for r in arrived]

    async def state(self) -> dict[str, bytes]:
        return {}

    async def restore(self, states: Mapping[str, bytes]) -> None:
        assert not states


@dataclass
class FakePolicy:
    """Remembers the batches it was trained on, and measures the KL that it is told to.

    Updates whose number, counted from 1, is in `skips` are skipped.
    """

    journal: Journal
    batches: list[PolicyBatch] = field(default_factory=list)
    skips: Container[int] = ()
    ref_kl: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        self.journal.events.append("logprobs")
        return torch.where(batch.loss_mask, -1.0, 0.0)

    async def update(self, batch: PolicyBatch, objective: AlgorithmConfig) -> Metrics:
        self.journal.events.append(f"update {batch.num_rows}")
        self.batches.append(batch)
        if len(self.batches) in self.skips:
            return skipped_step(["policy"], num_updates=1)
        metrics = Metrics.of({"policy/loss": 1.0, "policy/ref_kl": self.ref_kl})
        return metrics + skipped_step(["policy"], num_updates=0)

    async def save(self, directory: Path) -> None:
        directory.mkdir(parents=True)

    async def load(self, directory: Path) -> None:
        assert directory.is_dir()

    async def export(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)


@dataclass
class FakeCritic:
    """Values every state at a half and remembers the batches it was trained on."""

    journal: Journal
    batches: list[CriticBatch] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def values(self, batch: TokenBatch) -> Tensor:
        self.journal.events.append("values")
        return torch.where(batch.loss_mask, 0.5, 0.0)

    async def update(self, batch: CriticBatch, objective: CriticConfig) -> Metrics:
        self.journal.events.append(f"critic update {batch.num_rows}")
        self.batches.append(batch)
        return Metrics.of({"critic/loss": 1.0})

    async def save(self, directory: Path) -> None:
        directory.mkdir(parents=True)

    async def load(self, directory: Path) -> None:
        assert directory.is_dir()

    async def export(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)


@dataclass
class FakeReference:
    """Finds every token less probable than the policy does."""

    journal: Journal = field(default_factory=Journal)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        self.journal.events.append("reference logprobs")
        return torch.where(batch.loss_mask, -2.0, 0.0)


@dataclass
class FakeMovingReference:
    """Counts its moves, and remembers the count."""

    journal: Journal
    moves: int = 0

    async def move(self, *, mix: float) -> None:
        self.journal.events.append(f"reference moves {mix:g}")
        self.moves += 1

    async def save(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "moves").write_text(str(self.moves))

    async def load(self, directory: Path) -> None:
        self.moves = int((directory / "moves").read_text())


@dataclass
class FakeReallocator:
    """Publishes to the fake engines."""

    journal: Journal
    engines: FakeEngines

    async def enter(self, phase: Phase, *, version: int) -> Metrics:
        self.journal.events.append(f"{phase} v{version}")
        if phase is Phase.GENERATE:
            self.engines.version = version
        return Metrics()
