"""The configuration of commands that learn from a fixed data set: `rlstack sft` and its like."""

from math import ceil
from typing import ClassVar, Literal

from pydantic import Field

from rlstack.config.base import Frozen, Problem, RunSchema
from rlstack.config.checkpoint import CheckpointConfig
from rlstack.config.checks import nothing_to_train_on, trainer_problems
from rlstack.config.data import DataConfig
from rlstack.config.faults import TrainingFaultsConfig
from rlstack.config.model import ModelConfig
from rlstack.config.paths import LocalPath
from rlstack.config.placement import PlacementConfig
from rlstack.config.tracking import TrackingConfig
from rlstack.config.trainer import TrainerConfig


class HeldOutConfig(Frozen):
    """Held-out loss, on `data.eval`; where that is empty there is none."""

    every: int = Field(ge=0)
    """Steps between evaluations; one before the first step and one after the last; 0: never."""


class SupervisedConfig(RunSchema):
    """What these commands have in common. A step is one optimizer step."""

    rows_per_sample: ClassVar[int] = 1
    """Rows that must be in one micro-batch together: 2 where pairs are compared."""

    seed: int = Field(ge=0)
    epochs: float = Field(gt=0)
    """Passes over `data.train`, rounded up to whole steps."""
    total_steps: int | None = Field(ge=1)
    """Steps; null: as many as `epochs` make. A number is what counts, whatever `epochs` is."""
    run_dir: LocalPath
    resume: LocalPath | None
    """Run directory to continue; its own configuration is used."""
    ray_address: str | None
    model: ModelConfig
    data: DataConfig
    """`prompts_per_step` rows of it make one step."""
    placement: PlacementConfig
    trainer: TrainerConfig
    max_response_tokens: int = Field(ge=1)
    """A row with a longer response is a bad row."""
    evaluation: HeldOutConfig
    checkpoint: CheckpointConfig
    faults: TrainingFaultsConfig
    tracking: TrackingConfig

    def problems(self) -> list[Problem]:
        """Impossible combinations of keys that are right by themselves."""
        found = nothing_to_train_on(self.data)
        rows, ranks = self.data.prompts_per_step, self.placement.trainer_ranks
        if rows % ranks:
            text = (
                f"{ranks} does not divide the {rows} rows of a step (data.prompts_per_step); "
                "choose a divisor"
            )
            found.append(Problem(("placement.trainer_ranks", "data.prompts_per_step"), text))
        if self.checkpoint.keep_best is not None and not (self.evaluation.every and self.data.eval):
            text = "needs evaluations; set evaluation.every and data.eval, or keep_best=null"
            keys = ("checkpoint.keep_best", "evaluation.every", "data.eval")
            found.append(Problem(keys, text))
        return found + trainer_problems(
            self.trainer,
            self.placement,
            longest_row=self.rows_per_sample * self.longest_row,
            row_keys=("data.max_prompt_tokens", "max_response_tokens"),
        )

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row that the configuration lets in."""
        return self.data.max_prompt_tokens + self.max_response_tokens

    def num_steps(self, num_rows: int) -> int:
        """Steps of the whole run, with `num_rows` rows to train on."""
        if self.total_steps is not None:
            return self.total_steps
        return ceil(self.epochs * num_rows / self.data.prompts_per_step)


class SFTConfig(SupervisedConfig):
    """`rlstack sft`: supervised training on the assistant's turns of `data.train`."""

    train_on: Literal["all_turns", "last_turn"]
    """Which of the assistant's turns in a conversation are in the loss."""
