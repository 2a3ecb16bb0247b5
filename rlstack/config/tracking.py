"""Group `tracking`: where metrics go. A JSONL file is always written, for resume and report."""

from pydantic import Field

from rlstack.config.base import Frozen


class TrackingConfig(Frozen):
    """Metric sinks of a run."""

    console: bool
    tensorboard: bool
    wandb_project: str | None
    mlflow_experiment: str | None
    save_rollouts: bool
    """Write every rollout as readable JSONL."""
    max_rollouts_gib: float = Field(gt=0)
    """Of a run; for more, the oldest files of training steps are removed."""
