"""The whole configuration of `rl` and `eval`, and the checks that span groups."""

from pydantic import Field

from rlstack.config.algorithm import (
    AlgorithmConfig,
    MaskedCorrection,
    ReinforcePlusPlusAdvantage,
    RejectedCorrection,
    ReMaxAdvantage,
)
from rlstack.config.base import Frozen, Problem, RunSchema
from rlstack.config.checkpoint import CheckpointConfig
from rlstack.config.checks import nothing_to_train_on, trainer_problems
from rlstack.config.data import DataConfig
from rlstack.config.model import ModelConfig
from rlstack.config.placement import PlacementConfig
from rlstack.config.reward import RewardConfig
from rlstack.config.rollout import RolloutConfig
from rlstack.config.tracking import TrackingConfig
from rlstack.config.trainer import TrainerConfig


class EvaluationConfig(Frozen):
    """Held-out evaluation with `num_samples` responses per prompt."""

    every: int = Field(ge=0)
    """Steps between evaluations; 0: never."""
    num_samples: int = Field(ge=1)
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_response_tokens: int = Field(ge=1)


class RLConfig(RunSchema):
    """`rlstack rl`."""

    seed: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    run_dir: str
    resume: str | None
    """Run directory to continue; its own configuration is used."""
    ray_address: str | None
    """null: Ray is started inside this command; auto or host:port joins a cluster."""
    algorithm: AlgorithmConfig
    model: ModelConfig
    data: DataConfig
    placement: PlacementConfig
    rollout: RolloutConfig
    trainer: TrainerConfig
    reward: RewardConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig

    def problems(self) -> list[Problem]:
        """Impossible combinations of keys that are right by themselves."""
        return [
            *_batch_problems(self),
            *_group_problems(self.algorithm, self.rollout),
            *_kl_problems(self),
            *_correction_problems(self.algorithm),
            *_evaluation_problems(self),
            *self.reward.problems(),
            *trainer_problems(
                self.trainer,
                self.placement,
                longest_row=self.data.max_prompt_tokens + self.rollout.max_response_tokens,
                row_keys=("data.max_prompt_tokens", "rollout.max_response_tokens"),
            ),
        ]


class EvalConfig(RunSchema):
    """`rlstack eval`: pass@k, maj@k and lengths of any checkpoint."""

    seed: int = Field(ge=0)
    run_dir: str
    ray_address: str | None
    model: ModelConfig
    """`path` may also be a run directory: its exported or latest policy is evaluated."""
    data: DataConfig
    placement: PlacementConfig
    rollout: RolloutConfig
    reward: RewardConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig

    def problems(self) -> list[Problem]:
        """Impossible combinations of keys that are right by themselves."""
        found = _sampling_problems(self.evaluation)
        if not self.data.eval:
            found.append(Problem(("data.eval",), "is empty; name at least one source"))
        return found + self.reward.problems()


def _batch_problems(config: RLConfig) -> list[Problem]:
    found = nothing_to_train_on(config.data)
    updates, ranks = config.algorithm.updates_per_epoch, config.placement.trainer_ranks
    rows = config.data.prompts_per_step * config.rollout.num_samples
    keys = ("algorithm.updates_per_epoch", "data.prompts_per_step", "rollout.num_samples")
    if rows % updates:
        text = (
            f"{updates} does not divide the {rows} rollouts of a step "
            "(data.prompts_per_step x rollout.num_samples); choose a divisor"
        )
        found.append(Problem(keys, text))
    elif rows // updates % ranks:
        text = (
            f"{ranks} does not divide the {rows // updates} rollouts of an update "
            "(data.prompts_per_step x rollout.num_samples / algorithm.updates_per_epoch); "
            "choose a divisor, so that every rank has as many rows as the others"
        )
        found.append(Problem(("placement.trainer_ranks", *keys), text))
    return found


def _group_problems(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> list[Problem]:
    """What compares the rollouts of a prompt needs two of them."""
    chosen = algorithm.advantage
    found: list[Problem] = []
    if isinstance(chosen, ReinforcePlusPlusAdvantage):
        compares = chosen.group_baseline
    else:
        compares = not isinstance(chosen, ReMaxAdvantage)
    if compares and rollout.num_samples == 1:
        text = (
            f"advantage {chosen.name} compares the rollouts of a prompt and needs at least 2, got "
            f"{rollout.num_samples}; raise it or use algorithm=remax, or "
            "algorithm=reinforce_plus_plus without group_baseline"
        )
        found.append(Problem(("rollout.num_samples", "algorithm.advantage"), text))
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


def _kl_problems(config: RLConfig) -> list[Problem]:
    kl, found = config.algorithm.kl, list[Problem]()
    if kl.estimator == "k3_corrected" and kl.placement == "reward":
        text = (
            "corrects the gradient of a loss and is none in a reward; use k1, or "
            "algorithm.kl.placement=loss"
        )
        found.append(Problem(("algorithm.kl.estimator", "algorithm.kl.placement"), text))
    if kl.target is None:
        return found
    if kl.coef == 0:
        text = (
            "is scaled to reach algorithm.kl.target, and 0 stays 0; set it above 0 or "
            "algorithm.kl.target=null"
        )
        found.append(Problem(("algorithm.kl.coef", "algorithm.kl.target"), text))
    rows = config.data.prompts_per_step * config.rollout.num_samples
    if kl.horizon < rows:
        text = (
            f"{kl.horizon} is less than the {rows} rollouts of a step (data.prompts_per_step x "
            "rollout.num_samples); raise it to at least that"
        )
        keys = ("algorithm.kl.horizon", "data.prompts_per_step", "rollout.num_samples")
        found.append(Problem((*keys, "algorithm.kl.target"), text))
    return found


def _correction_problems(algorithm: AlgorithmConfig) -> list[Problem]:
    chosen = algorithm.correction
    if not isinstance(chosen, MaskedCorrection | RejectedCorrection) or chosen.low < chosen.high:
        return []
    text = f"{chosen.low:g} is not below algorithm.correction.high, {chosen.high:g}"
    return [Problem(("algorithm.correction.low", "algorithm.correction.high"), text)]


def _evaluation_problems(config: RLConfig) -> list[Problem]:
    every, found = config.evaluation.every, _sampling_problems(config.evaluation)
    if every and not config.data.eval:
        text = "needs data.eval, which is empty; add a source or set it to 0"
        found.append(Problem(("evaluation.every", "data.eval"), text))
    if config.checkpoint.keep_best is not None and not every:
        text = "needs evaluations; set evaluation.every or keep_best=null"
        found.append(Problem(("checkpoint.keep_best", "evaluation.every"), text))
    return found


def _sampling_problems(evaluation: EvaluationConfig) -> list[Problem]:
    if evaluation.temperature or evaluation.num_samples == 1:
        return []
    text = (
        f"{evaluation.num_samples} greedy responses to a prompt are all the same; set it to 1 or "
        "evaluation.temperature above 0"
    )
    return [Problem(("evaluation.num_samples", "evaluation.temperature"), text)]
