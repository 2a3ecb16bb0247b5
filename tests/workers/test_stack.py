"""The real vLLM, DeepSpeed and Ray together: weights, logprobs, updates, and dying engines."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlstack.batch import SFTBatch, TokenBatch, collate
from rlstack.types import Group, Phase, Score
from tests.workers.conftest import (
    Stack,
    generate,
    launch_spec,
    make_prompts,
    make_requests,
    running_stack,
)

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]

# ZeRO stage, tied embeddings, engines, tensor parallel
LAYOUTS = [(1, True, 2, 1), (2, False, 1, 1), (3, True, 1, 2), (3, False, 1, 1)]


@pytest.fixture(
    scope="session", params=LAYOUTS, ids=lambda p: f"zero{p[0]}-tied{p[1]}-x{p[2]}-tp{p[3]}"
)
def stack(request: pytest.FixtureRequest, tied_model: Path, untied_model: Path) -> Iterator[Stack]:
    zero_stage, tied, num_engines, tensor_parallel = request.param
    spec = launch_spec(
        tied_model if tied else untied_model,
        zero_stage=zero_stage,
        num_engines=num_engines,
        tensor_parallel=tensor_parallel,
    )
    yield from running_stack(spec)


async def sample_batch(stack: Stack, *, version: int) -> TokenBatch:
    """Rollouts of the trainer's current weights, published as `version`."""
    assert stack.roles.reallocator is not None
    await stack.roles.reallocator.enter(Phase.GENERATE, version=version)
    requests = make_requests(make_prompts(6))
    rollouts = await generate(stack.roles, requests)
    assert sorted(rollouts) == list(range(len(requests)))
    assert {int(v) for r in rollouts.values() for v in r.policy_versions} == {version}
    groups = [
        Group(prompt=r.prompt, rollouts=(r,), scores=(Score(value=0.0),))
        for _, r in sorted(rollouts.items())
    ]
    return collate(groups, pad_token_id=0)


def demonstrations(batch: TokenBatch) -> SFTBatch:
    return SFTBatch(
        token_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        loss_mask=batch.loss_mask,
        num_loss_tokens=int(batch.loss_mask.sum()),
    )


def test_engine_logprobs_equal_the_trainers_before_and_after_updates(stack: Stack) -> None:
    async def differences() -> list[float]:
        assert stack.roles.policy is not None
        found = []
        for version in range(3):
            batch = await sample_batch(stack, version=100 + version)
            trained = await stack.roles.policy.logprobs(batch)
            found.append(float((trained - batch.rollout_logprobs).abs().max()))
            moved = await stack.roles.policy.update_supervised(demonstrations(batch))
            assert moved.values()["policy/grad_norm"] > 0
            changed = await stack.roles.policy.logprobs(batch)
            assert float((trained - changed).abs().max()) > 1e-2, "the update did nothing"
        return found

    assert max(stack.run(differences())) < 1e-5


def test_same_requests_and_weights_give_the_same_bits(stack: Stack) -> None:
    async def twice() -> None:
        first = await sample_batch(stack, version=200)
        second = await sample_batch(stack, version=200)
        assert torch.equal(first.token_ids, second.token_ids)
        assert torch.equal(first.rollout_logprobs, second.rollout_logprobs)

    stack.run(twice())


def plain_adamw_step(path: Path, batch: SFTBatch) -> dict[str, Tensor]:
    """The same update in one process: whole logits, no packing, torch's own AdamW."""
    model = AutoModelForCausalLM.from_pretrained(path)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-8
    )
    logits = model(batch.token_ids, attention_mask=batch.attention_mask.long()).logits
    # Rollouts were sampled at 0.8; the trainer's logprobs are of that distribution.
    logprobs = (logits[:, :-1] / 0.8).log_softmax(-1)
    chosen = logprobs.gather(2, batch.token_ids[:, 1:, None]).squeeze(2)
    loss = -(chosen * batch.loss_mask[:, 1:]).sum() / batch.num_loss_tokens
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return dict(model.state_dict())


def test_one_update_on_two_ranks_equals_plain_pytorch(stack: Stack, tmp_path: Path) -> None:
    """From exported weights with a fresh optimizer, so it needs a trainer that has not stepped:
    the difference of two exports is compared instead."""

    async def exported(name: str) -> Path:
        assert stack.roles.policy is not None
        await stack.roles.policy.export(tmp_path / name)
        return tmp_path / name

    before = stack.run(exported("before"))
    reloaded = AutoModelForCausalLM.from_pretrained(before)
    batch = stack.run(sample_batch(stack, version=300))
    assert stack.roles.policy is not None
    trained = stack.run(stack.roles.policy.logprobs(batch))
    logits = reloaded(batch.token_ids, attention_mask=batch.attention_mask.long()).logits
    logprobs = (logits[:, :-1] / 0.8).log_softmax(-1)
    chosen = logprobs.gather(2, batch.token_ids[:, 1:, None]).squeeze(2)
    expected = torch.where(batch.loss_mask[:, 1:], chosen, 0.0)
    torch.testing.assert_close(trained[:, 1:], expected, atol=1e-5, rtol=0)


def test_an_engine_that_dies_is_replaced_and_nothing_is_counted_twice(stack: Stack) -> None:
    async def scenario() -> None:
        assert stack.roles.engines is not None
        assert stack.roles.reallocator is not None
        await stack.roles.reallocator.enter(Phase.GENERATE, version=400)
        requests = make_requests(make_prompts(16))
        expected = await generate(stack.roles, requests)
        generation = asyncio.create_task(generate(stack.roles, requests))
        await asyncio.sleep(0.05)
        ray.kill(stack.roles.engines.engines[0])
        found = await generation
        assert sorted(found) == list(range(len(requests)))
        again = await generate(stack.roles, requests)
        for request_id, rollout in again.items():
            # The replacement holds the published weights, not those of the model folder.
            np.testing.assert_array_equal(rollout.response_ids, expected[request_id].response_ids)
            assert rollout.policy_versions[0] == 400

    stack.run(scenario())
