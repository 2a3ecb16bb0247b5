"""All rollout engines behind one `generate`: spreads requests, survives the death of an engine."""

# Ray's handles are typed too loosely for these.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import numpy as np
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from rlstack.errors import WorkerError
from rlstack.types import GenerationRequest, Rollout, SamplingSettings
from workers.specs import Completion, TokenRequest

logger = logging.getLogger(__name__)


class EngineGroup:
    """The engines. A dead one is started anew; what it had not finished is redone by the others."""

    def __init__(
        self,
        engines: Sequence[ActorHandle],
        *,
        start_engine: Callable[[int], Awaitable[ActorHandle]],
        max_restarts: int,
    ) -> None:
        """`start_engine(index)` makes a replacement for an engine and returns it ready."""
        self.engines = list(engines)
        self._start_engine = start_engine
        self._restarts_left = max_restarts
        self._repairs: dict[int, asyncio.Task[ActorHandle]] = {}
        self._repairing = asyncio.Lock()
        self._resync: Callable[[], Awaitable[None]] | None = None

    def on_replaced(self, resync: Callable[[], Awaitable[None]]) -> None:
        """`resync()` puts the current weights into every engine after a replacement.

        Without it engines serve the weights they were started with (evaluation).
        """
        self._resync = resync

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Rollout]]:
        """See `rlstack.protocols.RolloutEngines`.

        Requests of one prompt go to one engine (its prefix cache serves them), prompts in turn to
        every engine: which engine gets what depends on the order of `requests` alone.
        """
        await self.repair()
        by_id = {request.request_id: request for request in requests}
        queue: asyncio.Queue[list[Completion] | BaseException] = asyncio.Queue()
        shares = _shares(requests, len(self.engines))
        feeds = {
            asyncio.create_task(self._feed(index, share, sampling, queue))
            for index, share in enumerate(shares)
            if share
        }
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

    async def _feed(
        self,
        index: int,
        share: Sequence[TokenRequest],
        sampling: SamplingSettings,
        queue: "asyncio.Queue[list[Completion] | BaseException]",
    ) -> None:
        """Run `share` on one engine; if it dies, run the rest on the living ones."""
        unfinished = {request.request_id: request for request in share}
        try:
            stream = (
                self.engines[index]
                .generate.options(num_returns="streaming")
                .remote(list(share), sampling)
            )
            async for reference in stream:
                completions = await reference
                for completion in completions:
                    del unfinished[completion.request_id]
                queue.put_nowait(completions)
        except (RayActorError, WorkerError) as error:
            await self._hand_on(index, list(unfinished.values()), sampling, queue, error)
        except Exception as error:  # noqa: BLE001 - raised by generate(), in the caller's task
            queue.put_nowait(error)

    async def _hand_on(
        self,
        dead: int,
        unfinished: Sequence[TokenRequest],
        sampling: SamplingSettings,
        queue: "asyncio.Queue[list[Completion] | BaseException]",
        error: Exception,
    ) -> None:
        try:
            self.begin_repair(dead, error)
            alive = await self.alive()
            logger.warning("engine %d died; %d requests are redone", dead, len(unfinished))
            shares = [unfinished[i :: len(alive)] for i in range(len(alive))]
            again = [
                self._feed(index, share, sampling, queue)
                for index, share in zip(alive, shares, strict=True)
                if share
            ]
            await asyncio.gather(*again)
        except Exception as failure:  # noqa: BLE001 - raised by generate(), in the caller's task
            queue.put_nowait(failure)

    def begin_repair(self, index: int, error: Exception) -> None:
        """Start a replacement of a dead engine, if none is under way.

        Raises:
            WorkerError: if no replacement is left.
        """
        if index in self._repairs:
            return
        if self._restarts_left == 0:
            raise WorkerError(
                f"rollout engine {index} died and rollout.max_restarts is used up; its last error: "
                f"{error}"
            ) from error
        self._restarts_left -= 1
        self._repairs[index] = asyncio.create_task(self._start_engine(index))

    async def alive(self) -> list[int]:
        """Indices of the engines that take requests; if there is none, those repaired."""
        alive = [i for i in range(len(self.engines)) if i not in self._repairs]
        if not alive:
            await self.repair()
        return alive or list(range(len(self.engines)))

    async def repair(self) -> None:
        """Wait for engines under repair and give them the current weights."""
        async with self._repairing:
            if not self._repairs:
                return
            for index, replacement in list(self._repairs.items()):
                self.engines[index] = await replacement
            self._repairs.clear()
            if self._resync is not None:
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
    num_tokens = len(completion.response_ids)
    return Rollout(
        prompt=request.prompt,
        sample_index=request.sample_index,
        text=completion.text,
        response_ids=completion.response_ids,
        logprobs=completion.logprobs,
        loss_mask=np.ones(num_tokens, dtype=np.bool_),
        finish_reason=completion.finish_reason,
        policy_versions=np.full(num_tokens, completion.policy_version, dtype=np.int32),
    )
