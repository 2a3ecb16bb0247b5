"""Group `tracking`: where metrics go. A JSONL file is always written, for resume and report."""

from rlstack.config.base import Frozen


class TrackingConfig(Frozen):
    """Metric sinks of a run."""

    console: bool
    tensorboard: bool
    wandb_project: str | None
    mlflow_experiment: str | None
    save_rollouts: bool
    """Write every training rollout as readable JSONL."""
