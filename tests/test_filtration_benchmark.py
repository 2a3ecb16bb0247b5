"""The benchmark of filtration says of single seeds what docs/results.md says of several."""

from pathlib import Path

import pytest
import torch

from benchmarks.filtration import (
    ERRORS,
    LENGTH,
    METHODS,
    PROMPTS,
    SAMPLES,
    VOCABULARY,
    language,
    lines,
    train,
)
from rlstack.config.load import parse
from rlstack.config.run import RLConfig
from tests.config.test_load import rl_values

RESULTS = (Path(__file__).parents[1] / "docs" / "results.md").read_text()


@pytest.mark.parametrize("seed", [11, 12])
def test_best_and_worst_are_worth_their_lost_samples(seed: int) -> None:
    config = parse(RLConfig, rl_values("algorithm=ppo"))
    rewards = {
        name: train(config, METHODS[name], kind=ERRORS["1, middle ranks"], seed=seed)
        for name in ("PPO", "PF-PPO best_worst", "PF-PPO best_random")
    }
    assert rewards["PF-PPO best_worst"] > rewards["PPO"] + 0.05
    assert rewards["PF-PPO best_random"] < rewards["PPO"]


def test_the_reward_model_is_right_about_the_best_and_the_worst_of_a_group() -> None:
    task = language(0)
    prompts = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    responses = torch.randint(
        VOCABULARY, (len(prompts), LENGTH), generator=torch.Generator().manual_seed(0)
    )
    true = task.true_rewards(responses, prompts).view(PROMPTS, SAMPLES)
    learned = task.learned_rewards(responses, prompts, kind=ERRORS["1, middle ranks"])
    learned = learned.view(PROMPTS, SAMPLES)
    assert (learned != true).any()
    for best in (torch.amax, torch.amin):
        extreme = true == best(true, dim=1, keepdim=True)
        assert torch.equal(learned[extreme], true[extreme])
        assert torch.equal(learned == best(learned, dim=1, keepdim=True), extreme)


def test_the_results_show_its_table() -> None:
    header = next(lines(2))
    assert header in RESULTS
    assert all(f"\n| {name} |" in RESULTS for name in METHODS)
