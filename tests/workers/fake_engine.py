"""An engine's actor handle that answers at once, for tests of order and bookkeeping only."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
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
        policy_version=7,
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
        self.held: list[TokenRequest] = []
        self.arrivals: asyncio.Queue[Completion | Exception | None] = asyncio.Queue()
        self.dead = False
        self.turns = SimpleNamespace(
            options=lambda num_returns: SimpleNamespace(remote=self._turns)
        )
        self.add_turn = SimpleNamespace(remote=self._add_turn)
        self.end_turns = SimpleNamespace(remote=self._end_turns)

    def die(self) -> None:
        self.dead = True
        self.arrivals.put_nowait(RayActorError())

    async def _turns(self, _: int) -> AsyncIterator[Awaitable[list[Completion]]]:
        while (item := await self.arrivals.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield asyncio.sleep(0, [item])

    async def _add_turn(self, _: int, request: TokenRequest, sampling: SamplingSettings) -> None:
        if self.dead:
            raise RayActorError
        if self.holds:
            self.held.append(request)
            return
        self.arrivals.put_nowait(self.write(request, sampling))

    async def _end_turns(self, _: int) -> None:
        self.arrivals.put_nowait(None)
