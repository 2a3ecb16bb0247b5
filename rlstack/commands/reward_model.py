"""`rlstack reward_model`: a model that scores responses, learned from preferences."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rlstack.algorithms.preference_evaluation import (
    PairScores,
    held_out_metrics,
    joined,
    reliability,
    score_by_length,
)
from rlstack.batches.preferences import PairBatch, collate_pairs
from rlstack.commands import supervised
from rlstack.commands.preflight import preflight
from rlstack.commands.supervised import Learner, SupervisedTraining
from rlstack.config.reward_model import RewardLossConfig, RewardModelConfig
from rlstack.data.dataset import Dataset
from rlstack.data.features import feature_scale
from rlstack.data.held_out import train_and_held_out
from rlstack.data.preferences import load_preferences
from rlstack.errors import DataError
from rlstack.metrics import Metrics
from rlstack.run.folders import write_file
from rlstack.run.progress import Summary
from rlstack.types import PreferencePair
from workers.launch.launch import WorkerGroups


def run(config: RewardModelConfig) -> Summary:
    """Train; what was achieved. The model is in RUN_DIR/export."""
    return asyncio.run(supervised.run(_prepare(config)))


def _prepare(config: RewardModelConfig) -> SupervisedTraining[PreferencePair, PairBatch]:
    """Check and read everything, before any process starts."""
    tokenizer = preflight(
        config, command="reward_model", longest_row=config.longest_row, scalar=True
    )
    load = partial(
        load_preferences,
        tokenizer=tokenizer,
        config=config.data,
        max_response_tokens=config.max_response_tokens,
    )
    train, held_out = train_and_held_out(config.data, load)
    check_pairs(train, held_out, loss=config.loss)

    def learner(roles: WorkerGroups) -> Learner[PreferencePair, PairBatch]:
        trainer = roles.reward_trainer
        assert trainer is not None
        return Learner(
            trainer=trainer,
            collate=partial(collate_pairs, pad_token_id=tokenizer.pad_token_id),
            update=partial(trainer.update, objective=config.loss),
            evaluate=partial(trainer.evaluate, objective=config.loss),
            summarize=partial(_summarize, run_dir=Path(config.run_dir)),
        )

    return SupervisedTraining(
        command="reward_model",
        config=config,
        train=train,
        held_out=held_out,
        learner=learner,
        role="reward_model",
        features=feature_scale(train.prompts),
    )


def check_pairs(
    train: Dataset[PreferencePair], held_out: Dataset[PreferencePair], *, loss: RewardLossConfig
) -> None:
    """Check that the rows have what the loss and the held-out pairs need.

    Raises:
        DataError: if margins are asked for and there is none, or the features differ in number.
    """
    if loss.margin_scale and all(pair.margin is None for pair in train.prompts):
        raise DataError(
            "data.train: no row has a margin (column margin, or score_chosen and score_rejected), "
            "but loss.margin_scale asks for them; add them or set loss.margin_scale=0"
        )
    if not held_out.prompts:
        return
    ours, theirs = (len(data.prompts[0].chosen_features) for data in (train, held_out))
    if ours != theirs:
        raise DataError(
            f"data.eval: its rows have {theirs} features of each response, those of data.train "
            f"have {ours}; give both the same ones"
        )


def _summarize(parts: Sequence[PairScores], *, run_dir: Path) -> Metrics:
    """Make the metrics, and RUN_DIR/held_out.json for the report: of the latest evaluation."""
    scores = joined(parts)
    curves = {
        "reliability": [asdict(part) for part in reliability(scores)],
        "score_by_length": [asdict(part) for part in score_by_length(scores)],
    }
    write_file(run_dir / "held_out.json", json.dumps(curves))
    return held_out_metrics(scores)
