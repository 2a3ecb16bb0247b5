"""`rlstack dpo`: learning from preferences in the data, or from the policy's own samples."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlstack.commands import rounds, supervised
from rlstack.commands.common import load_train_and_held_out
from rlstack.commands.preference_learner import JudgedLearner, PairLearner
from rlstack.commands.rounds import Round, RoundsStage
from rlstack.commands.supervised import Learner, Stage
from rlstack.config.preference import KTOObjective, PairObjective
from rlstack.config.rounds import DPOConfig
from rlstack.data.dataset import Dataset, SampleT
from rlstack.data.held_out import without_held_out
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
from workers.models.adapter_targets import check_adapters
from workers.models.preflight import check_model, check_positions, load_tokenizer, model_fingerprint


def run(config: DPOConfig) -> Summary:
    """Train; what was achieved. The model is in RUN_DIR/export."""
    supervised.check_run_dir(config, command="dpo")
    check_model(config.model)
    check_adapters(config.model, config.trainer.lora, key="trainer.lora")
    check_positions(config.model, longest_row=config.longest_row)
    tokenizer = load_tokenizer(config.model)
    objective = config.objective
    if isinstance(objective, KTOObjective):
        if config.rounds:
            return asyncio.run(rounds.run(_sampled_judged(config, objective, tokenizer)))
        return asyncio.run(supervised.run(_judged(config, objective, tokenizer)))
    if config.rounds:
        return asyncio.run(rounds.run(_sampled(config, objective, tokenizer)))
    return asyncio.run(supervised.run(_pairs(config, objective, tokenizer)))


def _pairs(config: DPOConfig, objective: PairObjective, tokenizer: Tokenizer) -> Stage[Any, Any]:
    """Pairs of the data."""
    train, held_out = _load(load_preferences, config, tokenizer)
    fingerprint = model_fingerprint(config.model)

    def learner(policy: PolicyGroup) -> Learner[Any, Any]:
        return PairLearner(
            policy=policy,
            objective=objective,
            cache=ReferenceCache(Path(config.run_dir) / "reference", model=fingerprint),
            datasets={"train": train.prompts, "held_out": held_out.prompts},
            pad_token_id=tokenizer.pad_token_id,
        ).learner()

    return supervised.policy_stage(
        command="dpo", config=config, train=train, held_out=held_out, learner=learner
    )


def _sampled(
    config: DPOConfig, objective: PairObjective, tokenizer: Tokenizer
) -> RoundsStage[PreferencePair]:
    """Pairs of the policy's own samples; the policy at the start of a round is its reference."""
    prompts, held_out = load_train_and_held_out(config.data, tokenizer)

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

    return RoundsStage(
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
) -> RoundsStage[JudgedResponse]:
    """Single responses that the policy sampled; its reference as for pairs."""
    prompts, held_out = load_train_and_held_out(config.data, tokenizer)
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

    return RoundsStage(
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


def _judged(config: DPOConfig, objective: KTOObjective, tokenizer: Tokenizer) -> Stage[Any, Any]:
    """Single responses of the data, with their labels."""
    train, held_out = _load(load_judged_responses, config, tokenizer)
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

    return supervised.policy_stage(
        command="dpo", config=config, train=train, held_out=held_out, learner=learner
    )


def _load(
    load: Callable[..., Dataset[SampleT]], config: DPOConfig, tokenizer: Tokenizer
) -> tuple[Dataset[SampleT], Dataset[SampleT]]:
    train, held_out = (
        load(
            sources,
            tokenizer,
            config=config.data,
            max_response_tokens=config.max_response_tokens,
        )
        for sources in (config.data.train, config.data.eval)
    )
    return without_held_out(train, held_out), held_out
