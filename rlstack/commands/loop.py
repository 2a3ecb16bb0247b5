"""The one loop of every command that trains.

restore, evaluate before the first step, then step, evaluate, log and save; at the end export. A
signal to stop lets the step finish and saves it. What a step and an evaluation are, a command says
in a `RunPart`: all of its run, or a round of it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlstack.commands.wiring import Running
from rlstack.config.run import RLConfig
from rlstack.config.supervised import SupervisedConfig
from rlstack.errors import DataError
from rlstack.faults import SkippedUpdates
from rlstack.protocols import Saved, Trained
from rlstack.run.checkpoint import load_rewards, write_folder
from rlstack.run.progress import Progress, Summary
from rlstack.run.report import write_report


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPart:
    """What a command tells the loop of its steps, from where the run stands to `end`."""

    end: int
    """The last step."""
    step: Callable[[int], Awaitable[dict[str, float]]]
    """Carries out a step; its metrics."""
    evaluate: Callable[[int], Awaitable[dict[str, float]]] | None
    """Metrics `eval/...` after a step; None: nothing is held out."""
    state: Callable[[], Mapping[str, Any]]
    """JSON that `restore` goes on from; the trainers and the rewards have theirs."""
    restore: Callable[[Mapping[str, Any]], None]
    resume: bool
    """Whether to go on from the latest checkpoint."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Computes the reference logprobs, with the weights from before they are restored."""
    is_last: bool = True
    """Whether the run is over after it."""


class Loop:
    """Takes a run from its start, or from a checkpoint, to its end or to a stop."""

    def __init__(
        self,
        config: RLConfig | SupervisedConfig,
        running: Running,
        *,
        command: str,
        trainers: Mapping[str, Trained],
        skipped: SkippedUpdates,
        others: Mapping[str, Saved] | None = None,
    ) -> None:
        """trainers: of every trained role by name; the first one's model is the command's.

        skipped: while it counts skipped updates, no checkpoint takes the place of an older one.
        others: what is saved beside them, and not exported.
        """
        self.config = config
        self.command = command
        self.trainers = trainers
        self.saved: Mapping[str, Saved] = {**trainers, **(others or {})}
        self.skipped = skipped
        self.scorer = running.scorer
        self.stop = running.stop
        self.tracker = running.tracker
        self.run_dir = Path(config.run_dir)
        self.progress = Progress(config.checkpoint, running.tracker, run_dir=self.run_dir)
        self.model: Path | None = None
        self.stopped_early = False

    @property
    def summary(self) -> Summary:
        """What was achieved so far."""
        return Summary(
            steps_completed=self.progress.steps_completed,
            evaluations=self.progress.evaluations,
            model=self.model,
            stopped_early=self.stopped_early,
        )

    async def run(self, part: RunPart) -> Summary:
        """Carry out `part`; what was achieved so far."""
        progress = self.progress
        if part.prepare is not None:
            self.tracker.phase("reference logprobs")
            await part.prepare()
        if part.resume and self.progress.checkpoints.steps():
            await self._restore(part)
        elif part.resume:  # it died before its first checkpoint
            self.tracker.truncate_after(-1)
        first = progress.steps_completed
        if first == 0:
            evaluation = await self._evaluate(part, 0)
            if evaluation:
                self.tracker.log(0, evaluation)
        for step in range(first + 1, part.end + 1):
            values = await part.step(step)
            progress.steps_completed = step
            values |= await self._evaluate(part, step)
            self.tracker.log(step, values)
            if not self.skipped.under_way and progress.is_due(values):
                await self._save(part)
            if self.stop.is_set():
                self.stopped_early = step < part.end or not part.is_last
                break
        await self._save(part)
        if self.stopped_early:
            self.tracker.note(
                f"stopped after step {progress.steps_completed}; resume with "
                f"rlstack {self.command} resume={self.config.run_dir}"
            )
        elif part.is_last:
            await self.export()
        return self.summary

    async def export(self) -> None:
        """Write the models in Hugging Face format, if that is wanted."""
        if not self.config.checkpoint.export:
            return
        self.tracker.phase("exporting")
        for index, (name, trainer) in enumerate(self.trainers.items()):
            folder = self.run_dir / (f"export_{name}" if index else "export")
            await write_folder(folder, trainer.export)
        self.model = self.run_dir / "export"

    async def _evaluate(self, part: RunPart, step: int) -> dict[str, float]:
        """The metrics of an evaluation, where it is time for one."""
        every = self.config.evaluation.every
        is_end = part.is_last and step == part.end
        if part.evaluate is None or not every or (step % every and not is_end):
            return {}
        values = await part.evaluate(step)
        self.progress.evaluated(step, values)
        return values

    async def _save(self, part: RunPart) -> None:
        """Write a checkpoint after the last completed step, once."""
        if self.progress.is_saved:
            return
        rewards = {} if self.scorer is None else await self.scorer.state()
        await self.progress.save(self._save_roles, state=part.state(), rewards=rewards)

    async def _save_roles(self, directory: Path) -> None:
        for name, role in self.saved.items():
            await role.save(directory / name)

    async def _load_roles(self, directory: Path) -> None:
        for name, role in self.saved.items():
            await role.load(directory / name)

    async def _restore(self, part: RunPart) -> None:
        path, state = await self.progress.restore(self._load_roles)
        if self.scorer is not None:
            await self.scorer.restore(load_rewards(path))
        part.restore(state)


def with_report(summary: Summary, config: RLConfig | SupervisedConfig) -> Summary:
    """Write the report of a run whose tracker is closed; a run without one is done all the same."""
    try:
        return replace(summary, report=write_report(Path(config.run_dir)))
    except (OSError, DataError) as error:
        print(f"warning: no report: {error}; write it with rlstack report {config.run_dir}")
        return summary
