"""`rlstack sft`: supervised training on demonstrations, with the same trainer as RL."""

import asyncio
from functools import partial

from rlstack.algorithms.objectives import SFTObjective
from rlstack.batches.supervised import SFTBatch, collate_demonstrations
from rlstack.commands import supervised
from rlstack.commands.preflight import preflight
from rlstack.commands.supervised import Learner, SupervisedTraining
from rlstack.config.supervised import SFTConfig
from rlstack.data.demonstrations import load_demonstrations
from rlstack.data.held_out import train_and_held_out
from rlstack.run.progress import Summary
from rlstack.types import Demonstration
from workers.launch.launch import WorkerGroups


def run(config: SFTConfig) -> Summary:
    """Train; what was achieved."""
    return asyncio.run(supervised.run(_prepare(config)))


def _prepare(config: SFTConfig) -> SupervisedTraining[Demonstration, SFTBatch]:
    """Check and read everything, before any process starts."""
    tokenizer = preflight(config, command="sft", longest_row=config.longest_row)
    load = partial(
        load_demonstrations,
        tokenizer=tokenizer,
        config=config.data,
        max_response_tokens=config.max_response_tokens,
        train_on=config.train_on,
    )
    train, held_out = train_and_held_out(config.data, load)

    def learner(roles: WorkerGroups) -> Learner[Demonstration, SFTBatch]:
        policy = supervised.policy_of(roles)
        return Learner(
            trainer=policy,
            collate=partial(collate_demonstrations, pad_token_id=tokenizer.pad_token_id),
            update=partial(policy.update, objective=SFTObjective()),
            evaluate=partial(policy.evaluate, objective=SFTObjective()),
        )

    return SupervisedTraining(
        command="sft", config=config, train=train, held_out=held_out, learner=learner
    )
