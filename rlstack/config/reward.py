"""Group `reward`: the weighted components of the reward and the processes that run them."""

from collections import Counter
from typing import Any, Literal

from pydantic import Field

from rlstack.config.base import Frozen, Problem
from rlstack.config.paths import LocalOrHub, Plugin


class WeightSchedule(Frozen):
    """A weight that goes linearly from `start` to `end` over the first `steps` updates."""

    start: float
    end: float
    steps: int = Field(ge=1)


class RewardComponent(Frozen):
    """One registered reward; `row` stands for the reward that the dataset row names."""

    name: str
    weight: float | WeightSchedule = 1.0
    params: dict[str, Any] = Field(default_factory=dict)
    label: str | None = Field(default=None, min_length=1)
    """Where its value is recorded, if not under its name: for one reward listed twice."""
    gate: str | None = None
    """Label of another component: where that one is below `gate_min`, this one contributes 0."""
    gate_min: float = 1.0
    data_sources: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The data sources whose rows it judges, if not all of them."""
    on_error: Literal["unjudged", "zero", "drop", "retry", "raise"] = "unjudged"
    """What its failure does: it leaves the sum, counts as 0, takes the sample out, is tried up to
    three times, or stops the run."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Longest it may take, if not `reward.timeout_s`."""

    @property
    def key(self) -> str:
        """The name under which its value is recorded."""
        return self.label or self.name


class ScoreScale(Frozen):
    """What a model's scores are known to have on ordinary responses."""

    mean: float
    std: float = Field(gt=0)


class RewardModelsConfig(Frozen):
    """Reward models as worker groups (`placement.reward_model`), for the component `reward_model`.

    The other keys mean what the parameters of the reward `preference_model` do.
    """

    checkpoints: tuple[LocalOrHub, ...] = Field(min_length=1)
    """Folders or hub names of sequence classifiers with one label: the models of the ensemble."""
    ensemble: Literal["mean", "min", "mean_minus_std"]
    std_weight: float = Field(ge=0)
    scale: Literal["none", "running"] | ScoreScale
    max_tokens: int = Field(ge=1)
    max_tokens_per_batch: int = Field(ge=1)
    dtype: Literal["float32", "bfloat16"]
    special_tokens: Literal["end", "tokenizer"]
    features: tuple[str, ...]
    zero_stage: Literal[0, 3]
    """0: all models whole on every rank; 3: each rank holds a share of them."""


class RewardConfig(Frozen):
    """The reward of a rollout is the weighted sum of the components that can judge it."""

    components: tuple[RewardComponent, ...] = Field(min_length=1)
    plugins: tuple[Plugin, ...]
    """Modules or .py files that register rewards or environments; every process imports them."""
    model: RewardModelsConfig | None = None
    """The models behind the component `reward_model`; `reward=model` sets it."""
    num_workers: int = Field(ge=1)
    """Processes that share the components that compute; async ones have one more, and each that
    remembers what it judged has its own."""
    max_concurrent: int = Field(default=16, ge=1)
    """Rollouts that async components judge at once."""
    timeout_s: float = Field(gt=0)
    """Longest a component may take for one rollout, or a batched one for a whole group."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    """Longest a scorer or environment process may take to import the plugins and set up."""
    memory_gib: float = Field(gt=0)
    """Address space of one scorer or environment process; beyond it there is a MemoryError."""

    def problems(self) -> list[Problem]:
        """Components that cannot stand beside each other."""
        labels = Counter(component.key for component in self.components)
        texts = [
            f"{label!r} is listed {count} times; keep one, or give them labels of their own"
            for label, count in labels.items()
            if count > 1
        ]
        for component in self.components:
            others = labels.keys() - {component.key}
            if component.gate is not None and component.gate not in others:
                texts.append(
                    f"the gate {component.gate!r} of {component.key!r} is no other component; "
                    f"one of {', '.join(sorted(others)) or 'none'}"
                )
            if component.gate is None and component.gate_min != 1.0:
                texts.append(
                    f"gate_min of {component.key!r} has no gate; name a component in gate, or "
                    "remove it"
                )
            if component.name == "row" and component.params:
                texts.append(
                    "'row' takes no params: the row chooses the reward; remove them, or list that "
                    "reward as a component"
                )
        names = {component.name for component in self.components}
        if "reward_model" in names and self.model is None:
            texts.append("'reward_model' needs reward.model, which is missing; use reward=model")
        if "reward_model" not in names and self.model is not None:
            texts.append("reward.model is for a component 'reward_model'; add {name: reward_model}")
        return [Problem(("reward.components",), text) for text in texts]
