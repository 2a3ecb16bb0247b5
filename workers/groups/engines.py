"""All rollout engines behind `generate` and `sample`: spreads requests, survives their deaths."""

# Ray's handles are typed too loosely for these.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from rlstack.errors import EngineLostError, WorkerError
from rlstack.types import GenerationRequest, Rollout, SamplingSettings
from workers.specs import Completion, TokenRequest

logger = logging.getLogger(__name__)


class EngineGroup:
    """The engines. A dead one is replaced; what it had not finished is redone by the others.

    An engine whose vLLM failed counts as dead, and so does a stuck one: the watch kills it.
    """

    def __init__(
        self,
        engines: Sequence[ActorHandle],
        *,
        replace: Callable[[int, ActorHandle], Awaitable[ActorHandle]],
        max_restarts: int,
    ) -> None:
        """`replace(index, old)` ends an engine and returns another in its place, ready."""
        self.engines = list(engines)
        self._replace = replace
        self._restarts_left = max_restarts
        self._repairs: dict[int, asyncio.Task[ActorHandle]] = {}
        self._repairing = asyncio.Lock()
        self._resyncing = asyncio.Lock()
        self._make_room: Callable[[], Awaitable[None]] | None = None
        self._resync: Callable[[], Awaitable[None]] | None = None

    def serve_policy(
        self,
        *,
        make_room: Callable[[], Awaitable[None]],
        resync: Callable[[], Awaitable[None]],
    ) -> None:
        """`make_room()` frees the devices that a replacement starts on; `resync()` waits for
        replacements and puts the current weights into every engine.

        Without it engines serve the weights they were started with (evaluation).
        """
        self._make_room = make_room
        self._resync = resync

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Rollout]]:
        """See `rlstack.protocols.RolloutEngines`.

        Requests of one prompt go to one engine (its prefix cache serves them), prompts in turn to
        every engine: which engine gets what depends on the order of `requests` alone.
        """
        await self._ready()
        by_id = {request.request_id: request for request in requests}
        queue: asyncio.Queue[list[Completion] | BaseException] = asyncio.Queue()
        feeds = [
            asyncio.create_task(self._feed(index, share, sampling, queue))
            for index, share in enumerate(_shares(requests, len(self.engines)))
            if share
        ]
        try:
            while by_id:
                completions = await queue.get()
                if isinstance(completions, BaseException):
                    raise completions
                for completion in completions:
                    # A request that was handed on before its engine died may finish twice.
                    request = by_id.pop(completion.request_id, None)
                    if request is not None:
                        yield request.request_id, _rollout(request, completion)
        finally:
            for feed in feeds:
                feed.cancel()

    async def sample(
        self, request: TokenRequest, sampling: SamplingSettings, *, prefer: int
    ) -> Completion:
        """One turn of an episode, sampled as soon as it is asked for.

        prefer: the engine whose prefix cache holds the turns before. If one dies, the turn is
        redone by another, from the same tokens and seed.

        Raises:
            WorkerError: if engines died more often than `faults.max_restarts`.
        """
        while True:
            alive = await self.alive()
            index = prefer if prefer in alive else alive[prefer % len(alive)]
            engine = self.engines[index]
            call = engine.sample.remote(request, sampling)
            try:
                return await call
            except asyncio.CancelledError:
                ray.cancel(call)
                raise
            except (RayActorError, WorkerError) as error:
                self.begin_repair(engine, error)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run `function` on the sampler of every engine, between two of its steps.

        Raises:
            EngineLostError: if an engine died; its replacement has begun.
        """
        calls = [engine.call.remote(function, *arguments) for engine in self.engines]
        results = await asyncio.gather(*calls, return_exceptions=True)
        lost: EngineLostError | None = None
        for engine, result in zip(list(self.engines), results, strict=True):
            if isinstance(result, RayActorError | WorkerError):
                self.begin_repair(engine, result)
                lost = EngineLostError(str(result))
            elif isinstance(result, BaseException):
                raise result
        if lost is not None:
            raise lost
        return results

    async def _feed(
        self,
        index: int,
        share: Sequence[TokenRequest],
        sampling: SamplingSettings,
        queue: "asyncio.Queue[list[Completion] | BaseException]",
    ) -> None:
        """Run `share` on one engine; if it dies, run the rest on the living ones."""
        unfinished = {request.request_id: request for request in share}
        engine = self.engines[index]
        stream = engine.generate.options(num_returns="streaming").remote(list(share), sampling)
        try:
            async for reference in stream:
                completions = await reference
                for completion in completions:
                    del unfinished[completion.request_id]
                queue.put_nowait(completions)
        except asyncio.CancelledError:
            if unfinished:
                ray.cancel(stream)
            raise
        except (RayActorError, WorkerError) as error:
            await self._hand_on(engine, list(unfinished.values()), sampling, queue, error)
        except Exception as error:  # noqa: BLE001 - raised by generate(), in the caller's task
            queue.put_nowait(error)

    async def _hand_on(
        self,
        dead: ActorHandle,
        unfinished: Sequence[TokenRequest],
        sampling: SamplingSettings,
        queue: "asyncio.Queue[list[Completion] | BaseException]",
        error: Exception,
    ) -> None:
        try:
            self.begin_repair(dead, error)
            alive = await self.alive()
            logger.warning("an engine died; %d of its requests are redone", len(unfinished))
            shares = [unfinished[i :: len(alive)] for i in range(len(alive))]
            again = [
                self._feed(index, share, sampling, queue)
                for index, share in zip(alive, shares, strict=True)
                if share
            ]
            await asyncio.gather(*again)
        except Exception as failure:  # noqa: BLE001 - raised by generate(), in the caller's task
            queue.put_nowait(failure)

    def begin_repair(self, engine: ActorHandle, error: Exception) -> None:
        """Start the replacement of a dead engine, if it is not replaced yet.

        Raises:
            WorkerError: if no replacement is left.
        """
        if engine not in self.engines or self.engines.index(engine) in self._repairs:
            return
        index = self.engines.index(engine)
        self._repairs[index] = asyncio.create_task(self._replacement(index, engine, error))

    async def _replacement(self, index: int, engine: ActorHandle, error: Exception) -> ActorHandle:
        while self._restarts_left > 0:
            self._restarts_left -= 1
            logger.warning("engine %d is replaced: %s", index, _first_line(error))
            try:
                if self._make_room is not None:
                    await self._make_room()
                return await self._replace(index, engine)
            except (RayActorError, WorkerError) as failure:
                error = failure
        raise WorkerError(
            f"rollout engine {index} died and faults.max_restarts is used up; its last error: "
            f"{error}"
        ) from error

    async def find_dead(self) -> bool:
        """Ask every engine for a sign of life; the replacement of those without has begun.

        Raises:
            WorkerError: if no replacement is left.
        """
        asked = [engine.progress.remote() for engine in self.engines]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for engine, answer in zip(list(self.engines), answers, strict=True):
            if isinstance(answer, RayActorError):
                self.begin_repair(engine, answer)
        return bool(self._repairs)

    async def alive(self) -> list[int]:
        """Indices of the engines that take requests; if there is none, those repaired.

        Raises:
            WorkerError: if no engine lives and no replacement is left.
        """
        alive = [i for i in range(len(self.engines)) if i not in self._repairs]
        if not alive:
            await self._ready()
        return alive or list(range(len(self.engines)))

    async def repair(self) -> bool:
        """Wait for engines under repair, which have the weights they were started with.

        Raises:
            WorkerError: if no replacement is left.
        """
        async with self._repairing:
            repaired = bool(self._repairs)
            for index, replacement in list(self._repairs.items()):
                self.engines[index] = await replacement
                del self._repairs[index]
        return repaired

    async def _ready(self) -> None:
        """Wait for engines under repair and give them the current weights."""
        async with self._resyncing:
            if not self._repairs:
                return
            if self._resync is None:
                await self.repair()
            else:
                await self._resync()


def _shares(requests: Sequence[GenerationRequest], num_engines: int) -> list[list[TokenRequest]]:
    shares: list[list[TokenRequest]] = [[] for _ in range(num_engines)]
    prompt_number = -1
    previous = None
    for request in requests:
        if request.prompt is not previous:
            prompt_number += 1
            previous = request.prompt
        shares[prompt_number % num_engines].append(
            TokenRequest(
                request_id=request.request_id,
                token_ids=request.prompt.token_ids.tolist(),
                seed=request.seed,
            )
        )
    return shares


def _rollout(request: GenerationRequest, completion: Completion) -> Rollout:
    return Rollout(
        prompt=request.prompt,
        sample_index=request.sample_index,
        text=completion.text,
        response_ids=completion.response_ids,
        logprobs=completion.logprobs,
        loss_mask=np.ones(len(completion.response_ids), dtype=np.bool_),
        finish_reason=completion.finish_reason,
        policy_versions=completion.policy_versions,
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
