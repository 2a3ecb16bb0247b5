"""`rlstack sft`: supervised training on demonstrations, with the same trainer as RL."""

import asyncio
from functools import partial

from rlstack.batch import SFTBatch, collate_demonstrations
from rlstack.config.supervised import SFTConfig
from rlstack.data.demonstrations import load_demonstrations
from rlstack.data.held_out import without_held_out
from rlstack.stages import supervised
from rlstack.stages.supervised import Learner, Stage, Summary
from rlstack.types import Demonstration
from workers.adapter_targets import check_adapters
from workers.launch import Roles
from workers.launch_spec import LaunchSpec
from workers.loading import check_model, check_positions, load_tokenizer
from workers.specs import TrainedRole


def run(config: SFTConfig) -> Summary:
    """Train; what was achieved."""
    return asyncio.run(supervised.run(_prepare(config)))


def _prepare(config: SFTConfig) -> Stage[Demonstration, SFTBatch]:
    """Check and read everything, before any process starts."""
    supervised.check_run_dir(config, command="sft")
    check_model(config.model)
    check_adapters(config.model, config.trainer.lora, key="trainer.lora")
    check_positions(config.model, longest_row=config.longest_row)
    tokenizer = load_tokenizer(config.model)
    held_out, train = (
        load_demonstrations(
            sources,
            tokenizer,
            config=config.data,
            max_response_tokens=config.max_response_tokens,
            train_on=config.train_on,
        )
        for sources in (config.data.eval, config.data.train)
    )
    train = without_held_out(train, held_out)

    def learner(roles: Roles) -> Learner[Demonstration, SFTBatch]:
        assert roles.policy is not None
        return Learner(
            trainer=roles.policy,
            collate=partial(collate_demonstrations, pad_token_id=tokenizer.pad_token_id),
            update=roles.policy.update_supervised,
            evaluate=roles.policy.evaluate_supervised,
        )

    spec = LaunchSpec(
        placement=config.placement,
        model=config.model,
        seed=config.seed,
        policy=TrainedRole(
            model=config.model,
            trainer=config.trainer,
            total_updates=config.num_steps(len(train.prompts)),
        ),
        ray_address=config.ray_address,
    )
    return Stage(
        command="sft", config=config, train=train, held_out=held_out, spec=spec, learner=learner
    )
