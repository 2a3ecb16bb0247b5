"""How far a run has come, and its checkpoints: the same for every command that trains."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlstack.config.checkpoint import CheckpointConfig
from rlstack.errors import ConfigError
from rlstack.run.checkpoint import Checkpoints, RunState, improves
from rlstack.run.tracking import Tracker
from rlstack.run.versions import library_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a command achieved in this process."""

    steps_completed: int = 0
    evaluations: Mapping[int, Mapping[str, float]] = field(
        default_factory=dict[int, Mapping[str, float]]
    )
    """step -> evaluation metrics"""
    measured: Mapping[str, float] = field(default_factory=dict[str, float])
    """The metrics that the command was asked for, where it was asked for some."""
    model: Path | None = None
    """In Hugging Face format; None if it was not exported."""
    report: Path | None = None
    stopped_early: bool = False
    """Whether it was stopped and can be continued."""


class Progress:
    """Knows which steps are done, which of them was the best, and what of them is on disk."""

    def __init__(self, config: CheckpointConfig, tracker: Tracker, *, run_dir: Path) -> None:
        self.config = config
        self.tracker = tracker
        self.checkpoints = Checkpoints(run_dir, keep_last=config.keep_last)
        self.steps_completed = 0
        self.saved_step = 0
        self.evaluations: dict[int, Mapping[str, float]] = {}
        self.best_value: float | None = None
        self.best_step: int | None = None

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint of the last completed step is on disk, or none is needed."""
        return self.steps_completed == self.saved_step

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Remember the metrics `eval/...` of an evaluation after `step`.

        Raises:
            ConfigError: before the first step, if the metric whose best step is to be kept is not
                among them. Later it may be missing, as where nothing could be judged.
        """
        metric = self.config.keep_best
        if step == 0 and metric is not None and metric not in values:
            raise ConfigError(
                f"checkpoint.keep_best: no metric {metric!r} is measured; there are "
                f"{', '.join(sorted(values))}"
            )
        self.evaluations[step] = values

    def is_due(self, values: Mapping[str, float]) -> bool:
        """Whether to save the step just completed: it is the best, or its turn has come.

        values: its metrics.
        """
        step, every, metric = self.steps_completed, self.config.every, self.config.keep_best
        value = None if metric is None else values.get(metric)
        if metric is not None and value is not None and improves(metric, value, self.best_value):
            self.best_value, self.best_step = value, step
            return True
        # Not only of a multiple of `every`: a step whose turn it was may have been passed over.
        return bool(every) and step // every > self.saved_step // every

    async def save(
        self,
        save_trainers: Callable[[Path], Awaitable[None]],
        *,
        state: Mapping[str, Any],
        rewards: Mapping[str, bytes],
    ) -> None:
        """Write a checkpoint after the last completed step. state: that of the command, JSON.

        Raises:
            CheckpointError: if it cannot be written; earlier checkpoints are untouched.
        """
        self.tracker.phase("saving a checkpoint")
        run_state = RunState(
            step=self.steps_completed,
            state=state,
            best_value=self.best_value,
            best_step=self.best_step,
            versions=library_versions(),
        )
        await self.checkpoints.save(run_state, save_trainers, rewards=rewards)
        self.saved_step = run_state.step

    def whole_steps(self) -> list[int]:
        """Steps to go back to, ascending; damaged checkpoints after the last are set aside."""
        for line in self.checkpoints.set_aside_damaged():
            self.tracker.note(f"warning: {line}")
        return self.checkpoints.steps()

    async def restore(
        self, load_trainers: Callable[[Path], Awaitable[None]]
    ) -> tuple[Path, Mapping[str, Any]]:
        """Go back to the latest checkpoint; its folder, and the state that `save` was given.

        Raises:
            CheckpointError: if there is none, or it cannot be read.
        """
        self.whole_steps()
        path, saved = self.checkpoints.latest()
        self.tracker.phase(f"resuming from {path}")
        await load_trainers(path / "trainer")
        self.best_value, self.best_step = saved.best_value, saved.best_step
        self.steps_completed = self.saved_step = saved.step
        self.tracker.truncate_after(saved.step)
        if saved.versions != library_versions():
            self.tracker.note(
                f"resuming with other library versions than the checkpoint was written by "
                f"({saved.versions}): results may differ in the last bits"
            )
        return path, saved.state
