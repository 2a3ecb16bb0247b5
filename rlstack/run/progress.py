"""How far a run has come, and its checkpoints: the same for every stage that trains."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlstack.config.checkpoint import CheckpointConfig
from rlstack.data.sampler import PromptSampler, SamplerState
from rlstack.errors import ConfigError
from rlstack.run.checkpoint import Checkpoints, RunState, improves
from rlstack.run.tracking import Tracker
from rlstack.run.versions import library_versions


@dataclass(kw_only=True)
class Summary:
    """What a run achieved."""

    run_dir: Path
    steps_completed: int = 0
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict[int, dict[str, float]])
    """step -> evaluation metrics, of this process"""
    model: Path | None = None
    """In Hugging Face format; None if it was not exported."""
    report: Path | None = None
    stopped_early: bool = False


class Progress:
    """The steps that are done, which of them was the best, and what of them is on disk."""

    def __init__(
        self,
        config: CheckpointConfig,
        sampler: PromptSampler[Any],
        tracker: Tracker,
        *,
        run_dir: Path,
        start: int = 0,
    ) -> None:
        self.config = config
        self.sampler = sampler
        self.tracker = tracker
        self.checkpoints = Checkpoints(run_dir, keep_last=config.keep_last)
        self.summary = Summary(run_dir=run_dir, steps_completed=start)
        self.saved_step = start
        self.best_value: float | None = None
        self.best_step: int | None = None

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint of the last completed step is on disk, or none is needed."""
        return self.summary.steps_completed == self.saved_step

    def evaluated(self, step: int, values: dict[str, float]) -> None:
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
        self.summary.evaluations[step] = values

    def is_due(self, values: Mapping[str, float]) -> bool:
        """Whether to save the step just completed: it is the best, or its turn has come.

        values: its metrics.
        """
        step, every, metric = self.summary.steps_completed, self.config.every, self.config.keep_best
        value = None if metric is None else values.get(metric)
        if metric is not None and value is not None and improves(metric, value, self.best_value):
            self.best_value, self.best_step = value, step
            return True
        return bool(every) and step % every == 0

    async def save(
        self,
        save_trainer: Callable[[Path], Awaitable[None]],
        *,
        rewards: Mapping[str, bytes],
        policy_version: int = 0,
        kl_coef: float = 0.0,
    ) -> None:
        """A checkpoint after the last completed step; see `RunState` for the last two.

        Raises:
            CheckpointError: if it cannot be written; earlier checkpoints are untouched.
        """
        self.tracker.phase("saving a checkpoint")
        state = RunState(
            step=self.summary.steps_completed,
            policy_version=policy_version,
            kl_coef=kl_coef,
            sampler=asdict(self.sampler.state()),
            best_value=self.best_value,
            best_step=self.best_step,
            versions=library_versions(),
        )
        await self.checkpoints.save(state, save_trainer, rewards=rewards)
        self.saved_step = state.step

    async def restore(
        self, load_trainer: Callable[[Path], Awaitable[None]]
    ) -> tuple[Path, RunState]:
        """Go back to the latest checkpoint; its folder, and what is in it for others to restore.

        Raises:
            CheckpointError: if there is none, or it cannot be read.
        """
        path, state = self.checkpoints.latest()
        self.tracker.phase(f"resuming from {path}")
        await load_trainer(path / "trainer")
        self.sampler.restore(SamplerState(**state.sampler))
        self.best_value, self.best_step = state.best_value, state.best_step
        self.summary.steps_completed = self.saved_step = state.step
        self.tracker.truncate_after(state.step)
        if state.versions != library_versions():
            self.tracker.note(
                f"resuming with other library versions than the checkpoint was written by "
                f"({state.versions}): results may differ in the last bits"
            )
        return path, state

    def follow(self, previous: "Progress") -> None:
        """Take over what an earlier part of the run has found."""
        self.summary.evaluations |= previous.summary.evaluations
        self.best_value, self.best_step = previous.best_value, previous.best_step

    def note_stop(self, command: str) -> None:
        """Tell how to go on with a run that was stopped."""
        self.tracker.note(
            f"stopped after step {self.summary.steps_completed}; resume with "
            f"rlstack {command} resume={self.summary.run_dir}"
        )
