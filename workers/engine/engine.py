"""A rollout engine as others see it: batches of responses, single turns, commands between steps."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from transformers import AutoTokenizer
from vllm.logprobs import FlatLogprobs

from rlstack.errors import WorkerError
from rlstack.types import FinishReason, SamplingSettings
from workers.engine.sampler import Finished, Sampler
from workers.engine.step_loop import StepLoop
from workers.specs import Completion, EngineSpec, Progress, TokenRequest

ResultT = TypeVar("ResultT")

Arrivals = asyncio.Queue[list[Finished] | WorkerError]
"""What finished, in order, or why nothing else will."""


class RolloutEngine:
    """vLLM's engine, stepped by a loop of its own; callers share it."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.loop = StepLoop(lambda: Sampler(spec))

    async def start(self) -> None:
        """Load the model and allocate the KV cache."""
        self.tokenizer = AutoTokenizer.from_pretrained(
            self.spec.model.path, trust_remote_code=self.spec.model.trust_remote_code
        )
        await self.loop.start()

    async def generate(
        self, requests: Sequence[TokenRequest], sampling: SamplingSettings
    ) -> AsyncIterator[list[Completion]]:
        """Yield completions as they finish, those that finish together in one list.

        Raises:
            WorkerError: if vLLM failed.
        """
        arrivals, deliver = _arrivals()
        unique = await self.loop.call(Sampler.add_batch, requests, sampling, deliver)
        remaining = len(requests)
        try:
            while remaining:
                finished = await _next(arrivals)
                remaining -= len(finished)
                yield [self._completion(item, has_text=bool(sampling.stop)) for item in finished]
        finally:
            if remaining:
                await self.loop.call(Sampler.abort, unique)

    async def sample(self, request: TokenRequest, sampling: SamplingSettings) -> Completion:
        """One turn of an episode; its text is what its tokens say: a stop string is part of it.

        Turns join what is running: what is batched with what depends on when they come.

        Raises:
            WorkerError: if vLLM failed.
        """
        arrivals, deliver = _arrivals()
        unique = await self.loop.call(Sampler.add, request, sampling, deliver)
        try:
            (finished,) = await _next(arrivals)
        except asyncio.CancelledError:
            await self.loop.call(Sampler.abort, [unique])
            raise
        completion = self._completion(finished, has_text=True)
        token_ids = completion.response_ids.tolist()
        if token_ids and token_ids[-1] == self.tokenizer.eos_token_id:
            token_ids.pop()
        return replace(completion, text=self.tokenizer.decode(token_ids))

    async def call(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Run `function` on the sampler, between two steps."""
        return await self.loop.call(lambda sampler: function(sampler, *arguments))

    def progress(self) -> Progress:
        """How far the loop has come, without waiting for it."""
        return Progress(done=self.loop.done, busy=self.loop.busy, pid=os.getpid())

    def _completion(self, item: Finished, *, has_text: bool) -> Completion:
        request_id, output = item
        response = output.outputs[0]
        token_ids = np.array(response.token_ids, dtype=np.int64)
        logprobs = response.logprobs
        assert isinstance(logprobs, FlatLogprobs), "asked for by `sampling_params`"
        versions = np.empty(len(token_ids), dtype=np.int32)
        for span in response.weight_versions or ():
            versions[span.start : span.end] = int(span.version)
        # With stop strings vLLM has the text, cut before the string; otherwise it is decoded here,
        # once, which is cheaper than token by token.
        text = response.text
        if not has_text:
            text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return Completion(
            request_id=request_id,
            text=text,
            response_ids=token_ids,
            # One a token: that of the sampled one.
            logprobs=np.array(logprobs.logprobs, dtype=np.float32),
            finish_reason=FinishReason(response.finish_reason),
            policy_versions=versions,
        )


def _arrivals() -> tuple[Arrivals, Callable[[list[Finished] | WorkerError], None]]:
    """A queue of this event loop, and what fills it from the thread of a step loop."""
    loop = asyncio.get_running_loop()
    arrivals: Arrivals = asyncio.Queue()

    def deliver(finished: list[Finished] | WorkerError) -> None:
        loop.call_soon_threadsafe(arrivals.put_nowait, finished)

    return arrivals, deliver


async def _next(arrivals: Arrivals) -> list[Finished]:
    """All that has arrived, at least one.

    Raises:
        WorkerError: if that is what arrived.
    """
    found = [await arrivals.get()]
    while not arrivals.empty():
        found.append(arrivals.get_nowait())
    finished: list[Finished] = []
    for item in found:
        if isinstance(item, WorkerError):
            raise item
        finished += item
    return finished
