"""`rlstack dpo` and `rlstack rejection_sampling`: every objective parses, mistakes are named."""

from typing import Any

import pytest

from rlstack.config.load import parse
from rlstack.config.rounds import DPOConfig, RejectionSamplingConfig
from rlstack.errors import ConfigError
from tests.config.test_load import CONF, SOURCE, composed

OBJECTIVES = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
SERVED = ["reward=model", "reward.model.checkpoints=[m]"]
GIVEN = ["model.path=m", f"data.train=[{SOURCE}]"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_parses(name: str) -> None:
    config = parse(DPOConfig, composed("dpo", *GIVEN, f"objective={name}"))
    assert config.objective.name == name


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rounds=2", "objective=kto"], "desirable_reward: is missing"),
        (
            [
                "rounds=2",
                "objective=kto",
                "desirable_reward=1",
                "environment=python_tool",
                "max_response_tokens=4096",
                "trainer.max_tokens_per_microbatch=16384",
            ],
            "objective.name: kto learns from single responses, not episodes",
        ),
        (["rounds=2", "desirable_reward=1"], "desirable_reward: is for objective=kto in rounds"),
        (["objective=kto", "desirable_reward=1"], "desirable_reward: is for objective=kto in"),
        (["rounds=2", "rollout.num_samples=1"], "rollout.num_samples: a pair needs 2"),
        (["rounds=2", "total_steps=5"], "total_steps: is for data that are there"),
        (["rounds=2", "data.curriculum=level"], "data.curriculum: orders the rows of the data"),
        (["prompts_per_round=8"], "prompts_per_round: is for rounds"),
        (
            ["environment=python_tool"],
            "environment: is for rounds; set rounds or environment=null",
        ),
        (["rounds=1", "reward=environment"], "reward.components: 'environment' needs one"),
        (
            ["rounds=1", "environment=python_tool", "max_response_tokens=512"],
            "environment.max_observation_tokens: 512 leaves no room for another action",
        ),
        (
            ["rollout.max_response_tokens=2000"],
            "rollout.max_response_tokens: 2000 is more than max_response_tokens, 1024",
        ),
        (
            ["trainer.max_tokens_per_microbatch=3000"],
            "trainer.max_tokens_per_microbatch: 3000 is less than the longest possible row, 3072",
        ),
        (
            ["rounds=2", "trainer=lora", "trainer.lora.variant=dora"],
            "trainer.lora.variant: dora: vLLM serves no such adapters",
        ),
        (
            ["rounds=2", *SERVED, "placement.reward_model.ranks=2"],
            "placement.reward_model.ranks: 2 ranks do not fit the devices of 1 policy ranks",
        ),
        (["objective.label_smoothing=0.5"], "objective.label_smoothing: got 0.5; expected less"),
        (["objective=simpo", "objective.beta=0"], "objective.beta: got 0; expected more than 0"),
    ],
)
def test_what_cannot_be(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(DPOConfig, composed("dpo", *GIVEN, *overrides))
    assert expected in str(caught.value)


def test_engines_are_none_of_the_business_of_pairs_in_the_data() -> None:
    adapters = ["trainer=lora", "trainer.lora.variant=dora"]
    config = parse(DPOConfig, composed("dpo", *GIVEN, *adapters))
    assert config.trainer.lora is not None


def test_rejection_sampling_samples_as_many_tokens_as_it_learns_from() -> None:
    values = composed("rejection_sampling", *GIVEN, "max_response_tokens=77")
    config = parse(RejectionSamplingConfig, values)
    assert config.rollout.max_response_tokens == 77
    assert (config.prompts_in_round(9), config.rounds) == (9, 1)
    fewer = composed("rejection_sampling", *GIVEN, "prompts_per_round=4")
    assert parse(RejectionSamplingConfig, fewer).prompts_in_round(9) == 4
    with pytest.raises(ConfigError, match=r"keep\.per_prompt: got 0"):
        parse(RejectionSamplingConfig, composed("rejection_sampling", *GIVEN, "keep.per_prompt=0"))


@pytest.mark.parametrize(
    ("command", "schema"), [("dpo", DPOConfig), ("rejection_sampling", RejectionSamplingConfig)]
)
def test_rounds_may_have_an_environment(command: str, schema: Any) -> None:
    overrides = ["rounds=1", "environment=reasoning_gym_retry", "reward=environment"]
    config = parse(schema, composed(command, *GIVEN, *overrides))
    assert config.environment.name == "reasoning_gym_retry"


def test_objectives_have_the_numbers_of_their_papers() -> None:
    def number(name: str, key: str) -> float:
        config = parse(DPOConfig, composed("dpo", *GIVEN, f"objective={name}"))
        return getattr(config.objective, key)

    assert [number(n, "beta") for n in ("dpo", "kto", "ipo", "simpo")] == [0.1, 0.1, 0.1, 2.0]
    assert number("orpo", "weight") == 0.1
