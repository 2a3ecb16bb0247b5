"""The group of reward models on a real Ray."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from rewards.models.sequence_scorer import SequenceScorer
from rlstack.planning.spec import RewardModelRole, RunSpec
from tests.tiny_model import write_tiny_model
from tests.workers.conftest import faults_config, model_config, placement_config
from workers.groups.reward_models import share_rows
from workers.launch.launch import launch


def test_rows_are_shared_evenly() -> None:
    assert share_rows([], 2) == [(), ()]
    assert share_rows([5], 3) == [(0,), (), ()]
    shares = share_rows([9, 1, 8, 2, 0], 2)
    assert sorted(row for rows in shares for row in rows) == [0, 1, 2, 3, 4]
    assert [sum([9, 1, 8, 2, 1][row] for row in rows) for rows in shares] in ([10, 11], [11, 10])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("reward_models")
    for seed in range(2):
        write_tiny_model(folder / str(seed))
        config = Qwen2Config.from_pretrained(folder / str(seed), num_labels=1)
        torch.manual_seed(seed)
        Qwen2ForSequenceClassification(config).save_pretrained(folder / str(seed))
    return tuple(str(folder / str(seed)) for seed in range(2))


def held(actor: Any) -> tuple[int, int]:
    """Numbers that a rank holds in parameters, and in its shares of them."""
    parameters = [p for model in actor.rank.models for p in model._model.parameters()]
    shares = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    return sum(p.numel() for p in parameters), sum(share.numel() for share in shares)


@pytest.mark.real_stack
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_two_ranks_score_as_one_process_does(
    checkpoints: tuple[str, ...], zero_stage: Literal[0, 3]
) -> None:
    models = RewardModelRole(
        checkpoints=checkpoints,
        max_tokens=200,
        max_tokens_per_batch=200,
        dtype="float32",
        zero_stage=zero_stage,
    )
    spec = RunSpec(
        faults=faults_config(),
        placement=placement_config(reward_model={"ranks": 2, "devices": "own"}),
        model=model_config(Path(checkpoints[0])),
        seed=0,
        reward_models=models,
    )
    prompts = ["What is 2 + 3?\n"] * 7
    responses = ["5", "six", "", "x" * 150, "5", "It is 5.", "7" * 20]

    async def scored() -> list[np.ndarray]:
        async with launch(spec) as roles:
            group = roles.reward_models
            assert group is not None
            numbers = [await rank.__ray_call__.remote(held) for rank in group.ranks]
            for whole, shares in numbers:
                assert (whole == 0) == (shares > 0) == (zero_stage == 3)
            # Of one row the second rank gets nothing; of all of them it has fewer batches.
            sizes = (7, 1, 0)
            return [await group.score(prompts[:size], responses[:size]) for size in sizes]

    found, first, nothing = asyncio.run(scored())
    assert nothing.size == 0
    np.testing.assert_allclose(first, found[:, :1], atol=1e-5)
    for row, checkpoint in zip(found, checkpoints, strict=True):
        model = SequenceScorer(checkpoint, max_tokens=200, max_tokens_per_batch=200)
        alone = [
            model.score(model.token_ids([prompt], [text]))[0]
            for prompt, text in zip(prompts, responses, strict=True)
        ]
        np.testing.assert_allclose(row, alone, atol=1e-5)
