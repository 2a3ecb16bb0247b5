"""`rlstack rejection_sampling`: sample, verify, keep the best, train on them, repeat.

A command of its own and not a mode of `sft`: its data are prompts, judged by rewards, where those
of `sft` are conversations.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from rlstack.algorithms.objectives import SFTObjective
from rlstack.batches.supervised import SFTBatch, collate_demonstrations
from rlstack.commands import rounds
from rlstack.commands.preflight import preflight
from rlstack.commands.rounds import Round, RoundsTraining
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


def run(config: RejectionSamplingConfig) -> Summary:
    """Train; what was achieved. The model is in RUN_DIR/export."""
    tokenizer = preflight(config, command="rejection_sampling", longest_row=config.longest_row)

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

    keep = config.keep
    training = RoundsTraining(
        command="rejection_sampling",
        config=config,
        tokenizer=tokenizer,
        rows_per_prompt=min(keep.per_prompt, config.rollout.num_samples),
        select=partial(kept_responses, min_reward=keep.min_reward, per_prompt=keep.per_prompt),
        to_record=kept_record,
        from_record=kept_of,
        learner=learner,
    )
    return asyncio.run(rounds.run(training))
