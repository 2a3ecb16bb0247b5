"""`rlstack eval`: pass@k, maj@k, lengths of any Hugging Face checkpoint or run directory."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

from rlstack.commands.common import episodes, reward_models, serve_reward_models
from rlstack.config.load import dump
from rlstack.config.model import ModelConfig
from rlstack.config.run import EvalConfig
from rlstack.controller import sample_groups
from rlstack.data.dataset import load_prompts
from rlstack.errors import ConfigError
from rlstack.evaluation import evaluation_metrics
from rlstack.planning.spec import RunSpec
from rlstack.run.checkpoint import Checkpoints
from rlstack.run.rollout_log import write_rollouts
from rlstack.run.tracking import Tracker
from rlstack.seeds import Domain
from rlstack.types import SamplingSettings
from workers.launch.launch import launch
from workers.models.preflight import (
    check_model,
    check_positions,
    is_model_directory,
    load_tokenizer,
)
from workers.scoring.pool import ScorerPool


def run(config: EvalConfig) -> dict[str, float]:
    """Evaluate and print; the metrics, which also lie in RUN_DIR/evaluation.json."""
    return asyncio.run(_run(config))


async def _run(config: EvalConfig) -> dict[str, float]:
    run_dir = Path(config.run_dir)
    model = resolve_model(config.model)
    settings = config.evaluation
    check_model(model)
    longest_row = config.data.max_prompt_tokens + settings.max_response_tokens
    check_positions(model, longest_row=longest_row)
    tokenizer = load_tokenizer(model)
    prompts = load_prompts(config.data.eval, tokenizer, config=config.data)
    async with AsyncExitStack() as stack:
        row_rewards = {prompt.reward for prompt in prompts.prompts if prompt.reward}
        scorer = ScorerPool(config.reward, row_rewards=row_rewards)
        stack.callback(scorer.close)
        with_environment = stack.enter_context(episodes(config, tokenizer, prompts.prompts))
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(dump(config))
        tracker = stack.enter_context(
            Tracker.open(config.tracking, run_dir=run_dir, total_steps=1, title="eval")
        )
        tracker.note(prompts.summary("held-out"))
        tracker.phase("starting engines")
        spec = RunSpec(
            placement=config.placement,
            model=model,
            seed=config.seed,
            rollout=config.rollout,
            reward_models=reward_models(config.reward),
            max_prompt_tokens=config.data.max_prompt_tokens,
            max_response_tokens=settings.max_response_tokens,
            ray_address=config.ray_address,
        )
        running = await stack.enter_async_context(launch(spec))
        assert running.engines is not None
        serve_reward_models(scorer, running, config.reward)
        await scorer.ready()
        tracker.phase("evaluation")
        groups = await sample_groups(
            prompts.prompts,
            engines=await with_environment(running.engines),
            scorer=scorer,
            num_samples=settings.num_samples,
            sampling=SamplingSettings(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_response_tokens=settings.max_response_tokens,
                stop=config.rollout.stop,
            ),
            seed=config.seed,
            domain=Domain.EVALUATION,
            numbers=range(len(prompts.prompts)),
            step=num_updates(config.model),
        )
        values = evaluation_metrics(groups).values()
        tracker.log(1, values)
        if config.tracking.save_rollouts:
            write_rollouts(groups, run_dir=run_dir, step=1, evaluation=True)
    (run_dir / "evaluation.json").write_text(json.dumps(values, indent=2))
    return values


def resolve_model(model: ModelConfig) -> ModelConfig:
    """`model.path` of a run directory means the policy it exported.

    Raises:
        ConfigError: if the run directory holds none.
    """
    path = Path(model.path)
    if not (path / "config.yaml").is_file() or is_model_directory(path):
        return model
    if is_model_directory(path / "export"):
        return model.model_copy(update={"path": str(path / "export")})
    raise ConfigError(
        f"model.path: run directory {path} has no export/ yet; finish the run "
        f"(resume={path}) with checkpoint.export=true, or name a model folder"
    )


def num_updates(model: ModelConfig) -> int:
    """Updates behind the policy of a run directory, at which weight schedules are evaluated.

    Its latest checkpoint says so; 0 where there is none, and for a model folder or hub name.

    Raises:
        CheckpointError: if that checkpoint cannot be read.
    """
    checkpoints = Checkpoints(Path(model.path), keep_last=1)
    return checkpoints.latest()[1].policy_version if checkpoints.steps() else 0
