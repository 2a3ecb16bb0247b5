"""The loop of every stage that learns from a fixed data set: `rlstack sft` and its like.

Such a stage says what differs, and `run` does the rest: the run directory, launching, the order of
the data, held-out evaluation, checkpoints, resuming, stop signals, tracking, export and report. A
stage module has three things to do (see `stages.sft`, which is nothing else):

1. read the data: two `Dataset`s, for training and held out;
2. say which roles to start: `policy_stage`, or a `RunSpec` of its own with
   `total_updates=config.num_steps(rows)`;
3. make a `Learner` of the running roles: how samples become a batch, how a batch is learned from,
   how it is measured, and whose weights those are.

Its configuration is a `SupervisedConfig`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rlstack.batch import Rows
from rlstack.commands.common import check_unused, stop_signals
from rlstack.config.load import dump
from rlstack.config.supervised import SupervisedConfig
from rlstack.data.dataset import Dataset, SampleT
from rlstack.data.sampler import PromptSampler
from rlstack.metrics import Metrics, merge
from rlstack.planning.spec import RunSpec, TrainedRole
from rlstack.protocols import Scorer
from rlstack.run.checkpoint import load_rewards, write_folder
from rlstack.run.progress import Progress, Summary
from rlstack.run.report import write_report
from rlstack.run.timeline import Timeline
from rlstack.run.tracking import Tracker
from workers.groups.ranks import PolicyGroup
from workers.launch.launch import WorkerGroups, launch

BatchT = TypeVar("BatchT", bound=Rows)


class Trainer(Protocol):
    """Whoever holds the weights that are trained."""

    async def save(self, directory: Path) -> None: ...

    async def load(self, directory: Path) -> None: ...

    async def export(self, directory: Path) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner(Generic[SampleT, BatchT]):
    """What a stage does with its samples."""

    trainer: Trainer
    collate: Callable[[Sequence[SampleT]], BatchT]
    update: Callable[[BatchT], Awaitable[Metrics]]
    """One optimizer step on the whole batch."""
    evaluate: Callable[[BatchT], Awaitable[Any]]
    """What is measured of held-out samples, without learning from them; any number of rows."""
    summarize: Callable[[Sequence[Any]], Metrics] = merge
    """Metrics `eval/...` of everything that `evaluate` has returned; metrics are added up."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Once, before weights are restored: what must be computed with those of the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Generic[SampleT, BatchT]):
    """A stage, ready to start: everything that a user can get wrong has been checked."""

    command: str
    """sft, ..."""
    config: SupervisedConfig
    train: Dataset[SampleT]
    held_out: Dataset[SampleT]
    spec: RunSpec
    learner: Callable[[WorkerGroups], Learner[SampleT, BatchT]]


def policy_stage(
    *,
    command: str,
    config: SupervisedConfig,
    train: Dataset[SampleT],
    held_out: Dataset[SampleT],
    learner: Callable[[PolicyGroup], Learner[SampleT, BatchT]],
) -> Stage[SampleT, BatchT]:
    """A stage that trains a policy and starts nothing else."""

    def of_roles(roles: WorkerGroups) -> Learner[SampleT, BatchT]:
        assert roles.policy is not None
        return learner(roles.policy)

    spec = RunSpec(
        placement=config.placement,
        model=config.model,
        seed=config.seed,
        policy=TrainedRole(
            model=config.model,
            trainer=config.trainer,
            total_updates=config.num_steps(len(train.prompts)),
        ),
        ray_address=config.ray_address,
    )
    return Stage(
        command=command, config=config, train=train, held_out=held_out, spec=spec, learner=of_roles
    )


def check_run_dir(config: SupervisedConfig, *, command: str) -> None:
    """A new run has a directory of its own; call it before the data are read.

    Raises:
        ConfigError: if the directory holds a run already and the configuration does not resume it.
    """
    if config.resume is None:
        check_unused(Path(config.run_dir), command=command)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a started stage works with."""

    roles: WorkerGroups
    tracker: Tracker
    stop: asyncio.Event


@asynccontextmanager
async def started(
    config: SupervisedConfig, *, command: str, total_steps: int, spec: RunSpec, notes: list[str]
) -> AsyncIterator[Running]:
    """Start what `spec` names, in a run directory with its tracker; end it all on leaving."""
    run_dir = Path(config.run_dir)
    async with AsyncExitStack() as stack:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(dump(config))
        tracker = stack.enter_context(
            Tracker.open(config.tracking, run_dir=run_dir, total_steps=total_steps, title=command)
        )
        for note in notes:
            tracker.note(note)
        tracker.phase("starting engines and trainers" if spec.rollout else "starting trainers")
        roles = await stack.enter_async_context(launch(spec))
        stop = stack.enter_context(stop_signals())  # after Ray, which sets handlers of its own
        yield Running(roles=roles, tracker=tracker, stop=stop)


async def run(stage: Stage[SampleT, BatchT]) -> Summary:
    """Train to the last step; SIGTERM or Ctrl-C finish the step, save and stop."""
    config = stage.config
    notes = [stage.train.summary("training")]
    if stage.held_out.sources:
        notes.append(stage.held_out.summary("held-out"))
    async with started(
        config,
        command=stage.command,
        total_steps=config.num_steps(len(stage.train.prompts)),
        spec=stage.spec,
        notes=notes,
    ) as running:
        part = Part(resume=config.resume is not None)
        training = Training(stage, stage.learner(running.roles), running.tracker, part)
        await training.run(running.stop)
    training.summary.report = write_report(Path(config.run_dir))
    return training.summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which part of a run is trained: all of it, or one of several rounds."""

    resume: bool
    """Whether to go on from the latest checkpoint."""
    start: int = 0
    """Steps before it."""
    last: bool = True
    """Whether the model is exported after it."""
    opening: Mapping[str, float] = field(default_factory=dict[str, float])
    """Metrics to be shown with the first step."""
    evaluate: Callable[[int], Awaitable[Metrics]] | None = None
    """Metrics `eval/...` after a step, in place of the learner's on held-out samples."""
    scorer: Scorer | None = None
    """What its rewards remember belongs to the checkpoints."""


class Training(Generic[SampleT, BatchT]):
    """The steps of one run, with everything that happens between them."""

    def __init__(
        self,
        stage: Stage[SampleT, BatchT],
        learner: Learner[SampleT, BatchT],
        tracker: Tracker,
        part: Part,
    ) -> None:
        config = stage.config
        self.command = stage.command
        self.config = config
        self.learner = learner
        self.sampler = PromptSampler(
            stage.train,
            seed=config.seed,
            shuffle=config.data.shuffle,
            curriculum=config.data.curriculum,
        )
        self.tracker = tracker
        self.part = part
        self.held_out = stage.held_out.prompts
        self.num_rows = len(stage.train.prompts)
        self.total_steps = part.start + config.num_steps(self.num_rows)
        self.run_dir = Path(config.run_dir)
        self.timeline = Timeline(self.run_dir, on_span=tracker.span)
        self.progress = Progress(
            config.checkpoint, self.sampler, tracker, run_dir=self.run_dir, start=part.start
        )
        self.summary = self.progress.summary

    async def run(self, stop: asyncio.Event) -> None:
        """From the latest checkpoint, or from the start, to the end or to `stop`."""
        if self.learner.prepare is not None:
            self.tracker.phase("reference logprobs")
            await self.learner.prepare()
        if self.part.resume:
            await self._restore()
        first = self.summary.steps_completed
        if first == 0 and self._evaluates(0):
            self.tracker.log(0, await self._evaluate(0))
        for step in range(first + 1, self.total_steps + 1):
            values = await self._step(step)
            self.summary.steps_completed = step
            if self._evaluates(step):
                values |= await self._evaluate(step)
            self.tracker.log(step, values)
            if self.progress.is_due(values):
                await self._save()
            if stop.is_set():
                self.summary.stopped_early = step < self.total_steps or not self.part.last
                break
        await self._save()
        if self.summary.stopped_early:
            self.progress.note_stop(self.command)
        elif self.part.last:
            await self.export()

    async def export(self) -> None:
        """Write the model in Hugging Face format, if that is wanted."""
        if self.config.checkpoint.export:
            self.tracker.phase("exporting")
            self.summary.model = self.run_dir / "export"
            await write_folder(self.summary.model, self.learner.trainer.export)

    async def _step(self, step: int) -> dict[str, float]:
        self.timeline.begin_step(step)
        rows = self.config.data.prompts_per_step
        with self.timeline.span("collate"):
            batch = self.learner.collate(self.sampler.take(rows))
        with self.timeline.span("update"):
            metrics = await self.learner.update(batch)
        values = (metrics + self.timeline.end_step()).values()
        num_tokens = int(batch.lengths.sum())
        if step == self.part.start + 1:
            values |= self.part.opening
        return values | {
            "data/epoch": (step - self.part.start) * rows / self.num_rows,
            "update/num_tokens": num_tokens,
            "update/tokens_per_s": num_tokens / values["time/update_s"],
        }

    def _evaluates(self, step: int) -> bool:
        every = self.config.evaluation.every
        wanted = bool(every and (self.held_out or self.part.evaluate))
        return wanted and (step % every == 0 or (self.part.last and step == self.total_steps))

    async def _evaluate(self, step: int) -> dict[str, float]:
        self.tracker.span("evaluation")
        if self.part.evaluate is not None:
            metrics = await self.part.evaluate(step)
        else:
            metrics = await self._evaluate_held_out()
        values = metrics.values()
        self.progress.evaluated(step, values)
        return values

    async def _evaluate_held_out(self) -> Metrics:
        rows = self.config.data.prompts_per_step
        parts = [
            await self.learner.evaluate(self.learner.collate(self.held_out[start : start + rows]))
            for start in range(0, len(self.held_out), rows)
        ]
        return self.learner.summarize(parts)

    async def _save(self) -> None:
        """Checkpoint after the last completed step, once."""
        if not self.progress.is_saved:
            rewards = {} if self.part.scorer is None else await self.part.scorer.state()
            await self.progress.save(self.learner.trainer.save, rewards=rewards)

    async def _restore(self) -> None:
        path, _ = await self.progress.restore(self.learner.trainer.load)
        if self.part.scorer is not None:
            await self.part.scorer.restore(load_rewards(path))
