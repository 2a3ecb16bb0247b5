"""The configured objective: its function with its numbers, on any split of the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor

from rlstack.algorithms import preference_losses
from rlstack.algorithms.preference_catalog import judged_loss, preference_loss
from rlstack.batches.preference_reference import (
    JudgedPreferenceBatch,
    PreferenceBatch,
    judged_with_reference,
    with_reference,
)
from rlstack.batches.preferences import collate_pairs
from rlstack.config.preference import KTOObjective, ObjectiveConfig, needs_reference
from rlstack.metrics import merge
from rlstack.types import JudgedResponse, PreferencePair

CONF = Path(__file__).parents[2] / "conf" / "objective"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
PAIR_NAMES = [name for name in NAMES if name != "kto"]


def objective(name: str, **changes: Any) -> Any:
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return TypeAdapter(ObjectiveConfig).validate_python(values | changes)


def tokens(generator: np.random.Generator, low: int, high: int) -> np.ndarray:
    return generator.integers(3, 90, size=generator.integers(low, high))


def pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    generator = np.random.default_rng(seed)
    return [
        PreferencePair(
            prompt_id=str(index),
            data_source="test",
            text="",
            chosen="",
            rejected="",
            prompt_ids=tokens(generator, 3, 9),
            chosen_ids=tokens(generator, 1, 12),
            rejected_ids=tokens(generator, 1, 12),
            margin=None,
            chosen_features=(),
            rejected_features=(),
            metadata={},
        )
        for index in range(count)
    ]


def judged(count: int, seed: int = 0) -> list[JudgedResponse]:
    generator = np.random.default_rng(seed)
    return [
        JudgedResponse(
            prompt_id=str(index),
            data_source="test",
            text="",
            response="",
            prompt_ids=tokens(generator, 3, 9),
            response_ids=tokens(generator, 1, 12),
            desirable=index % 3 != 0,
            metadata={},
        )
        for index in range(count)
    ]


def pair_batch(count: int, seed: int = 0) -> PreferenceBatch:
    generator = np.random.default_rng(seed)
    reference = generator.uniform(-30, -5, (count, 2)).astype(np.float32)
    return with_reference(collate_pairs(pairs(count, seed), pad_token_id=0), reference)


def judged_batch(count: int, seed: int = 0) -> JudgedPreferenceBatch:
    generator = np.random.default_rng(seed)
    reference = generator.uniform(-30, -5, (count, 2)).astype(np.float32)
    return judged_with_reference(
        judged(count, seed), judged(count, seed + 1), reference, pad_token_id=0
    )


def logprobs_for(loss_mask: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = -2 * torch.rand(loss_mask.shape, generator=generator)
    return torch.where(loss_mask, values, 0.0).requires_grad_()


def test_which_objectives_need_a_reference() -> None:
    needing = {name for name in NAMES if needs_reference(objective(name))}
    assert needing == {"dpo", "robust_dpo", "ipo", "kto"}


@pytest.mark.parametrize("name", PAIR_NAMES)
def test_the_configured_numbers_reach_the_function(name: str) -> None:
    batch = pair_batch(5)
    logprobs = logprobs_for(batch.loss_mask)
    chosen = objective(name)
    sums = (logprobs * batch.loss_mask).sum(1)
    means = sums / batch.loss_mask.sum(1)
    lengths = batch.loss_mask.sum(1)
    reference = batch.ref_logprobs
    values = means if name in ("orpo", "simpo") else sums
    arguments = [values[::2], values[1::2]]
    if needs_reference(chosen):
        arguments += [reference[::2], reference[1::2]]
    if name == "ipo":
        arguments += [lengths[::2], lengths[1::2]]
    settings = chosen.model_dump(exclude={"name"})
    expected = getattr(preference_losses, name)(*arguments, **settings)
    loss, metrics = preference_loss(batch, logprobs, objective=chosen, prefix="preference")
    torch.testing.assert_close(loss, expected.loss.mean())
    shown = metrics.values()
    margins = expected.chosen_rewards - expected.rejected_rewards
    assert shown["preference/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert shown["preference/accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert shown["preference/reward_margin"] == pytest.approx(float(margins.mean()), rel=1e-5)
    assert shown["preference/chosen_logprob"] == pytest.approx(
        float(sums[::2].detach().mean()), rel=1e-5
    )


@pytest.mark.parametrize("name", PAIR_NAMES)
def test_parts_of_a_batch_add_up_to_the_whole(name: str) -> None:
    batch = pair_batch(7)
    logprobs = logprobs_for(batch.loss_mask)
    chosen = objective(name)
    whole, metrics = preference_loss(batch, logprobs, objective=chosen, prefix="eval")
    (expected,) = torch.autograd.grad(whole, logprobs, retain_graph=True)
    parts, measured = [], []
    for part in (torch.tensor([6, 0, 2]), torch.tensor([1]), torch.tensor([3, 4, 5])):
        rows = torch.stack((2 * part, 2 * part + 1), dim=1).flatten()
        own = batch.select(part)
        torch.testing.assert_close(own.ref_logprobs, batch.ref_logprobs[rows])
        loss, found = preference_loss(own, logprobs[rows], objective=chosen, prefix="eval")
        parts.append(loss)
        measured.append(found)
    (gradient,) = torch.autograd.grad(torch.stack(parts).sum(), logprobs)
    torch.testing.assert_close(gradient, expected)
    assert merge(measured).values() == pytest.approx(metrics.values(), rel=1e-5)


def test_kto_is_its_function_and_parts_add_up() -> None:
    batch = judged_batch(7)
    logprobs = logprobs_for(batch.loss_mask)
    chosen: KTOObjective = objective("kto", desirable_weight=1.3)
    point = torch.tensor(0.7)

    def loss_of(rows: Tensor) -> tuple[Tensor, Any]:
        return judged_loss(
            batch.select(rows),
            logprobs[rows],
            reference_point=point,
            objective=chosen,
            prefix="preference",
        )

    whole, metrics = loss_of(torch.arange(7))
    expected, rewards = preference_losses.kto(
        (logprobs * batch.loss_mask).sum(1),
        batch.ref_logprobs,
        batch.desirable,
        reference_point=point,
        beta=0.1,
        desirable_weight=1.3,
        undesirable_weight=1.0,
    )
    torch.testing.assert_close(whole, expected.mean())
    shown = metrics.values()
    right = (rewards > 0.07) == batch.desirable
    assert shown["preference/accuracy"] == pytest.approx(float(right.float().mean()))
    assert shown["preference/kl"] == pytest.approx(0.7)
    good = float(rewards[batch.desirable].mean())
    assert shown["preference/desirable_reward"] == pytest.approx(good, rel=1e-5)
    first, second = loss_of(torch.tensor([5, 1, 0])), loss_of(torch.tensor([2, 3, 4, 6]))
    torch.testing.assert_close(first[0] + second[0], whole)
    assert (first[1] + second[1]).values() == pytest.approx(shown, rel=1e-5)


def test_mismatched_responses_stay_when_rows_are_selected() -> None:
    batch = judged_batch(4)
    own = batch.select(torch.tensor([2]))
    assert own.num_rows == 1
    assert own.num_responses == 4
    assert own.mismatched.num_rows == 4
    with pytest.raises(ValueError, match=r"PreferenceBatch\.ref_logprobs: expected"):
        with_reference(collate_pairs(pairs(2), pad_token_id=0), np.zeros((3, 2), np.float32))
