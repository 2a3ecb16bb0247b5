"""Wires a run together: rewards, environments, run directory, tracker, roles, stop signals."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlstack.config.load import dump
from rlstack.config.reward import RewardConfig
from rlstack.config.rounds import SampledConfig
from rlstack.config.run import EvalConfig, RLConfig
from rlstack.config.supervised import SupervisedConfig
from rlstack.data.observations import TurnRenderer, check_prompts
from rlstack.data.tokenizer import Tokenizer
from rlstack.generation import GroupSampler
from rlstack.planning.spec import RewardModelRole, RunSpec
from rlstack.protocols import RolloutEngines, Scorer
from rlstack.run.folders import write_file
from rlstack.run.timeline import Timeline
from rlstack.run.tracking import Tracker
from rlstack.types import Prompt
from workers.environments.pool import EnvironmentPool
from workers.groups.engines import EngineGroup
from workers.groups.episodes import EpisodeEngines
from workers.groups.model_scorer import ModelGroupScorer, reward_model_role
from workers.launch.launch import WorkerGroups, launch
from workers.scoring.pool import ScorerPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a run samples responses to, and how they are judged."""

    config: RLConfig | EvalConfig | SampledConfig
    prompts: Sequence[Prompt]
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started run: what its steps work with."""

    roles: WorkerGroups
    sampler: GroupSampler | None
    """Samples from the engines, or from the environment before them; None: nothing is sampled."""
    scorer: Scorer | None
    tracker: Tracker
    timeline: Timeline
    stop: asyncio.Event
    """Set when the run is to stop after its step."""


@asynccontextmanager
async def started(
    config: RLConfig | EvalConfig | SupervisedConfig,
    spec: RunSpec,
    *,
    command: str,
    total_steps: int,
    notes: Sequence[str],
    sampling: Sampling | None = None,
) -> AsyncIterator[Running]:
    """Start what `spec` names in the run's directory; end every process on leaving.

    notes: lines to print first.

    Raises:
        RewardError: if a plugin, a reward, the environment or a parameter is wrong.
        DataError: if a prompt is no conversation that an environment can go on with.
        PlacementError: if the cluster cannot be reached or does not hold the roles.
    """
    run_dir = Path(config.run_dir)
    async with AsyncExitStack() as stack:
        scorer = with_environment = None
        if sampling is not None:
            rewards = {prompt.reward for prompt in sampling.prompts if prompt.reward}
            scorer = ScorerPool(sampling.config.reward, row_rewards=rewards)
            stack.callback(scorer.close)
            with_environment = _episodes(sampling, stack)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_file(run_dir / "config.yaml", dump(config))
        tracker = stack.enter_context(
            Tracker.open(config.tracking, run_dir=run_dir, total_steps=total_steps, title=command)
        )
        for note in notes:
            tracker.note(note)
        trains = spec.policy is not None or spec.reward_trainer is not None
        kinds = {"engines": spec.rollout is not None, "trainers": trains}
        tracker.phase(f"starting {' and '.join(kind for kind, starts in kinds.items() if starts)}")
        shared_dir = run_dir if trains else None
        roles = await stack.enter_async_context(launch(spec, shared_dir=shared_dir))
        # After Ray, which sets handlers of its own. What only measures has nothing to save.
        stop = stack.enter_context(stop_signals()) if trains else asyncio.Event()
        sampler = None
        if sampling is not None and scorer is not None and roles.engines is not None:
            _serve_reward_models(scorer, roles, sampling.config.reward)
            await scorer.ready()
            engines: RolloutEngines = roles.engines
            if with_environment is not None:
                engines = await with_environment(roles.engines)
            sampler = GroupSampler(engines=engines, scorer=scorer, seed=config.seed)
        yield Running(
            roles=roles,
            sampler=sampler,
            scorer=scorer,
            tracker=tracker,
            timeline=Timeline(run_dir, on_span=tracker.span, observers=tracker.observers),
            stop=stop,
        )


def reward_models(config: RewardConfig) -> RewardModelRole | None:
    """The reward models to launch, where a component of the reward needs some.

    Raises:
        RewardError: if the features named are not those that a model was trained with.
    """
    return None if config.model is None else reward_model_role(config.model)


def _serve_reward_models(scorer: ScorerPool, roles: WorkerGroups, config: RewardConfig) -> None:
    """Let the component `reward_model` be judged by the models that were launched, if any."""
    if config.model is not None:
        assert roles.reward_models is not None
        scorer.serve(ModelGroupScorer(roles.reward_models, config.model))


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and Ctrl-C set; the second signal interrupts at once."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    caught = (signal.SIGTERM, signal.SIGINT)
    task = asyncio.current_task()
    assert task is not None

    def on_signal() -> None:
        if event.is_set():
            task.cancel()
        event.set()

    for number in caught:
        loop.add_signal_handler(number, on_signal)
    try:
        yield event
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _episodes(
    sampling: Sampling, stack: AsyncExitStack
) -> Callable[[EngineGroup], Awaitable[RolloutEngines]] | None:
    """Start the environment's processes; what puts it before the engines. None: there is none."""
    config, environment = sampling.config, sampling.config.environment
    if environment is None:
        return None
    check_prompts(sampling.prompts)
    renderer = TurnRenderer(
        sampling.tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_observation_tokens=environment.max_observation_tokens,
    )
    pool = EnvironmentPool(environment, config.reward)
    stack.callback(pool.close)

    async def with_environment(engines: EngineGroup) -> RolloutEngines:
        await pool.ready()
        return EpisodeEngines(engines, pool, renderer, max_turns=environment.max_turns)

    return with_environment
