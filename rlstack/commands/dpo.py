"""`rlstack dpo`: learning from preferences in the data, or from the policy's own samples."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlstack.commands import rounds, supervised
from rlstack.commands.preference_learner import ReferenceLogprobs, judged_learner, pair_learner
from rlstack.commands.preflight import preflight
from rlstack.commands.rounds import Round, RoundsTraining
from rlstack.commands.supervised import Learner, SupervisedTraining
from rlstack.config.preference import KTOObjective
from rlstack.config.rounds import DPOConfig
from rlstack.data.held_out import train_and_held_out
from rlstack.data.mismatched import mismatched
from rlstack.data.preferences import load_judged_responses, load_preferences
from rlstack.data.reference_cache import ReferenceCache
from rlstack.data.selection import (
    best_versus_worst,
    judged_of,
    judged_record,
    judged_responses,
    pair_of,
    pair_record,
)
from rlstack.data.tokenizer import Tokenizer
from rlstack.run.progress import Summary
from workers.groups.ranks import PolicyGroup
from workers.launch.launch import WorkerGroups
from workers.models.preflight import model_fingerprint

Datasets = Mapping[str, Sequence[Any]]
"""Name -> pairs or judged responses."""

MakeLearner = Callable[[PolicyGroup, ReferenceLogprobs[Any]], Learner[Any, Any]]


def run(config: DPOConfig) -> Summary:
    """Train; what was achieved. The model is in RUN_DIR/export."""
    tokenizer = preflight(config, command="dpo", longest_row=config.longest_row)
    if config.rounds:
        return asyncio.run(rounds.run(_sampled(config, tokenizer)))
    return asyncio.run(supervised.run(_given(config, tokenizer)))


def _given(config: DPOConfig, tokenizer: Tokenizer) -> SupervisedTraining[Any, Any]:
    """The preferences of the data."""
    judged = isinstance(config.objective, KTOObjective)
    load: Callable[..., Any] = partial(
        load_judged_responses if judged else load_preferences,
        tokenizer=tokenizer,
        config=config.data,
        max_response_tokens=config.max_response_tokens,
    )
    train, held_out = train_and_held_out(config.data, load)
    datasets = {"train": train.prompts, "held_out": held_out.prompts}
    make = _learner_of(config, datasets, tokenizer)
    fingerprint = model_fingerprint(config.model)

    def learner(roles: WorkerGroups) -> Learner[Any, Any]:
        cache = ReferenceCache[Any](Path(config.run_dir) / "reference", model=fingerprint)
        return make(supervised.policy_of(roles), ReferenceLogprobs(cache=cache, datasets=datasets))

    return SupervisedTraining(
        command="dpo", config=config, train=train, held_out=held_out, learner=learner
    )


def _sampled(config: DPOConfig, tokenizer: Tokenizer) -> RoundsTraining[Any]:
    """Preferences among what the policy samples; it is its reference as a round finds it."""

    def learner(policy: PolicyGroup, current: Round, samples: Sequence[Any]) -> Learner[Any, Any]:
        # Later references are no model that lies anywhere; their rows lie in the same folder.
        first = current.number == 1
        model = model_fingerprint(config.model) if first else f"round {current.number}"
        cache = ReferenceCache[Any](current.folder / "reference", model=model)
        datasets = {"train": samples}
        return _learner_of(config, datasets, tokenizer)(
            policy, ReferenceLogprobs(cache=cache, datasets=datasets, is_policy=current.is_start)
        )

    training = partial(
        RoundsTraining, command="dpo", config=config, tokenizer=tokenizer, learner=learner
    )
    if isinstance(config.objective, KTOObjective):
        assert config.desirable_reward is not None
        return training(
            rows_per_prompt=config.rollout.num_samples,
            select=partial(judged_responses, threshold=config.desirable_reward),
            to_record=judged_record,
            from_record=judged_of,
        )
    return training(
        rows_per_prompt=1, select=best_versus_worst, to_record=pair_record, from_record=pair_of
    )


def _learner_of(config: DPOConfig, datasets: Datasets, tokenizer: Tokenizer) -> MakeLearner:
    """What makes the learner of the objective.

    Raises:
        DataError: if kto finds no prompts to put the responses of others behind.
    """
    objective, pad_token_id = config.objective, tokenizer.pad_token_id
    if not isinstance(objective, KTOObjective):
        return partial(pair_learner, objective=objective, pad_token_id=pad_token_id)
    others = {
        response: other
        for responses in datasets.values()
        if responses
        for response, other in zip(responses, mismatched(responses, seed=config.seed), strict=True)
    }
    return partial(judged_learner, objective=objective, pad_token_id=pad_token_id, others=others)
