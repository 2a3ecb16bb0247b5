"""The whole configuration of `rl` and `eval`, and the checks that span groups."""

from pydantic import Field

from rlstack.config.algorithm import (
    AlgorithmConfig,
    ComposedCorrection,
    MaskedCorrection,
    RejectedCorrection,
)
from rlstack.config.base import Frozen, Problem, RunSchema
from rlstack.config.checkpoint import CheckpointConfig
from rlstack.config.checks import (
    nothing_to_train_on,
    placement_problems,
    served_adapter_problems,
    trainer_problems,
)
from rlstack.config.critic import CriticConfig
from rlstack.config.data import DataConfig
from rlstack.config.environment import EnvironmentConfig, environment_problems
from rlstack.config.faults import FaultsConfig, RLFaultsConfig
from rlstack.config.model import ModelConfig
from rlstack.config.paths import LocalPath
from rlstack.config.placement import PlacementConfig
from rlstack.config.reference import ReferenceConfig
from rlstack.config.reward import RewardConfig
from rlstack.config.rl_checks import (
    bound_problems,
    critic_problems,
    group_problems,
    row_problems,
)
from rlstack.config.rollout import RolloutConfig
from rlstack.config.tracking import TrackingConfig
from rlstack.config.trainer import TrainerConfig
from rlstack.types import SamplingSettings


class EvaluationConfig(Frozen):
    """Held-out evaluation with `num_samples` responses per prompt."""

    every: int = Field(ge=0)
    """Steps between evaluations; 0: never."""
    num_samples: int = Field(ge=1)
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_response_tokens: int = Field(ge=1)

    def sampling(self, *, stop: tuple[str, ...]) -> SamplingSettings:
        """What the engines are told of each response; `stop` is that of the rollouts."""
        return SamplingSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            max_response_tokens=self.max_response_tokens,
            stop=stop,
        )


class RLConfig(RunSchema):
    """`rlstack rl`."""

    seed: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    run_dir: LocalPath
    resume: LocalPath | None
    """Run directory to continue; its own configuration is used."""
    ray_address: str | None
    """local: Ray is started inside this command; auto or host:port joins a cluster; null: as
    RAY_ADDRESS says, or local."""
    algorithm: AlgorithmConfig
    model: ModelConfig
    data: DataConfig
    placement: PlacementConfig
    rollout: RolloutConfig
    environment: EnvironmentConfig | None = None
    trainer: TrainerConfig
    reward: RewardConfig
    critic: CriticConfig | None = None
    """Where the algorithm estimates advantages with one; algorithm=ppo sets it."""
    reference: ReferenceConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    faults: RLFaultsConfig
    tracking: TrackingConfig

    def problems(self) -> list[Problem]:
        """Impossible combinations of keys that are right by themselves."""
        return [
            *nothing_to_train_on(self.data),
            *row_problems(self.algorithm, self.data, self.rollout, self.placement),
            *group_problems(self.algorithm, self.rollout),
            *critic_problems(self.algorithm, self.critic),
            *bound_problems(self.faults, self.algorithm, self.critic),
            *placement_problems(self.placement),
            *self.reference.problems(self.placement),
            *self.reference.update_problems(self.algorithm, self.trainer),
            *_kl_problems(self),
            *_correction_problems(self.algorithm),
            *_evaluation_problems(self),
            *self.reward.problems(),
            *environment_problems(
                self.environment,
                self.reward,
                max_response_tokens=self.rollout.max_response_tokens,
                response_key="rollout.max_response_tokens",
            ),
            *served_adapter_problems(self.trainer),
            *self._trainers_problems(),
        ]

    def _trainers_problems(self) -> list[Problem]:
        trainers = {"trainer": self.trainer}
        if self.critic is not None:
            trainers["critic.trainer"] = self.critic.trainer
        return [
            problem
            for key, trainer in trainers.items()
            for problem in trainer_problems(
                trainer,
                self.placement,
                longest_row=self.data.max_prompt_tokens + self.rollout.max_response_tokens,
                row_keys=("data.max_prompt_tokens", "rollout.max_response_tokens"),
                key=key,
            )
        ]


class EvalConfig(RunSchema):
    """`rlstack eval`: pass@k, maj@k and lengths of any checkpoint."""

    seed: int = Field(ge=0)
    run_dir: LocalPath
    ray_address: str | None
    faults: FaultsConfig
    model: ModelConfig
    """`path` may also be a run directory: its exported or latest policy is evaluated."""
    data: DataConfig
    placement: PlacementConfig
    rollout: RolloutConfig
    environment: EnvironmentConfig | None = None
    reward: RewardConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig

    def problems(self) -> list[Problem]:
        """Impossible combinations of keys that are right by themselves."""
        found = _sampling_problems(self.evaluation)
        if not self.data.eval:
            found.append(Problem(("data.eval",), "is empty; name at least one source"))
        found += environment_problems(
            self.environment,
            self.reward,
            max_response_tokens=self.evaluation.max_response_tokens,
            response_key="evaluation.max_response_tokens",
        )
        return found + self.reward.problems()


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
    chosen, key = algorithm.correction, "algorithm.correction"
    if not isinstance(chosen, ComposedCorrection):
        return _interval_problems(chosen, key)
    found: list[Problem] = []
    for index, part in enumerate(chosen.parts):
        found += _interval_problems(part, f"{key}.parts[{index}]")
    weighing = [part.name for part in chosen.parts if not isinstance(part, RejectedCorrection)]
    if len(weighing) > 1:
        text = (
            f"{' and '.join(weighing)} both weigh by the ratio, which would count as often; keep "
            "one and let the others be rejected, which drops and does not weigh"
        )
        found.append(Problem((f"{key}.parts",), text))
    return found


def _interval_problems(chosen: Frozen, key: str) -> list[Problem]:
    if not isinstance(chosen, MaskedCorrection | RejectedCorrection) or chosen.low < chosen.high:
        return []
    text = f"{chosen.low:g} is not below {key}.high, {chosen.high:g}"
    return [Problem((f"{key}.low", f"{key}.high"), text)]


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
