"""Frozen models on a device of another role: there for a call, and gone after it.

The device is the CPU, whose memory comes and goes as a GPU's does.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from rlstack.planning.spec import RewardModelRole
from tests.tiny_model import write_tiny_model
from tests.workers.conftest import frozen_role, model_config, random_batch
from tests.workers.ranks.conftest import SMALL, held_bytes, memories
from workers import actors as make
from workers.ranks.device_memory import Guest
from workers.specs import ReferenceSpec, RewardModelSpec

pytestmark = [pytest.mark.real_stack, pytest.mark.usefixtures("deepspeed_here")]

STAGES: tuple[Literal[0, 3], ...] = (0, 3)


def is_gone(guest: Guest, *, before: set[int]) -> bool:
    assert guest._memory is not None
    return guest._memory.is_left and held_bytes(beside=before, host=guest._memory) < SMALL


@pytest.mark.parametrize("zero_stage", STAGES)
def test_a_reference(tied_model: Path, zero_stage: int) -> None:
    # Other numbers than those of the file, which would stay where the file is mapped.
    model = model_config(tied_model).model_copy(update={"dtype": "bfloat16"})
    role = replace(frozen_role(tied_model, zero_stage=zero_stage), model=model)
    batch = random_batch([20, 30, 25])
    found = []
    for is_guest in (False, True):
        before = memories()
        spec = ReferenceSpec(
            role=role,
            temperature=1.0,
            device="cpu",
            data_parallel=1,
            threads=1,
            is_guest=is_guest,
        )
        rank = make.reference(spec, rank=0)
        rank.start()
        for _ in range(2):
            if is_guest:
                assert is_gone(rank.guest, before=before)
            found.append(rank.logprobs(batch)[1])
    assert found[0].abs().sum() > 0
    assert all(values.equal(found[0]) for values in found)


@pytest.mark.parametrize("zero_stage", STAGES)
def test_reward_models(tmp_path: Path, zero_stage: Literal[0, 3]) -> None:
    write_tiny_model(tmp_path)
    config = Qwen2Config.from_pretrained(tmp_path, num_labels=1)
    torch.manual_seed(0)
    Qwen2ForSequenceClassification(config).save_pretrained(tmp_path)
    role = RewardModelRole(
        checkpoints=(str(tmp_path), str(tmp_path)),
        max_tokens=64,
        max_tokens_per_batch=64,
        dtype="bfloat16",
        zero_stage=zero_stage,
    )
    found = []
    for is_guest in (False, True):
        before = memories()
        spec = RewardModelSpec(
            role=role, device="cpu", data_parallel=1, threads=1, is_guest=is_guest
        )
        rank = make.reward_model(spec, rank=0)
        rank.start()
        for _ in range(2):
            if is_guest:
                assert is_gone(rank.guest, before=before)
            found.append(rank.score(["How many? "], ["Nine."]))
    assert np.abs(found[0]).sum() > 0
    assert all(np.array_equal(scores, found[0]) for scores in found)
