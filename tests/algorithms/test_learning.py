"""Every shipped algorithm learns a small language, and unlearns it with the sign turned round.

The policy is a table of logits, one for each prompt and position. A prompt asks for four words, and
the reward is the share of them that are right.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlstack.algorithms.catalog import critic_loss, estimate_advantages, policy_loss
from rlstack.batch import TokenBatch
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.minibatches import Forward, critic_batch, policy_batch
from tests.config.test_load import CONF, rl_values

# Distillation learns from a teacher and not from rewards: it has a test of its own.
ALGORITHMS = sorted(
    path.stem for path in Path(CONF / "algorithm").glob("*.yaml") if path.stem != "distillation"
)
VOCABULARY, LENGTH, PROMPTS, SAMPLES = 8, 4, 4, 16
STEPS, UPDATES, LEARNING_RATE = 60, 2, 0.1
NEARLY_OPTIMAL = 0.9  # a KL in the reward costs a little of it
"""Chance gives an eighth."""


def logprobs_of(table: Tensor, token_ids: Tensor) -> Tensor:
    """Float32 [B, 1 + LENGTH]: row b is a response to prompt b // SAMPLES; 0 for the prompt."""
    words = table.log_softmax(-1).repeat_interleave(SAMPLES, dim=0)
    chosen = words.gather(-1, token_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(chosen, (1, 0))


def rollouts(
    table: Tensor, targets: Tensor, generator: torch.Generator, *, greedy_baseline: bool
) -> TokenBatch:
    """Responses of an engine whose logits differ a little from the trainer's."""
    engine = table + 0.02 * torch.randn(table.shape, generator=generator)
    words = engine.softmax(-1).repeat_interleave(SAMPLES, dim=0).flatten(0, 1)
    responses = torch.multinomial(words, 1, generator=generator).view(-1, LENGTH)
    token_ids = torch.nn.functional.pad(responses, (1, 0))
    right = responses == targets.repeat_interleave(SAMPLES, dim=0)
    loss_mask = torch.ones_like(token_ids, dtype=torch.bool)
    loss_mask[:, 0] = False
    greedy = (engine.argmax(-1) == targets).float().mean(dim=1).repeat_interleave(SAMPLES)
    return TokenBatch(
        token_ids=token_ids,
        attention_mask=torch.ones_like(loss_mask),
        loss_mask=loss_mask,
        rollout_logprobs=logprobs_of(engine, token_ids),
        group_ids=torch.arange(PROMPTS).repeat_interleave(SAMPLES),
        rewards=right.float().mean(dim=1),
        baseline_rewards=greedy if greedy_baseline else None,
    )


def values_of(critic: torch.Tensor) -> torch.Tensor:
    """Every rollout of a prompt has its prompt's values, behind the prompt's own token."""
    return torch.nn.functional.pad(critic.repeat_interleave(SAMPLES, dim=0), (1, 0))


def train(config: RLConfig, *, sign: float) -> float:
    """The expected reward after training on advantages times `sign`."""
    algorithm = config.algorithm
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(VOCABULARY, (PROMPTS, LENGTH), generator=generator)
    table = torch.zeros(PROMPTS, LENGTH, VOCABULARY, requires_grad=True)
    critic = torch.zeros(PROMPTS, LENGTH, requires_grad=True)
    optimizer = torch.optim.Adam([table, critic], lr=LEARNING_RATE)
    reference = torch.zeros_like(table)
    every_row = torch.arange(PROMPTS * SAMPLES)
    for _ in range(STEPS):
        with torch.no_grad():
            batch = rollouts(table, targets, generator, greedy_baseline=algorithm.needs_baseline)
            forward = Forward(
                old_logprobs=logprobs_of(table, batch.token_ids),
                ref_logprobs=logprobs_of(reference, batch.token_ids),
                values=values_of(critic) if algorithm.needs_critic else None,
            )
            estimate = estimate_advantages(
                batch,
                forward.old_logprobs,
                forward.ref_logprobs,
                forward.values,
                config=algorithm,
                kl_coef=algorithm.kl.coef,
            )
        estimate = replace(estimate, advantages=sign * estimate.advantages)
        whole = policy_batch(batch, forward, estimate, every_row, kl_coef=algorithm.kl.coef)
        for _ in range(UPDATES):
            logprobs = logprobs_of(table, batch.token_ids)
            loss, _ = policy_loss(whole, logprobs, -logprobs.detach(), config=algorithm)
            if config.critic is not None:
                lesson = critic_batch(batch, forward, estimate, every_row)
                loss = loss + critic_loss(lesson, values_of(critic), config=config.critic)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float(table.softmax(-1).gather(-1, targets[..., None]).mean())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_learns_and_with_negated_advantages_unlearns(name: str) -> None:
    # With the paper's alpha, made for thousands of tokens, four words are too few to look ahead.
    longer = ["algorithm.advantage.length_adaptive=5"] if name == "vapo" else []
    config = parse(RLConfig, rl_values(f"algorithm={name}", *longer))
    assert train(config, sign=1.0) > NEARLY_OPTIMAL
    assert train(config, sign=-1.0) < 1 / VOCABULARY
