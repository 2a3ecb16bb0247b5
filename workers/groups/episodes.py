"""Multi-turn rollouts: engines and environments in turns, every rollout at its own pace.

    prompt -> action (engine) -> answer (environment) -> observation tokens -> action -> ...

Implements `rlstack.protocols.RolloutEngines`, so that the loop knows nothing of it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from rlstack.data.observations import TurnRenderer
from rlstack.data.transcript import Transcript
from rlstack.errors import DataError, EpisodeError, EpisodeTimeoutError
from rlstack.seeds import Domain, derived_seed
from rlstack.types import (
    FinishReason,
    GenerationRequest,
    Message,
    Rollout,
    SamplingSettings,
    Task,
)
from workers.environments.pool import EnvironmentPool, PlayedEpisode
from workers.groups.engines import EngineGroup
from workers.specs import TokenRequest

logger = logging.getLogger(__name__)


class EpisodeEngines:
    """Engines whose rollouts are episodes.

    A turn goes to the engine as soon as the environment has answered the one before it; no rollout
    waits for another. What an engine batches with what therefore depends on time, and so does the
    rounding of its arithmetic: the same seeds give the same text nearly always, not always.
    """

    def __init__(
        self,
        engines: EngineGroup,
        environments: EnvironmentPool,
        renderer: TurnRenderer,
        *,
        max_turns: int,
    ) -> None:
        self._engines = engines
        self._environments = environments
        self._renderer = renderer
        self._max_turns = max_turns

    async def generate(
        self, requests: Sequence[GenerationRequest], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Rollout]]:
        """See `rlstack.protocols.RolloutEngines`; all episodes are under way at once."""
        prompts = {id(request.prompt): request.prompt for request in requests}
        number_of = {key: number for number, key in enumerate(prompts)}
        finished: asyncio.Queue[tuple[int, Rollout] | Exception] = asyncio.Queue()

        async def play(request: GenerationRequest) -> None:
            engine = number_of[id(request.prompt)] % len(self._engines.engines)
            try:
                rollout = await self._episode(request, sampling, engine=engine)
                finished.put_nowait((request.request_id, rollout))
            except Exception as error:  # noqa: BLE001 - raised below, in the caller's task
                finished.put_nowait(error)

        tasks = [asyncio.create_task(play(request)) for request in requests]
        try:
            for _ in requests:
                item = await finished.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _episode(
        self,
        request: GenerationRequest,
        sampling: SamplingSettings,
        *,
        engine: int,
    ) -> Rollout:
        """Play one episode; whatever the environment does, there is a rollout."""
        transcript = Transcript(request.prompt, request.sample_index)
        playing: PlayedEpisode | None = None
        try:
            playing = await self._environments.begin(_task(request))
            if playing.observation is not None:
                transcript.prompt = self._renderer.opened(request.prompt, playing.observation)
            reason = await self._turns(
                transcript, playing, sampling, seed=request.seed, engine=engine
            )
        except EpisodeTimeoutError as error:
            return transcript.rollout(FinishReason.TIMEOUT, error=f"environment: {error}")
        except (EpisodeError, DataError) as error:
            return transcript.rollout(FinishReason.ERROR, error=f"environment: {error}")
        finally:
            if playing is not None:
                await self._end(playing)
        return transcript.rollout(reason)

    async def _turns(
        self,
        transcript: Transcript,
        playing: PlayedEpisode,
        sampling: SamplingSettings,
        *,
        seed: int,
        engine: int,
    ) -> FinishReason:
        """Actions and answers until one of them ends the episode; why it ended."""
        history: list[Message] = list(transcript.prompt.messages)
        limit = sampling.max_response_tokens
        while True:
            turn = TokenRequest(
                request_id=0,
                token_ids=transcript.context(),
                seed=_turn_seed(seed, len(transcript.turns)),
            )
            left = replace(sampling, max_response_tokens=limit - transcript.length)
            completion = await self._engines.sample(turn, left, prefer=engine)
            transcript.add_action(
                completion.text,
                completion.response_ids,
                completion.logprobs,
                policy_versions=completion.policy_versions,
            )
            if completion.finish_reason is FinishReason.LENGTH:
                return FinishReason.LENGTH
            answer = await self._environments.step(playing, completion.text)
            transcript.add_answer(answer)
            if answer.done:
                return FinishReason.STOP
            if len(transcript.turns) == self._max_turns:
                return FinishReason.TURNS
            observation = self._renderer.message(answer)
            shown = self._renderer.continuation(
                history, observation, last_token=int(completion.response_ids[-1])
            )
            if transcript.length + len(shown) >= limit:
                return FinishReason.LENGTH
            transcript.add_observation(shown)
            history += [Message(role="assistant", content=completion.text), observation]

    async def _end(self, playing: PlayedEpisode) -> None:
        try:
            await self._environments.end(playing)
        except EpisodeError as error:
            logger.warning("an environment failed to close: %s", error)


def _task(request: GenerationRequest) -> Task:
    prompt = request.prompt
    return Task(
        prompt=prompt.text,
        messages=prompt.messages,
        answer=prompt.answer,
        data_source=prompt.data_source,
        metadata=prompt.metadata,
        seed=request.seed,
    )


def _turn_seed(seed: int, turn: int) -> int:
    return derived_seed(seed, Domain.TURN, turn)
