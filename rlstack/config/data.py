"""Group `data`: where prompts come from and in which order they are taken."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rlstack.config.base import Frozen
from rlstack.config.paths import LocalOrHub, LocalPath


class _Source(Frozen):
    name: str | None = None
    """The `data_source` of its rows; default: the file, dataset or task name."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the mixture, relative to the other sources; default: the number of rows."""
    reward: str | None = None
    """Name of the reward that judges its rows (reward component `row`)."""


class ColumnNames(Frozen):
    """Which column holds what; null: known schemas are recognised."""

    prompt: str | None = None
    answer: str | None = None
    response: str | None = None
    """The demonstration, or the response that `label` judges."""
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None


class FileSource(_Source):
    """A .jsonl or .parquet file."""

    type: Literal["file"]
    path: LocalPath
    columns: ColumnNames = ColumnNames()
    answer_pattern: str | None = None
    """Regular expression; its first group, found in the answer column, is the answer."""
    limit: int | None = Field(default=None, gt=0)


class HuggingFaceSource(_Source):
    """A `datasets` directory (save_to_disk) or hub name."""

    type: Literal["huggingface"]
    path: LocalOrHub
    subset: str | None = None
    split: str = "train"
    columns: ColumnNames = ColumnNames()
    answer_pattern: str | None = None
    limit: int | None = Field(default=None, gt=0)


class ReasoningGymSource(_Source):
    """A procedural task of reasoning-gym; its own verifier judges the rows."""

    type: Literal["reasoning_gym"]
    task: str
    size: int = Field(gt=0)
    seed: int
    params: dict[str, Any] = Field(default_factory=dict)


SourceConfig = Annotated[
    FileSource | HuggingFaceSource | ReasoningGymSource, Field(discriminator="type")
]


class DataConfig(Frozen):
    """Training and held-out prompts."""

    train: tuple[SourceConfig, ...]
    eval: tuple[SourceConfig, ...]
    prompts_per_step: int = Field(ge=1)
    max_prompt_tokens: int = Field(ge=1)
    on_bad_row: Literal["error", "skip"]
    on_long_prompt: Literal["error", "skip"]
    shuffle: bool
    curriculum: str | None
    """Metadata field with a row's difficulty: rows come in ascending order of it."""
    system_prompt: str | None
