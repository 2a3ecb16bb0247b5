"""`rlstack dpo`: learning from preferences in the data, or from the policy's own samples."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlstack.commands import rounds, supervised
from rlstack.commands.preference_learner import JudgedLearner, PairLearner
from rlstack.commands.preflight import preflight
from rlstack.commands.rounds import Round, RoundsTraining
from rlstack.commands.supervised import Learner, SupervisedTraining
from rlstack.config.preference import KTOObjective, PairObjective
from rlstack.config.rounds import DPOConfig
from rlstack.data.dataset import Dataset, SampleT, load_prompts
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
from rlstack.types import JudgedResponse, PreferencePair
from workers.groups.ranks import PolicyGroup
from workers.models.preflight import model_fingerprint


def run(config: DPOConfig) -> Summary:
    """Train; what was achieved. The model is in RUN_DIR/export."""
    tokenizer = preflight(config, command="dpo", longest_row=config.longest_row)
    objective = config.objective
    if isinstance(objective, KTOObjective):
        if config.rounds:
            return asyncio.run(rounds.run(_sampled_judged(config, objective, tokenizer)))
        return asyncio.run(supervised.run(_judged(config, objective, tokenizer)))
    if config.rounds:
        return asyncio.run(rounds.run(_sampled(config, objective, tokenizer)))
    return asyncio.run(supervised.run(_pairs(config, objective, tokenizer)))


def _pairs(
    config: DPOConfig, objective: PairObjective, tokenizer: Tokenizer
) -> SupervisedTraining[Any, Any]:
    """Pairs of the data."""
    train, held_out = _read(load_preferences, config, tokenizer)
    fingerprint = model_fingerprint(config.model)

    def learner(policy: PolicyGroup) -> Learner[Any, Any]:
        return PairLearner(
            policy=policy,
            objective=objective,
            cache=ReferenceCache(Path(config.run_dir) / "reference", model=fingerprint),
            datasets={"train": train.prompts, "held_out": held_out.prompts},
            pad_token_id=tokenizer.pad_token_id,
        ).learner()

    return supervised.policy_training(
        command="dpo", config=config, train=train, held_out=held_out, learner=learner
    )


def _sampled(
    config: DPOConfig, objective: PairObjective, tokenizer: Tokenizer
) -> RoundsTraining[PreferencePair]:
    """Pairs of the policy's own samples; the policy at the start of a round is its reference."""
    load = partial(load_prompts, tokenizer=tokenizer, config=config.data)
    prompts, held_out = train_and_held_out(config.data, load)

    def learner(
        policy: PolicyGroup, current: Round, pairs: Sequence[PreferencePair]
    ) -> Learner[PreferencePair, Any]:
        return PairLearner(
            policy=policy,
            objective=objective,
            cache=_round_cache(config, current),
            datasets={"train": pairs},
            pad_token_id=tokenizer.pad_token_id,
            is_reference=current.is_start,
        ).learner()

    return RoundsTraining(
        command="dpo",
        config=config,
        tokenizer=tokenizer,
        prompts=prompts,
        held_out=held_out,
        rows_per_prompt=1,
        select=best_versus_worst,
        to_record=pair_record,
        from_record=pair_of,
        learner=learner,
    )


def _sampled_judged(
    config: DPOConfig, objective: KTOObjective, tokenizer: Tokenizer
) -> RoundsTraining[JudgedResponse]:
    """Single responses that the policy sampled; its reference as for pairs."""
    load = partial(load_prompts, tokenizer=tokenizer, config=config.data)
    prompts, held_out = train_and_held_out(config.data, load)
    assert config.desirable_reward is not None

    def learner(
        policy: PolicyGroup, current: Round, responses: Sequence[JudgedResponse]
    ) -> Learner[JudgedResponse, Any]:
        others = mismatched(responses, seed=config.seed)
        return JudgedLearner(
            policy=policy,
            objective=objective,
            cache=_round_cache(config, current),
            datasets={"train": responses},
            others=dict(zip(responses, others, strict=True)),
            pad_token_id=tokenizer.pad_token_id,
            is_reference=current.is_start,
        ).learner()

    return RoundsTraining(
        command="dpo",
        config=config,
        tokenizer=tokenizer,
        prompts=prompts,
        held_out=held_out,
        rows_per_prompt=config.rollout.num_samples,
        select=partial(judged_responses, threshold=config.desirable_reward),
        to_record=judged_record,
        from_record=judged_of,
        learner=learner,
    )


def _round_cache(config: DPOConfig, current: Round) -> ReferenceCache[Any]:
    """Of the reference of a round."""
    # Later references are no model that lies anywhere; their rows lie in the same folder.
    first = current.number == 1
    reference = model_fingerprint(config.model) if first else f"round {current.number}"
    return ReferenceCache(current.folder / "reference", model=reference)


def _judged(
    config: DPOConfig, objective: KTOObjective, tokenizer: Tokenizer
) -> SupervisedTraining[Any, Any]:
    """Single responses of the data, with their labels."""
    train, held_out = _read(load_judged_responses, config, tokenizer)
    datasets = {"train": train.prompts}
    if held_out.prompts:
        datasets["held_out"] = held_out.prompts
    others = {
        response: other
        for responses in datasets.values()
        for response, other in zip(responses, mismatched(responses, seed=config.seed), strict=True)
    }
    fingerprint = model_fingerprint(config.model)

    def learner(policy: PolicyGroup) -> Learner[Any, Any]:
        return JudgedLearner(
            policy=policy,
            objective=objective,
            cache=ReferenceCache(Path(config.run_dir) / "reference", model=fingerprint),
            datasets=dict(datasets),
            others=others,
            pad_token_id=tokenizer.pad_token_id,
        ).learner()

    return supervised.policy_training(
        command="dpo", config=config, train=train, held_out=held_out, learner=learner
    )


def _read(
    load: Callable[..., Dataset[SampleT]], config: DPOConfig, tokenizer: Tokenizer
) -> tuple[Dataset[SampleT], Dataset[SampleT]]:
    """The rows of the data, for training and held out."""
    limits = {"config": config.data, "max_response_tokens": config.max_response_tokens}
    return train_and_held_out(config.data, partial(load, tokenizer=tokenizer, **limits))
