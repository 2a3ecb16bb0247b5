"""Two DeepSpeed ranks learn from preferences as one plain PyTorch process does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlstack.algorithms.preference_catalog import judged_loss, preference_loss
from rlstack.algorithms.preference_losses import kto_reference_point
from rlstack.batch import Rows
from rlstack.batches.preference_reference import PreferenceBatch, with_reference
from rlstack.batches.preferences import collate_pairs
from tests.algorithms.test_preference_catalog import (
    PAIR_NAMES,
    judged_batch,
    objective,
    pair_batch,
    pairs,
)
from tests.workers.conftest import Stack, run_spec, running_stack
from workers.groups.ranks import PolicyGroup

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def trainer(tied_model: Path) -> Iterator[Stack]:
    spec = run_spec(tied_model, zero_stage=1)
    assert spec.policy is not None
    yield from running_stack(replace(spec, rollout=None))


def policy_of(stack: Stack) -> PolicyGroup:
    assert stack.roles.policy is not None
    return stack.roles.policy


def plain_logprobs(model: Any, rows: Rows) -> Tensor:
    """Whole logits, no packing: float32 [B, T]."""
    logits = model(rows.token_ids, attention_mask=rows.attention_mask.long()).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, rows.token_ids[:, 1:, None]).squeeze(2)
    logprobs = torch.nn.functional.pad(logprobs, (1, 0))
    return torch.where(rows.loss_mask, logprobs, 0.0)


def loss_and_gradient_norm(model: Any, loss: Tensor) -> tuple[float, float]:
    model.zero_grad()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), float(torch.nn.utils.get_total_norm(gradients))


def current_model(stack: Stack, folder: Path) -> Any:
    folder.mkdir()
    stack.run(policy_of(stack).export(folder))
    return AutoModelForCausalLM.from_pretrained(folder)


def test_the_first_dpo_step_equals_plain_pytorch(trainer: Stack, tmp_path: Path) -> None:
    """Stays the first test of this file: Adam's state must be fresh, as the plain one's is."""
    model = AutoModelForCausalLM.from_pretrained(trainer.spec.model.path)
    batch, chosen = pair_batch(6), objective("dpo")
    found = trainer.run(policy_of(trainer).update(batch, chosen)).values()
    loss, _ = preference_loss(
        batch, plain_logprobs(model, batch), objective=chosen, prefix="preference"
    )
    expected = loss_and_gradient_norm(model, loss)
    assert (found["preference/loss"], found["policy/grad_norm"]) == pytest.approx(
        expected, rel=1e-3
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-8
    )
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    after = current_model(trainer, tmp_path / "after").state_dict()
    for name, parameter in model.named_parameters():
        # Adam's first step is the gradient's sign: where it is next to 0, rounding decides.
        clear = parameter.grad.abs() > 1e-6
        torch.testing.assert_close(
            after[name][clear], parameter.detach()[clear], atol=1e-4, rtol=0, msg=name
        )


def test_every_objective_has_plain_pytorchs_loss_and_gradient(
    trainer: Stack, tmp_path: Path
) -> None:
    for index, name in enumerate(PAIR_NAMES):
        model = current_model(trainer, tmp_path / name)
        batch, chosen = pair_batch(6, seed=index), objective(name)
        held_out = trainer.run(policy_of(trainer).evaluate(pair_batch(5), chosen)).values()
        found = trainer.run(policy_of(trainer).update(batch, chosen)).values()
        for other, prefix, values in (
            (batch, "preference", found),
            (pair_batch(5), "eval", held_out),
        ):
            loss, metrics = preference_loss(
                other, plain_logprobs(model, other), objective=chosen, prefix=prefix
            )
            expected = metrics.values()
            assert {k: v for k, v in values.items() if k in expected} == pytest.approx(
                expected, rel=1e-3, abs=1e-4
            ), name
            if prefix == "preference":
                norm = loss_and_gradient_norm(model, loss)[1]
                assert values["policy/grad_norm"] == pytest.approx(norm, rel=1e-3), name


def test_kto_takes_the_reference_point_of_all_ranks(trainer: Stack, tmp_path: Path) -> None:
    model = current_model(trainer, tmp_path / "model")
    batch, chosen = judged_batch(6), objective("kto")
    # A reference so low that the KL is above 0 for some rows and below it for others.
    sums = plain_logprobs(model, batch.mismatched).sum(1).detach()
    shift = torch.tensor([3.0, -2.0, 4.0, -1.0, 2.0, -1.0])
    batch = replace(batch, mismatched_ref_logprobs=sums - shift)
    point = kto_reference_point(sums, batch.mismatched_ref_logprobs)
    loss, metrics = judged_loss(
        batch,
        plain_logprobs(model, batch),
        reference_point=point,
        objective=chosen,
        prefix="preference",
    )
    held_out = trainer.run(policy_of(trainer).evaluate(batch, chosen)).values()
    found = trainer.run(policy_of(trainer).update(batch, chosen)).values()
    assert found["preference/kl"] == pytest.approx(5 / 6, rel=1e-3)
    expected = metrics.values()
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert held_out["eval/loss"] == pytest.approx(expected["preference/loss"], rel=1e-3)
    norm = loss_and_gradient_norm(model, loss)[1]
    assert found["policy/grad_norm"] == pytest.approx(norm, rel=1e-3)


def preferring_token(token: int, count: int, seed: int) -> PreferenceBatch:
    """Pairs of which the chosen response is the rejected one with `token` in the first place."""
    rows = []
    for pair in pairs(count, seed):
        chosen = pair.rejected_ids.copy()
        chosen[0] = token
        rejected = pair.rejected_ids.copy()
        rejected[0] = token + 1
        rows.append(replace(pair, chosen_ids=chosen, rejected_ids=rejected))
    return with_reference(
        collate_pairs(rows, pad_token_id=0), np.zeros((count, 2), dtype=np.float32)
    )


def test_a_synthetic_preference_is_learned(trainer: Stack) -> None:
    policy, chosen = policy_of(trainer), objective("dpo")

    async def learn() -> tuple[float, float]:
        async def referenced(seed: int) -> PreferenceBatch:
            batch = preferring_token(20, 8, seed)
            return replace(batch, ref_logprobs=reference[seed])

        reference = {
            seed: await policy.response_logprobs(preferring_token(20, 8, seed))
            for seed in (*range(6), 99)
        }
        before = (await policy.evaluate(await referenced(99), chosen)).values()
        for seed in range(6):
            await policy.update(await referenced(seed), chosen)
        after = (await policy.evaluate(await referenced(99), chosen)).values()
        assert before["eval/loss"] == pytest.approx(np.log(2), abs=1e-4)
        return before["eval/accuracy"], after["eval/accuracy"]

    before, after = trainer.run(learn())
    assert before < 0.6, "the policy is its own reference: all rewards are 0"
    assert after == 1.0
