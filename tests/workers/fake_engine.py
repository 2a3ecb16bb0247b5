"""An engine's actor handle that answers at once, for tests of order and bookkeeping only."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from ray.exceptions import RayActorError

from rlstack.types import FinishReason, SamplingSettings
from workers.specs import Completion, TokenRequest


def seed_and_last_token(request: TokenRequest, sampling: SamplingSettings) -> Completion:
    return completion(request, f"{request.seed} after {request.token_ids[-1]}")


def completion(
    request: TokenRequest, text: str, *, reason: FinishReason = FinishReason.STOP, eos: int = 0
) -> Completion:
    """One token per character of `text`, and the end of sequence if it stopped."""
    token_ids = [*map(ord, text), *([eos] if reason is FinishReason.STOP else [])]
    return Completion(
        request_id=request.request_id,
        text=text,
        response_ids=np.array(token_ids),
        logprobs=np.full(len(token_ids), -1.0, dtype=np.float32),
        finish_reason=reason,
        policy_versions=np.full(len(token_ids), 7, dtype=np.int32),
    )


class FakeEngine:
    """An actor handle; it answers with `write`, or holds what it is given."""

    def __init__(
        self,
        *,
        holds: bool = False,
        write: Callable[[TokenRequest, SamplingSettings], Completion] = seed_and_last_token,
    ) -> None:
        self.write = write
        self.holds = holds
        self.held: list[asyncio.Future[Completion]] = []
        self.dead = False
        self.sample = SimpleNamespace(remote=self._sample)

    def die(self) -> None:
        self.dead = True
        for waiting in self.held:
            waiting.set_exception(RayActorError())

    async def _sample(self, request: TokenRequest, sampling: SamplingSettings) -> Completion:
        if self.dead:
            raise RayActorError
        if self.holds:
            self.held.append(asyncio.get_running_loop().create_future())
            return await self.held[-1]
        return self.write(request, sampling)
