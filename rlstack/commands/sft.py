"""`rlstack sft`: supervised training on demonstrations, with the same trainer as RL."""

import asyncio
from functools import partial

from rlstack.algorithms.objectives import SFTObjective
from rlstack.batches.supervised import SFTBatch, collate_demonstrations
from rlstack.commands import supervised
from rlstack.commands.supervised import Learner, Stage
from rlstack.config.supervised import SFTConfig
from rlstack.data.demonstrations import load_demonstrations
from rlstack.data.held_out import without_held_out
from rlstack.run.progress import Summary
from rlstack.types import Demonstration
from workers.groups.ranks import PolicyGroup
from workers.models.adapter_targets import check_adapters
from workers.models.preflight import check_model, check_positions, load_tokenizer


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

    def learner(policy: PolicyGroup) -> Learner[Demonstration, SFTBatch]:
        return Learner(
            trainer=policy,
            collate=partial(collate_demonstrations, pad_token_id=tokenizer.pad_token_id),
            update=partial(policy.update, objective=SFTObjective()),
            evaluate=partial(policy.evaluate, objective=SFTObjective()),
        )

    return supervised.policy_stage(
        command="sft", config=config, train=train, held_out=held_out, learner=learner
    )
