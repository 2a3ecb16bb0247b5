"""`rlstack rejection_sampling`: sample, verify, keep the best, train on them, repeat.

A command of its own and not a mode of `sft`: its data are prompts, judged by rewards, where those
of `sft` are conversations.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from rlstack.algorithms.objectives import SFTObjective
from rlstack.batches.supervised import SFTBatch, collate_demonstrations
from rlstack.commands import rounds, supervised
from rlstack.commands.common import load_train_and_held_out
from rlstack.commands.rounds import Round, RoundsStage
from rlstack.commands.supervised import Learner
from rlstack.config.rounds import RejectionSamplingConfig
from rlstack.data.selection import (
    KeptResponse,
    kept_of,
    kept_record,
    kept_responses,
)
from rlstack.run.progress import Summary
from workers.groups.ranks import PolicyGroup
from workers.models.adapter_targets import check_adapters
from workers.models.preflight import check_model, check_positions, load_tokenizer


def run(config: RejectionSamplingConfig) -> Summary:
    """Train; what was achieved. The model is in RUN_DIR/export."""
    supervised.check_run_dir(config, command="rejection_sampling")
    check_model(config.model)
    check_adapters(config.model, config.trainer.lora, key="trainer.lora")
    check_positions(config.model, longest_row=config.longest_row)
    tokenizer = load_tokenizer(config.model)
    prompts, held_out = load_train_and_held_out(config.data, tokenizer)

    def learner(
        policy: PolicyGroup, _: Round, __: Sequence[KeptResponse]
    ) -> Learner[KeptResponse, SFTBatch]:
        def collate(kept: Sequence[KeptResponse]) -> SFTBatch:
            rows = [response.demonstration() for response in kept]
            return collate_demonstrations(rows, pad_token_id=tokenizer.pad_token_id)

        return Learner(
            trainer=policy,
            collate=collate,
            update=partial(policy.update, objective=SFTObjective()),
            evaluate=partial(policy.evaluate, objective=SFTObjective()),
        )

    stage = RoundsStage(
        command="rejection_sampling",
        config=config,
        tokenizer=tokenizer,
        prompts=prompts,
        held_out=held_out,
        rows_per_prompt=min(config.keep.per_prompt, config.rollout.num_samples),
        select=partial(
            kept_responses,
            min_reward=config.keep.min_reward,
            per_prompt=config.keep.per_prompt,
        ),
        to_record=kept_record,
        from_record=kept_of,
        learner=learner,
    )
    return asyncio.run(rounds.run(stage))
