"""Turns of many episodes through the engines, each sampled as soon as it is asked for."""

# Ray's handles are typed too loosely for these.
# pyright: reportGeneralTypeIssues=false

import asyncio
import itertools
import logging
from contextlib import suppress
from typing import Self

from ray.exceptions import RayActorError

from rlstack.errors import WorkerError
from rlstack.types import SamplingSettings
from workers.groups.engines import EngineGroup
from workers.specs import Completion, TokenRequest

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)
"""Engines tell sessions apart by these."""

_NO_ENGINE = -1
"""The engine of a turn that waits until one has been replaced."""


class _Turn:
    """A turn that an engine is sampling."""

    def __init__(self, request: TokenRequest, sampling: SamplingSettings) -> None:
        self.request = request
        self.sampling = sampling
        self.engine = _NO_ENGINE
        self.completion: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()


class TurnSession:
    """An async context in which turns are sampled; on leaving it, those under way are given up.

    The turns of an engine that dies are redone by the others, from the same tokens and seed.
    """

    def __init__(self, group: EngineGroup) -> None:
        self._group = group
        self._number = next(_numbers)
        self._turns: dict[int, _Turn] = {}
        self._receivers: dict[int, asyncio.Task[None]] = {}
        self._dead: set[int] = set()
        self._requests = itertools.count()
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        await self._group.repair()
        for index in range(len(self._group.engines)):
            self._start_receiver(index)
        return self

    async def __aexit__(self, *_: object) -> None:
        for index in self._receivers.keys() - self._dead:
            with suppress(RayActorError):
                await self._group.engines[index].end_turns.remote(self._number)
        for receiver in self._receivers.values():
            receiver.cancel()
        await asyncio.gather(*self._receivers.values(), return_exceptions=True)
        for turn in self._turns.values():
            turn.completion.cancel()

    async def sample(
        self, token_ids: list[int], sampling: SamplingSettings, *, seed: int, engine: int
    ) -> Completion:
        """What the policy writes behind `token_ids`.

        engine: its preferred engine, whose prefix cache holds the turns before.

        Raises:
            WorkerError: if engines died more often than `rollout.max_restarts`.
        """
        if self._failure is not None:
            raise self._failure
        number = next(self._requests)
        request = TokenRequest(request_id=number, token_ids=token_ids, seed=seed)
        turn = self._turns[number] = _Turn(request, sampling)
        try:
            await self._send(turn, prefer=engine)
            return await turn.completion
        finally:
            del self._turns[number]

    async def _send(self, turn: _Turn, *, prefer: int) -> None:
        alive = [index for index in self._receivers if index not in self._dead]
        if not alive:
            turn.engine = _NO_ENGINE
            return
        turn.engine = prefer if prefer in alive else alive[prefer % len(alive)]
        # If it dies now, its receiver hears of it and sends this turn again.
        with suppress(RayActorError):
            engine = self._group.engines[turn.engine]
            await engine.add_turn.remote(self._number, turn.request, turn.sampling)

    def _start_receiver(self, index: int) -> None:
        self._dead.discard(index)
        self._receivers[index] = asyncio.create_task(self._receive(index))

    async def _receive(self, index: int) -> None:
        """Receive what one engine finishes; if it dies, send its turns to the others."""
        try:
            engine = self._group.engines[index]
            stream = engine.turns.options(num_returns="streaming").remote(self._number)
            async for reference in stream:
                for completion in await reference:
                    turn = self._turns.get(completion.request_id)
                    # One that was sent again before its engine died may finish twice.
                    if turn is not None and not turn.completion.done():
                        turn.completion.set_result(completion)
        except (RayActorError, WorkerError) as error:
            await self._resend_turns_of(index, error)
        except Exception as error:  # noqa: BLE001 - raised by sample(), in the caller's task
            self._fail(error)

    async def _resend_turns_of(self, dead: int, error: Exception) -> None:
        try:
            self._dead.add(dead)
            self._group.begin_repair(dead, error)
            if self._dead == self._receivers.keys():
                await self._group.alive()  # waits until all have been replaced
                for index in sorted(self._dead):
                    self._start_receiver(index)
            again = [t for t in self._turns.values() if t.engine in (dead, _NO_ENGINE)]
            logger.warning("engine %d died; %d turns are redone", dead, len(again))
            for number, turn in enumerate(again):
                if not turn.completion.done():
                    await self._send(turn, prefer=number)
        except Exception as failure:  # noqa: BLE001 - raised by sample(), in the caller's task
            self._fail(failure)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        for turn in self._turns.values():
            if not turn.completion.done():
                turn.completion.set_exception(error)
