"""`rlstack eval`: pass@k, maj@k, lengths of any Hugging Face checkpoint or run directory."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from rlstack.commands.preflight import check_main_model
from rlstack.commands.wiring import Running, Sampling, reward_models, started
from rlstack.config.model import ModelConfig
from rlstack.config.run import EvalConfig
from rlstack.data.dataset import load_prompts
from rlstack.errors import ConfigError
from rlstack.evaluation import evaluation_metrics
from rlstack.planning.spec import RunSpec
from rlstack.run.checkpoint import Checkpoints
from rlstack.run.progress import Summary
from rlstack.run.rollout_log import write_rollouts
from rlstack.seeds import Domain
from rlstack.types import Prompt
from workers.models.preflight import is_model_directory


def run(config: EvalConfig) -> Summary:
    """Evaluate; the metrics, which also lie in RUN_DIR/evaluation.json."""
    return asyncio.run(_run(config))


async def _run(config: EvalConfig) -> Summary:
    model = resolve_model(config.model)
    max_response_tokens = config.evaluation.max_response_tokens
    longest_row = config.data.max_prompt_tokens + max_response_tokens
    tokenizer = check_main_model(model, longest_row=longest_row)
    dataset = load_prompts(config.data.eval, tokenizer, config=config.data)
    spec = RunSpec(
        placement=config.placement,
        model=model,
        seed=config.seed,
        rollout=config.rollout,
        reward_models=reward_models(config.reward),
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        ray_address=config.ray_address,
        faults=config.faults,
    )
    async with started(
        config,
        spec,
        command="eval",
        total_steps=1,
        notes=[dataset.summary("held-out")],
        sampling=Sampling(config=config, prompts=dataset.prompts, tokenizer=tokenizer),
    ) as running:
        values = await _evaluate(config, running, dataset.prompts)
    (Path(config.run_dir) / "evaluation.json").write_text(json.dumps(values, indent=2))
    return Summary(measured=values)


async def _evaluate(
    config: EvalConfig, running: Running, prompts: Sequence[Prompt]
) -> dict[str, float]:
    """Sample and score the prompts; the metrics `eval/...`, which are logged."""
    assert running.sampler is not None
    running.tracker.phase("evaluation")
    settings = config.evaluation
    groups = await running.sampler.sample(
        prompts,
        domain=Domain.EVALUATION,
        numbers=range(len(prompts)),
        num_samples=settings.num_samples,
        sampling=settings.sampling(stop=config.rollout.stop),
        version=num_updates(config.model),
    )
    values = evaluation_metrics(groups).values()
    running.tracker.log(1, values)
    if config.tracking.save_rollouts:
        write_rollouts(groups, run_dir=Path(config.run_dir), step=1, evaluation=True)
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
    if not checkpoints.steps():
        return 0
    _, saved = checkpoints.latest()
    return saved.state.get("policy_version", 0)
