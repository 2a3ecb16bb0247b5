"""What every stage needs: clean stops, prompts, environments, served rewards."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rlstack.config.data import DataConfig
from rlstack.config.reward import RewardConfig
from rlstack.config.rounds import SampledConfig
from rlstack.config.run import EvalConfig, RLConfig
from rlstack.data.dataset import Dataset, load_prompts
from rlstack.data.held_out import without_held_out
from rlstack.data.observations import TurnRenderer, check_prompts
from rlstack.data.tokenizer import Tokenizer
from rlstack.errors import ConfigError
from rlstack.protocols import RolloutEngines
from rlstack.types import Prompt
from workers.environments.pool import EnvironmentPool
from workers.groups.engines import EngineGroup
from workers.groups.episodes import EpisodeEngines
from workers.groups.model_scorer import ModelGroupScorer, reward_model_spec
from workers.launch.launch import Roles
from workers.scoring.pool import ScorerPool
from workers.specs import RewardModelSpec


def check_unused(run_dir: Path, *, command: str) -> None:
    """A new run must not be written into an old one's files.

    Raises:
        ConfigError: if `run_dir` holds a run already.
    """
    metrics = run_dir / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        raise ConfigError(
            f"run_dir: {run_dir} holds a run already; continue it with rlstack {command} "
            f"resume={run_dir}, or choose another run_dir"
        )


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


def load_train_and_held_out(
    config: DataConfig, tokenizer: Tokenizer
) -> tuple[Dataset[Prompt], Dataset[Prompt]]:
    """The prompts to train on, and those that are held out and so no part of them.

    Raises:
        DataError: naming every bad row.
    """
    held_out = load_prompts(config.eval, tokenizer, config=config)
    train = load_prompts(config.train, tokenizer, config=config)
    return without_held_out(train, held_out), held_out


def reward_models(config: RewardConfig) -> RewardModelSpec | None:
    """The reward models to launch, where a component of the reward needs some.

    Raises:
        RewardError: if the features named are not those that a model was trained with.
    """
    return None if config.model is None else reward_model_spec(config.model)


def serve_reward_models(scorer: ScorerPool, roles: Roles, config: RewardConfig) -> None:
    """Let the component `reward_model` be judged by the models that were launched, if any."""
    if config.model is not None:
        assert roles.reward_models is not None
        scorer.serve(ModelGroupScorer(roles.reward_models, config.model))


@contextmanager
def episodes(
    config: RLConfig | EvalConfig | SampledConfig, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> Iterator[Callable[[EngineGroup], Awaitable[RolloutEngines]]]:
    """What puts the run's environment before its engines; without one it leaves them as they are.

    The environment's processes live as long as the context.

    Raises:
        RewardError: if a plugin, the environment or a parameter is wrong.
        DataError: if a prompt is no conversation, or the chat template cannot continue one.
    """

    async def without(engines: EngineGroup) -> RolloutEngines:
        return engines

    environment = config.environment
    if environment is None:
        yield without
        return
    check_prompts(prompts)
    renderer = TurnRenderer(
        tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_observation_tokens=environment.max_observation_tokens,
    )
    pool = EnvironmentPool(environment, config.reward)

    async def with_environment(engines: EngineGroup) -> RolloutEngines:
        await pool.ready()
        return EpisodeEngines(engines, pool, renderer, max_turns=environment.max_turns)

    try:
        yield with_environment
    finally:
        pool.close()
