"""`algorithm=distillation`: advantages from a teacher."""

import dataclasses
import math

import torch

from rlstack.algorithms.catalog import estimate_advantages
from tests.algorithms.test_catalog import ROWS, algorithm, token_batch
from tests.config.test_load import TEACHER


def test_distillation_compares_with_the_teacher_token_by_token_and_with_no_reward() -> None:
    config = algorithm(
        "algorithm=distillation", *TEACHER["distillation"], "algorithm.advantage.weight=0.5"
    )
    batch = token_batch()
    mask = batch.loss_mask
    generator = torch.Generator().manual_seed(1)
    student, teacher = (
        torch.where(mask, -torch.rand(mask.shape, generator=generator), 0.0) for _ in range(2)
    )
    assert config.needs_reference
    found = [
        estimate_advantages(
            dataclasses.replace(batch, rewards=rewards),
            student,
            teacher,
            config=config,
            kl_coef=0.0,
        ).advantages
        for rewards in (batch.rewards, torch.full((ROWS,), math.nan))
    ]
    torch.testing.assert_close(found[0], 0.5 * (teacher - student))
    assert torch.equal(*found)
