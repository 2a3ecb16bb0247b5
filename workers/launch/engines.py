"""Starting the rollout engines, and one in the place of another that died."""

# Ray's handles are typed too loosely for these.
# pyright: reportGeneralTypeIssues=false

import asyncio

from ray.actor import ActorHandle

from rlstack.config.rollout import RolloutConfig
from rlstack.planning.spec import RunSpec
from workers.actors import EngineActor
from workers.groups.engines import EngineGroup
from workers.launch.actors import Actors
from workers.launch.environment import engine_environment
from workers.specs import EngineSpec

MAX_CONCURRENT_CALLS = 100_000
"""A turn of an episode is one, and all episodes are under way at once."""


def start_engines(actors: Actors, spec: RunSpec, rollout: RolloutConfig) -> EngineGroup:
    """The engines, which have not loaded a model yet."""
    placement = actors.placement
    layout = placement.layouts["engines"]
    engine = EngineSpec(
        model=spec.model,
        rollout=rollout,
        max_model_tokens=spec.max_prompt_tokens + spec.max_response_tokens,
        tensor_parallel=layout.tensor_parallel,
        transport=placement.transport,
        device=placement.device,
        seed=spec.seed,
        adapter_rank=spec.adapter_rank,
    )
    environment = engine_environment(engine, threads=placement.threads["engines"])

    def start(index: int) -> ActorHandle:
        return actors.start(
            "engines",
            index,
            EngineActor,
            engine,
            environment=environment,
            max_concurrency=MAX_CONCURRENT_CALLS,
        )

    async def replace(index: int, old: ActorHandle) -> ActorHandle:
        actors.end(old)
        actor = start(index)
        try:
            await actor.start.remote()
        except BaseException:
            actors.end(actor)
            raise
        return actor

    return EngineGroup(
        [start(index) for index in range(layout.data_parallel)],
        replace=replace,
        max_restarts=spec.faults.max_restarts,
    )


async def load_engines(engines: EngineGroup) -> None:
    """Let every engine load its model."""
    await asyncio.gather(*(engine.start.remote() for engine in engines.engines))
