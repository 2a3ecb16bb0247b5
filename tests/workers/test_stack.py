"""The real vLLM, DeepSpeed and Ray together: weights, logprobs, updates, and dying engines."""

import asyncio
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlstack.algorithms.objectives import SFTObjective
from rlstack.batch import TokenBatch, collate
from rlstack.batches.supervised import SFTBatch
from rlstack.data.observations import TurnRenderer
from rlstack.data.rendering import render_prompt
from rlstack.planning.phases import Transport
from rlstack.types import (
    Example,
    FinishReason,
    GenerationRequest,
    Group,
    Message,
    Phase,
    Prompt,
    Rollout,
    SamplingSettings,
    Score,
)
from tests.workers.conftest import (
    MAX_PROMPT_TOKENS,
    MAX_RESPONSE_TOKENS,
    Stack,
    environment_pool,
    generate,
    make_prompts,
    make_requests,
    run_spec,
    running_stack,
)
from workers.groups.episodes import EpisodeEngines

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(600)]

LEARNING_RATE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What differs from one running stack to the next."""

    zero_stage: int
    tied: bool
    num_engines: int = 1
    tensor_parallel: int = 1
    transport: Transport = Transport.SHARED_MEMORY

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        engines = f"{self.num_engines}x{self.tensor_parallel}"
        return f"zero{self.zero_stage}-{tied}-{engines}-{self.transport.value}"


LAYOUTS = [
    Layout(zero_stage=1, tied=True, num_engines=2),
    Layout(zero_stage=2, tied=True, tensor_parallel=2),
    Layout(zero_stage=3, tied=False, transport=Transport.GLOO),
]
"""ZeRO-3 with tied weights is in test_lora."""


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def stack(request: pytest.FixtureRequest, tied_model: Path, untied_model: Path) -> Iterator[Stack]:
    layout: Layout = request.param
    spec = run_spec(
        tied_model if layout.tied else untied_model,
        zero_stage=layout.zero_stage,
        num_engines=layout.num_engines,
        tensor_parallel=layout.tensor_parallel,
    )
    with pytest.MonkeyPatch.context() as patch:
        # Gloo is chosen where engines are on other nodes; it works on one just as well.
        patch.setattr("rlstack.planning.placement.choose_transport", lambda **_: layout.transport)
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
        Group(number=0, prompt=r.prompt, rollouts=(r,), scores=(Score(value=0.0),))
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


def plain_adamw_step(path: Path, batch: SFTBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same update in one process: whole logits, no packing, torch's own AdamW.

    Returns weights and clipped gradients by name.
    """
    model = AutoModelForCausalLM.from_pretrained(path)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-8
    )
    logits = model(batch.token_ids, attention_mask=batch.attention_mask.long()).logits
    # Rollouts were sampled at 0.8; the trainer's logprobs are of that distribution.
    logprobs = (logits[:, :-1] / 0.8).log_softmax(-1)
    chosen = logprobs.gather(2, batch.token_ids[:, 1:, None]).squeeze(2)
    loss = -torch.where(batch.loss_mask[:, 1:], chosen, 0.0).sum() / batch.num_loss_tokens
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return dict(model.state_dict()), gradients


def test_the_first_update_of_two_ranks_equals_plain_pytorch(stack: Stack, tmp_path: Path) -> None:
    """Packed, chunked, sharded and summed over ranks, against none of it.

    Stays the first test of this file: Adam's state must be fresh, as the plain optimizer's is.
    """
    policy = stack.roles.policy
    assert policy is not None
    batch = demonstrations(stack.run(sample_batch(stack, version=1)))
    (tmp_path / "after").mkdir()
    stack.run(policy.update(batch, SFTObjective()))
    stack.run(policy.export(tmp_path / "after"))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "after").state_dict()
    expected, gradients = plain_adamw_step(Path(stack.spec.model.path), batch)
    compared = 0
    for name, gradient in gradients.items():
        # Adam's first step is the gradient's sign: where it is next to 0, rounding decides.
        clear = gradient.abs() > 1e-6
        assert torch.equal(found[name][gradient == 0], expected[name][gradient == 0]), name
        torch.testing.assert_close(found[name][clear], expected[name][clear], atol=1e-4, rtol=0)
        compared += int(clear.sum())
    assert compared > 0.5 * sum(p.numel() for p in gradients.values())


def part(batch: SFTBatch, num_rows: int) -> SFTBatch:
    rows = batch.select(torch.arange(num_rows))
    return dataclasses.replace(rows, num_loss_tokens=int(rows.loss_mask.sum()))


def test_held_out_loss_equals_plain_pytorch_for_any_number_of_rows(
    stack: Stack, tmp_path: Path
) -> None:
    policy = stack.roles.policy
    assert policy is not None
    batch = demonstrations(stack.run(sample_batch(stack, version=2)))
    stack.run(policy.export(tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for num_rows in (1, 7):  # of two ranks
        rows = part(batch, num_rows)
        found = stack.run(policy.evaluate(rows, SFTObjective())).values()
        with torch.no_grad():
            logits = model(rows.token_ids, attention_mask=rows.attention_mask.long()).logits
        logprobs = (logits[:, :-1] / 0.8).log_softmax(-1)
        chosen = logprobs.gather(2, rows.token_ids[:, 1:, None]).squeeze(2)
        mask = rows.loss_mask[:, 1:]
        assert found["eval/loss"] == pytest.approx(-float(chosen[mask].mean()), abs=1e-5)
        likeliest = logprobs.argmax(-1) == rows.token_ids[:, 1:]
        assert found["eval/token_accuracy"] == pytest.approx(float(likeliest[mask].float().mean()))


def test_engine_logprobs_equal_the_trainers_before_and_after_updates(stack: Stack) -> None:
    async def differences() -> list[float]:
        assert stack.roles.policy is not None
        found = []
        for version in range(3):
            batch = await sample_batch(stack, version=100 + version)
            trained = await stack.roles.policy.logprobs(batch)
            found.append(float((trained - batch.rollout_logprobs).abs().max()))
            moved = await stack.roles.policy.update(demonstrations(batch), SFTObjective())
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


LETTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789")

ECHO = """
from rewards.environments.registry import register_environment
from rlstack.types import Task, Turn

@register_environment("echo")
class Echo:
    def __init__(self, *, turns: int) -> None:
        self.turns = turns

    def reset(self, task: Task) -> str:
        self.past = 0
        return f"seed {task.seed}"

    def step(self, action: str) -> Turn:
        self.past += 1
        observation = f"{self.past}{action[-1:]}"
        return Turn(observation=observation, done=self.past == self.turns, reward=0.5)
"""


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugins") / "echo.py"
    path.write_text(ECHO)
    return str(path)


def chat_prompts(tokenizer: PreTrainedTokenizerFast, count: int) -> list[Prompt]:
    examples = [
        Example(
            example_id=str(index),
            data_source="chat",
            messages=(Message(role="user", content=f"say {index}"),),
        )
        for index in range(count)
    ]
    return [render_prompt(e, tokenizer=tokenizer, system_prompt=None) for e in examples]


async def play(engines: EpisodeEngines, requests: list[GenerationRequest]) -> dict[int, Rollout]:
    sampling = SamplingSettings(
        temperature=0.8, max_response_tokens=MAX_RESPONSE_TOKENS, stop=LETTERS
    )
    return {number: rollout async for number, rollout in engines.generate(requests, sampling)}


def test_episodes_train_on_what_the_engine_sampled(stack: Stack, echo: str, tmp_path: Path) -> None:
    """Three turns a rollout: logprobs of the sampled tokens against transformers on whole rows."""
    tokenizer = AutoTokenizer.from_pretrained(stack.spec.model.path)
    renderer = TurnRenderer(
        tokenizer, max_prompt_tokens=MAX_PROMPT_TOKENS, max_observation_tokens=8
    )
    pool = environment_pool("echo", {"turns": 3}, plugins=(echo,))
    requests = make_requests(chat_prompts(tokenizer, 4), num_samples=8)

    async def scenario() -> dict[int, Rollout]:
        assert stack.roles.engines is not None
        assert stack.roles.policy is not None
        assert stack.roles.reallocator is not None
        await stack.roles.reallocator.enter(Phase.GENERATE, version=500)
        await stack.roles.policy.export(tmp_path)
        await pool.ready()
        engines = EpisodeEngines(stack.roles.engines, pool, renderer, max_turns=5)
        return await play(engines, requests)

    try:
        found = stack.run(scenario())
    finally:
        pool.close()
    assert sorted(found) == list(range(len(requests)))
    for rollout in found.values():
        assert set(rollout.policy_versions.tolist()) == {500}
        assert_every_token_is_accounted_for(rollout, tokenizer)
        expected = logprobs_of_row(tmp_path, rollout)
        np.testing.assert_allclose(rollout.logprobs, expected, atol=1e-4, rtol=0)
    last_tokens = [r.response_ids[turn.end - 1] for r in found.values() for turn in r.turns]
    assert tokenizer.eos_token_id in last_tokens  # others were ended by a stop string
    finished = [r for r in found.values() if r.finish_reason is FinishReason.STOP]
    assert len(finished) > len(found) / 2
    assert all(len(rollout.turns) == 3 for rollout in finished)


def assert_every_token_is_accounted_for(
    rollout: Rollout, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Actions as they were sampled, and between them what the template writes."""
    ids, start = rollout.response_ids, 0
    for turn in rollout.turns:
        text = tokenizer.decode(ids[start : turn.end]).removesuffix(tokenizer.eos_token)
        assert text == turn.action
        assert rollout.loss_mask[start : turn.end].all()
        start = turn.end
        if turn is not rollout.turns[-1]:
            assert turn.answer is not None
            observation = tokenizer.encode(f"\n{turn.answer.observation}\n")
            start += len(observation)
            assert ids[turn.end : start].tolist() == observation
            assert not rollout.loss_mask[turn.end : start].any()
    assert start == len(ids)


def logprobs_of_row(model_path: Path, rollout: Rollout) -> Tensor:
    """Float32 [R] by transformers, prompt and response in one pass; 0 on observations."""
    model = AutoModelForCausalLM.from_pretrained(model_path)
    row = torch.tensor([*rollout.prompt.token_ids.tolist(), *rollout.response_ids.tolist()])
    with torch.no_grad():
        logprobs = (model(row[None]).logits[0] / 0.8).log_softmax(-1)
    chosen = logprobs[:-1].gather(1, row[1:, None]).squeeze(1)[-len(rollout.response_ids) :]
    return torch.where(torch.from_numpy(rollout.loss_mask), chosen, 0.0)
