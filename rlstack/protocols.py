"""What the controller needs from each role. The real roles are Ray worker groups in `workers`."""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlstack.batch import CriticBatch, PolicyBatch, TokenBatch
from rlstack.config.algorithm import AlgorithmConfig
from rlstack.config.critic import CriticConfig
from rlstack.metrics import Metrics
from rlstack.types import (
    Candidates,
    GenerationRequest,
    Phase,
    RewardRequest,
    Rollout,
    SamplingSettings,
    Score,
)


class RolloutEngines(Protocol):
    """All generation engines behind one call."""

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Rollout]]:
        """Yield (request_id, rollout) as each response finishes; every request exactly once."""
        ...


class Role(Protocol):
    """What computes on devices."""

    @property
    def turn(self) -> AbstractAsyncContextManager[Any]:
        """Held while the role computes: roles that share devices take turns."""
        ...


class Saved(Protocol):
    """What changes in a run, and is part of its checkpoints."""

    async def save(self, directory: Path) -> None:
        """Write all that it goes on from; of a trainer also optimizer, scheduler and RNG."""
        ...

    async def load(self, directory: Path) -> None:
        """Restore what `save` wrote, exactly."""
        ...


class Trained(Role, Saved, Protocol):
    """All ranks of a trainer behind one call."""

    async def export(self, directory: Path) -> None:
        """Weights, configuration and tokenizer in Hugging Face format."""
        ...


class PolicyTrainer(Trained, Protocol):
    """The policy in training."""

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """Float32 [B, T], nats, at the sampling temperature; 0 where loss_mask is False."""
        ...

    async def update(self, batch: PolicyBatch, objective: AlgorithmConfig) -> Metrics:
        """One optimizer step on the whole batch, with the loss of `objective`."""
        ...


class Critic(Trained, Protocol):
    """The value function in training."""

    async def values(self, batch: TokenBatch) -> Tensor:
        """Float32 [B, T], reward units, of the state before each token; 0 where not loss_mask."""
        ...

    async def update(self, batch: CriticBatch, objective: CriticConfig) -> Metrics:
        """One optimizer step on the whole batch."""
        ...


class Reference(Role, Protocol):
    """The frozen reference policy."""

    async def logprobs(self, batch: TokenBatch) -> Tensor:
        """Float32 [B, T], nats, at the sampling temperature; 0 where loss_mask is False."""
        ...


class MovingReference(Saved, Protocol):
    """The reference where it does not stay what it was."""

    async def move(self, *, mix: float) -> None:
        """Its weights become mix * policy + (1 - mix) * reference."""
        ...


class Filtration(Protocol):
    """Chooses the rollouts of a step that are trained on."""

    def select(self, candidates: Candidates, *, seed: int) -> NDArray[np.int64]:
        """Rows to keep, int64 [N], ascending; one may come several times. Never an unjudged one."""
        ...


class Scorer(Protocol):
    """Runs the configured rewards, isolated and with time-outs."""

    async def score_group(
        self, requests: Sequence[Awaitable[RewardRequest]], *, step: int
    ) -> Sequence[Score]:
        """Judge the rollouts of one prompt: each as it arrives, then what needs them all.

        step: updates of the policy so far, for weights that change.

        Never raises for a bad sample: failures are in `Score.errors`.

        Raises:
            RewardError: if a component failed that is configured to stop the run.
        """
        ...

    async def state(self) -> Mapping[str, bytes]:
        """What the rewards that remember do remember, by label; for a checkpoint."""
        ...

    async def restore(self, states: Mapping[str, bytes]) -> None:
        """Go on from what `state` gave.

        Raises:
            RewardError: if a reward cannot.
        """
        ...


class Reallocator(Protocol):
    """Moves memory and weights between phases; nothing else knows who shares devices."""

    async def enter(self, phase: Phase, *, version: int) -> Metrics:
        """Carry out the plan's actions that lead to `phase`.

        Entering GENERATE puts the trainer's weights into every engine as `version`, unless they are
        there already, and verifies them.

        Raises:
            WeightSyncError: if an engine does not hold what was sent.
        """
        ...
