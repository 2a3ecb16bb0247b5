"""Combinations of keys of `rlstack rl` that cannot work together; see `RLConfig.problems`."""

from rlstack.config.algorithm import (
    AlgorithmConfig,
    DistillationAdvantage,
    GAEAdvantage,
    PluginPart,
    ReinforcePlusPlusAdvantage,
    ReMaxAdvantage,
)
from rlstack.config.base import Problem
from rlstack.config.critic import CriticConfig
from rlstack.config.data import DataConfig
from rlstack.config.faults import KNOWN_BEFORE, RLFaultsConfig
from rlstack.config.placement import PlacementConfig
from rlstack.config.rollout import RolloutConfig

WITHOUT_GROUP = (ReMaxAdvantage, GAEAdvantage, DistillationAdvantage, PluginPart)
"""Advantages that need no other rollout of the same prompt, or of which that is not known."""


def row_problems(
    algorithm: AlgorithmConfig, data: DataConfig, rollout: RolloutConfig, placement: PlacementConfig
) -> list[Problem]:
    """The rollouts of a step must be shared evenly by its updates, and those by the ranks."""
    updates, rows = algorithm.updates_per_epoch, data.prompts_per_step * rollout.num_samples
    keys = ("algorithm.updates_per_epoch", "data.prompts_per_step", "rollout.num_samples")
    if rows % updates:
        text = (
            f"{updates} does not divide the {rows} rollouts of a step "
            "(data.prompts_per_step x rollout.num_samples); choose a divisor"
        )
        return [Problem(keys, text)]
    ranks = {"placement.trainer_ranks": placement.trainer_ranks}
    if algorithm.needs_critic and placement.critic.ranks:
        ranks["placement.critic.ranks"] = placement.critic.ranks
    if algorithm.needs_reference and placement.reference.ranks:
        ranks["placement.reference.ranks"] = placement.reference.ranks
    return [
        Problem(
            (key, *keys),
            f"{number} does not divide the {rows // updates} rollouts of an update "
            "(data.prompts_per_step x rollout.num_samples / algorithm.updates_per_epoch); "
            "choose a divisor, so that every rank has as many rows as the others",
        )
        for key, number in ranks.items()
        if rows // updates % number
    ]


def critic_problems(algorithm: AlgorithmConfig, critic: CriticConfig | None) -> list[Problem]:
    """A critic is there where values are needed, and only there."""
    keys = ("critic", "algorithm.advantage")
    if algorithm.needs_critic and critic is None:
        text = "is missing, but advantage gae needs one; use algorithm=ppo, which brings it"
        return [Problem(keys, text)]
    if critic is not None and not algorithm.needs_critic:
        text = (
            f"is not needed by advantage {algorithm.advantage.name}; set critic=null or "
            "algorithm/advantage=gae"
        )
        return [Problem(keys, text)]
    return []


def group_problems(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> list[Problem]:
    """What compares the rollouts of a prompt needs two of them."""
    chosen = algorithm.advantage
    found: list[Problem] = []
    if isinstance(chosen, ReinforcePlusPlusAdvantage):
        compares = chosen.group_baseline
    else:
        compares = not isinstance(chosen, WITHOUT_GROUP)
    if compares and rollout.num_samples == 1:
        text = (
            f"advantage {chosen.name} compares the rollouts of a prompt and needs at least 2, got "
            f"{rollout.num_samples}; raise it or use algorithm=remax, or "
            "algorithm=reinforce_plus_plus without group_baseline"
        )
        found.append(Problem(("rollout.num_samples", "algorithm.advantage"), text))
    if compares and algorithm.filtration.name == "best":
        text = (
            f"keeps one rollout of a prompt, but advantage {chosen.name} compares several; use "
            "best_worst, or algorithm=ppo"
        )
        found.append(Problem(("algorithm.filtration.name", "algorithm.advantage"), text))
    if algorithm.reward.whiten and isinstance(chosen, ReMaxAdvantage):
        text = "would scale the rewards and not the greedy ones they are compared with; set false"
        found.append(Problem(("algorithm.reward.whiten", "algorithm.advantage"), text))
    if isinstance(chosen, DistillationAdvantage) and algorithm.kl.coef > 0:
        text = "is of the KL to a reference, in whose place the teacher stands; set it to 0"
        found.append(Problem(("algorithm.kl.coef", "algorithm.advantage"), text))
    if not algorithm.dynamic_sampling.enabled:
        return found
    if isinstance(chosen, ReMaxAdvantage):
        text = (
            "drops every group whose rewards are all equal, from which remax learns where the "
            "greedy response differs; set it to false"
        )
        found.append(Problem(("algorithm.dynamic_sampling.enabled", "algorithm.advantage"), text))
    elif rollout.num_samples == 1:
        text = (
            "drops every group whose rewards are all equal, as those of one rollout are; raise "
            "rollout.num_samples or set it to false"
        )
        keys = ("algorithm.dynamic_sampling.enabled", "rollout.num_samples")
        found.append(Problem(keys, text))
    return found


def bound_problems(
    faults: RLFaultsConfig, algorithm: AlgorithmConfig, critic: CriticConfig | None
) -> list[Problem]:
    """A bound must be able to do what it says, of a metric that the run has."""
    found: list[Problem] = []
    for index, bound in enumerate(faults.bounds):
        key = f"faults.bounds[{index}]"
        if bound.above is None and bound.below is None:
            found.append(Problem((key,), f"bounds {bound.metric} by nothing; give above or below"))
        if bound.action == "skip" and bound.metric not in KNOWN_BEFORE:
            text = (
                f"{bound.metric} is known only after the update that it would skip; use warn or "
                "stop, or a metric that is known before"
            )
            found.append(Problem((f"{key}.action", f"{key}.metric"), text))
        if bound.metric.startswith("critic/") and critic is None:
            text = f"{bound.metric} is measured of a critic, and there is none; leave the bound out"
            found.append(Problem((f"{key}.metric", "critic"), text))
        if bound.metric == "policy/ref_kl" and not algorithm.needs_reference:
            text = "policy/ref_kl needs a reference; set algorithm.kl.coef above 0"
            found.append(Problem((f"{key}.metric", "algorithm.kl.coef"), text))
    return found
