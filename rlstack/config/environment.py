"""Group `environment`: what answers the policy between turns; without one, one turn a rollout."""

from typing import Any

from pydantic import Field

from rlstack.config.base import Frozen, Problem
from rlstack.config.reward import RewardConfig


class EnvironmentConfig(Frozen):
    """One registered environment and the limits of its episodes.

    Everything after the prompt, observations included, counts towards max_response_tokens.
    """

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    max_turns: int = Field(ge=1)
    """Actions of an episode."""
    max_observation_tokens: int = Field(ge=1)
    """Of a longer observation the middle is left out."""
    timeout_s: float = Field(gt=0)
    """Longest the environment may take for one turn; then the rollout has no reward."""
    num_workers: int = Field(ge=1)
    """Processes; each answers one turn at a time, of many episodes, or all at once if async."""


def environment_problems(
    environment: EnvironmentConfig | None,
    reward: RewardConfig,
    *,
    max_response_tokens: int,
    response_key: str,
) -> list[Problem]:
    """Rewards without their environment, and limits that leave no room for a second turn."""
    found: list[Problem] = []
    if environment is None:
        if any(component.name == "environment" for component in reward.components):
            text = (
                "'environment' needs one; choose environment=... or remove the component "
                "'environment'"
            )
            found.append(Problem(("reward.components", "environment"), text))
        return found
    if environment.max_observation_tokens >= max_response_tokens:
        text = (
            f"{environment.max_observation_tokens} leaves no room for another action within "
            f"{response_key}, {max_response_tokens}; lower it or raise {response_key}"
        )
        found.append(Problem(("environment.max_observation_tokens", response_key), text))
    return found
