"""`rlstack dpo` and `rlstack rejection_sampling`: learning from what the policy itself samples."""

from typing import ClassVar

from pydantic import Field

from rlstack.config.base import Frozen, Problem
from rlstack.config.checks import placement_problems, served_adapter_problems
from rlstack.config.environment import EnvironmentConfig, environment_problems
from rlstack.config.preference import KTOObjective, ObjectiveConfig
from rlstack.config.reward import RewardConfig
from rlstack.config.rollout import RolloutConfig
from rlstack.config.supervised import SupervisedConfig


class SampledConfig(SupervisedConfig):
    """A run of rounds: sample, judge, train for `epochs` on what was sampled, repeat."""

    rounds: int = Field(ge=0)
    prompts_per_round: int | None = Field(ge=1)
    """Prompts of `data.train` that a round samples; null: all of them."""
    rollout: RolloutConfig
    environment: EnvironmentConfig | None = None
    reward: RewardConfig

    def problems(self) -> list[Problem]:
        """Impossible combinations of keys that are right by themselves."""
        found = [*super().problems(), *self.reward.problems()]
        if self.rounds:
            found += [*placement_problems(self.placement), *served_adapter_problems(self.trainer)]
            found += environment_problems(
                self.environment,
                self.reward,
                max_response_tokens=self.rollout.max_response_tokens,
                response_key="rollout.max_response_tokens",
            )
        if self.rollout.max_response_tokens > self.max_response_tokens:
            text = (
                f"{self.rollout.max_response_tokens} is more than max_response_tokens, "
                f"{self.max_response_tokens}; lower it"
            )
            keys = ("rollout.max_response_tokens", "max_response_tokens")
            found.append(Problem(keys, text))
        if self.rounds and self.total_steps is not None:
            text = "is for data that are there before the run; with rounds set epochs"
            found.append(Problem(("total_steps", "rounds"), text))
        if self.rounds and self.data.curriculum is not None:
            text = "orders the rows of the data; a round trains on others. Set it to null"
            found.append(Problem(("data.curriculum", "rounds"), text))
        return found

    def prompts_in_round(self, num_prompts: int) -> int:
        """How many of the `num_prompts` prompts a round samples."""
        if self.prompts_per_round is None:
            return num_prompts
        return min(self.prompts_per_round, num_prompts)


class DPOConfig(SampledConfig):
    """`rlstack dpo`: preferences of `data.train`, or with `rounds` of the policy's own samples."""

    rows_per_sample: ClassVar[int] = 2

    objective: ObjectiveConfig
    desirable_reward: float | None
    """Of `kto` in rounds: a sampled response with at least this reward is desirable."""

    def problems(self) -> list[Problem]:
        """Impossible combinations of keys that are right by themselves."""
        found = super().problems()
        judged_rounds = self.rounds and isinstance(self.objective, KTOObjective)
        if self.desirable_reward is not None and not judged_rounds:
            text = "is for objective=kto in rounds; set both or desirable_reward=null"
            found.append(Problem(("desirable_reward", "objective.name", "rounds"), text))
        if not self.rounds:
            given = {"prompts_per_round": self.prompts_per_round, "environment": self.environment}
            found += [
                Problem((key, "rounds"), f"is for rounds; set rounds or {key}=null")
                for key, value in given.items()
                if value is not None
            ]
            return found
        if isinstance(self.objective, KTOObjective):
            if self.desirable_reward is None:
                text = "is missing; set the reward from which kto calls a response desirable"
                found.append(Problem(("desirable_reward", "objective.name"), text))
            if self.environment is not None:
                text = "kto learns from single responses, not episodes; choose another objective"
                found.append(Problem(("objective.name", "environment"), text))
        elif self.rollout.num_samples == 1:
            text = "a pair needs 2 responses to a prompt, got 1; raise it"
            found.append(Problem(("rollout.num_samples", "rounds"), text))
        return found


class KeepConfig(Frozen):
    """Which sampled responses are learned from."""

    min_reward: float | None
    """The least reward; null: any that could be judged."""
    per_prompt: int = Field(ge=1)
    """Most responses of a prompt, best first; the same response counts once."""


class RejectionSamplingConfig(SampledConfig):
    """`rlstack rejection_sampling`: supervised training on the policy's own best responses."""

    rounds: int = Field(ge=1)
    keep: KeepConfig
