"""PPO beside PF-PPO (arXiv 2409.06957) where the reward model errs in the middle of the ranks.

A small language whose true reward is known: a prompt asks for `LENGTH` words, and a response is
worth the share of them that are right. The reward that is trained on has an error that belongs to
the response, as a reward model's has: none for the best and the worst responses to a prompt that
were sampled, however large for those in between; or, in the last column, for all of them. Policy
and critic are tables; advantages, losses and filtration are those of `rlstack rl`. Every method
samples the same number of responses and takes the same number of optimizer steps; the table gives
mean and deviation over seeds.

    python -m benchmarks.filtration           8 seeds, a minute
    python -m benchmarks.filtration 3         3 seeds
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from torch import Tensor

from rlstack.algorithms.catalog import critic_loss, estimate_advantages, policy_loss
from rlstack.algorithms.filtration_policies import Policy, filtration_policy
from rlstack.batch import TokenBatch
from rlstack.commands.composing import composed_values
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from rlstack.minibatches import Forward, critic_batch, policy_batch
from rlstack.types import Candidates

VOCABULARY, LENGTH, PROMPTS, SAMPLES = 4, 8, 4, 8
STEPS, UPDATES, LEARNING_RATE = 40, 2, 0.05
SEEDS = 8
MARGIN = 0.05
"""By which the best of a group stays ahead of all others, and the worst behind."""

METHODS: dict[str, Policy] = {
    "PPO": filtration_policy("none"),
    "PF-PPO best_random": filtration_policy("best_random"),
    "PF-PPO best_worst": filtration_policy("best_worst"),
    "PF-PPO soft best_random": filtration_policy("soft", strategy="best_random", num_samples=4),
    "PF-PPO soft best_worst": filtration_policy("soft", strategy="best_worst", num_samples=4),
}


@dataclass(frozen=True, slots=True)
class Errors:
    """What the reward model does wrong."""

    deviation: float
    """Of the error of a response, in units of the true reward."""
    everywhere: bool = False
    """Not only in the middle ranks."""


ERRORS = {
    "no error": Errors(0.0),
    "0.25, middle ranks": Errors(0.25),
    "0.5, middle ranks": Errors(0.5),
    "1, middle ranks": Errors(1.0),
    "0.25, all ranks": Errors(0.25, everywhere=True),
}


@dataclass(frozen=True, slots=True)
class Language:
    """What is right for every prompt, and the reward model's error for every response."""

    targets: Tensor
    """int64 [PROMPTS, LENGTH]"""
    errors: Tensor
    """float32 [PROMPTS, VOCABULARY ** LENGTH], standard normal"""

    def true_rewards(self, responses: Tensor, prompts: Tensor) -> Tensor:
        """float32 [B], the share of right words; responses int64 [B, LENGTH], prompts int64 [B]."""
        return (responses == self.targets[prompts]).float().mean(dim=1)

    def learned_rewards(self, responses: Tensor, prompts: Tensor, *, kind: Errors) -> Tensor:
        """float32 [B], what the reward model says of them, SAMPLES for each prompt in turn."""
        true = self.true_rewards(responses, prompts)
        places = VOCABULARY ** torch.arange(LENGTH)
        wrong = true + kind.deviation * self.errors[prompts, (responses * places).sum(dim=1)]
        if kind.everywhere:
            return wrong
        groups = true.view(PROMPTS, SAMPLES)
        low, high = (f(dim=1).repeat_interleave(SAMPLES) for f in (groups.amin, groups.amax))
        middle = (true > low) & (true < high)
        return torch.where(middle, wrong.clamp(low + MARGIN, high - MARGIN), true)


def language(seed: int) -> Language:
    """The same for every method."""
    generator = torch.Generator().manual_seed(seed)
    return Language(
        targets=torch.randint(VOCABULARY, (PROMPTS, LENGTH), generator=generator),
        errors=torch.randn(PROMPTS, VOCABULARY**LENGTH, generator=generator),
    )


def train(config: RLConfig, filtration: Policy, *, kind: Errors, seed: int) -> float:
    """The true reward that the policy expects after its training."""
    algorithm = config.algorithm
    task = language(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    table = torch.zeros(PROMPTS, LENGTH, VOCABULARY, requires_grad=True)
    critic = torch.zeros(PROMPTS, LENGTH, requires_grad=True)
    optimizer = torch.optim.Adam([table, critic], lr=LEARNING_RATE)
    for step in range(STEPS):
        with torch.no_grad():
            sampled = rollouts(table, task, generator, kind=kind)
            batch = sampled.select(chosen_rows(sampled, filtration, seed=seed * STEPS + step))
            old = logprobs_of(table, batch)
            forward = Forward(
                old_logprobs=old,
                ref_logprobs=logprobs_of(torch.zeros_like(table), batch),
                values=values_of(critic, batch),
            )
            estimate = estimate_advantages(
                batch,
                forward.old_logprobs,
                forward.ref_logprobs,
                forward.values,
                config=algorithm,
                kl_coef=algorithm.kl.coef,
            )
        rows = torch.arange(batch.num_rows)
        own = policy_batch(batch, forward, estimate, rows, kl_coef=algorithm.kl.coef)
        lesson = critic_batch(batch, forward, estimate, rows)
        assert config.critic is not None
        for _ in range(UPDATES):
            logprobs = logprobs_of(table, batch)
            loss, _ = policy_loss(own, logprobs, -logprobs.detach(), config=algorithm)
            loss = loss + critic_loss(lesson, values_of(critic, batch), config=config.critic)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float(table.softmax(-1).gather(-1, task.targets[..., None]).mean())


def rollouts(
    table: Tensor, task: Language, generator: torch.Generator, *, kind: Errors
) -> TokenBatch:
    """SAMPLES responses to every prompt, behind one token of its own, with learned rewards."""
    prompts = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    words = table.softmax(-1)[prompts].flatten(0, 1)
    responses = torch.multinomial(words, 1, generator=generator).view(-1, LENGTH)
    token_ids = torch.nn.functional.pad(responses, (1, 0))
    loss_mask = torch.ones_like(token_ids, dtype=torch.bool)
    loss_mask[:, 0] = False
    return TokenBatch(
        token_ids=token_ids,
        attention_mask=torch.ones_like(loss_mask),
        loss_mask=loss_mask,
        rollout_logprobs=torch.zeros(token_ids.shape),
        group_ids=prompts,
        rewards=task.learned_rewards(responses, prompts, kind=kind),
    )


def chosen_rows(batch: TokenBatch, filtration: Policy, *, seed: int) -> Tensor:
    """Rows to train on, as a run chooses them."""
    candidates = Candidates(
        rewards=batch.rewards.double().numpy(),
        group_ids=batch.group_ids.numpy(),
        lengths=batch.loss_mask.sum(dim=1).numpy(),
        truncated=torch.zeros(batch.num_rows, dtype=torch.bool).numpy(),
    )
    return torch.from_numpy(filtration.select(candidates, seed=seed))


def logprobs_of(table: Tensor, batch: TokenBatch) -> Tensor:
    """float32 [B, 1 + LENGTH], nats; 0 for the prompt."""
    words = table.log_softmax(-1)[batch.group_ids]
    chosen = words.gather(-1, batch.token_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(chosen, (1, 0))


def values_of(critic: Tensor, batch: TokenBatch) -> Tensor:
    """float32 [B, 1 + LENGTH], reward units."""
    return torch.nn.functional.pad(critic[batch.group_ids], (1, 0))


def lines(num_seeds: int) -> Iterator[str]:
    """The table, as Markdown."""
    paths = ["model.path=none", "run_dir=none"]
    sources = ["data.train=[{type: file, path: none}]", "evaluation.every=0"]
    config = parse(RLConfig, composed_values("rl", ["algorithm=ppo", *paths, *sources]))
    yield "| true reward after training | " + " | ".join(ERRORS) + " |"
    yield "|---" * (1 + len(ERRORS)) + "|"
    for name, filtration in METHODS.items():
        cells: list[str] = []
        for kind in ERRORS.values():
            found = [train(config, filtration, kind=kind, seed=seed) for seed in range(num_seeds)]
            cells.append(f"{mean(found):.3f} ± {stdev(found):.3f}")
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    for line in lines(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS):
        print(line, flush=True)


if __name__ == "__main__":
    main()
