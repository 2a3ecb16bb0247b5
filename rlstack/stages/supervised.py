"""The loop of every stage that learns from a fixed data set: `rlstack sft` and its like.

Such a stage says what differs, and `run` does the rest: the run directory, launching, the order of
the data, held-out evaluation, checkpoints, resuming, stop signals, tracking, export and report. A
stage module has three things to do (see `stages.sft`, which is nothing else):

1. read the data: two `Dataset`s, for training and held out;
2. say which roles to start: a `LaunchSpec` with `total_updates=config.num_steps(rows)`;
3. make a `Learner` of the running roles: how samples become a batch, how a batch is learned from,
   how it is measured, and whose weights those are.

Its configuration is a `SupervisedConfig`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rlstack.batch import Rows
from rlstack.checkpoint import Checkpoints, RunState, improves, load_rewards, write_folder
from rlstack.config.load import dump
from rlstack.config.supervised import SupervisedConfig
from rlstack.data.dataset import Dataset, SampleT
from rlstack.data.sampler import PromptSampler, SamplerState
from rlstack.metrics import Metrics, merge
from rlstack.protocols import Scorer
from rlstack.report import write_report
from rlstack.stages.common import check_unused, library_versions, stop_signals
from rlstack.timeline import Timeline
from rlstack.tracking import Tracker
from workers.launch import Roles, launch
from workers.launch_spec import LaunchSpec

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
    spec: LaunchSpec
    learner: Callable[[Roles], Learner[SampleT, BatchT]]


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

    roles: Roles
    tracker: Tracker
    stop: asyncio.Event


@asynccontextmanager
async def started(
    config: SupervisedConfig, *, command: str, total_steps: int, spec: LaunchSpec, notes: list[str]
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
        self.checkpoints = Checkpoints(self.run_dir, keep_last=config.checkpoint.keep_last)
        self.summary = Summary(run_dir=self.run_dir, steps_completed=part.start)
        self.saved_step: int | None = part.start
        self.best_value: float | None = None
        self.best_step: int | None = None

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
        every = self.config.checkpoint.every
        for step in range(first + 1, self.total_steps + 1):
            values = await self._step(step)
            self.summary.steps_completed = step
            if self._evaluates(step):
                values |= await self._evaluate(step)
            self.tracker.log(step, values)
            if self._is_best(step, values) or (every and step % every == 0):
                await self._save()
            if stop.is_set():
                self.summary.stopped_early = step < self.total_steps or not self.part.last
                break
        await self._save()
        if self.summary.stopped_early:
            self.tracker.note(
                f"stopped after step {self.summary.steps_completed}; resume with "
                f"rlstack {self.command} resume={self.run_dir}"
            )
        elif self.part.last:
            await self.export()

    async def export(self) -> None:
        """Write the model in Hugging Face format, if that is wanted."""
        if self.config.checkpoint.export:
            self.tracker.phase("exporting")
            self.summary.model = self.run_dir / "export"
            await write_folder(self.summary.model, self.learner.trainer.export)

    def follow(self, previous: "Training[SampleT, BatchT]") -> None:
        """Take over what an earlier part of the run has found."""
        self.summary.evaluations |= previous.summary.evaluations
        self.best_value, self.best_step = previous.best_value, previous.best_step

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
        self.summary.evaluations[step] = values = metrics.values()
        return values

    async def _evaluate_held_out(self) -> Metrics:
        rows = self.config.data.prompts_per_step
        parts = [
            await self.learner.evaluate(self.learner.collate(self.held_out[start : start + rows]))
            for start in range(0, len(self.held_out), rows)
        ]
        return self.learner.summarize(parts)

    def _is_best(self, step: int, values: dict[str, float]) -> bool:
        metric = self.config.checkpoint.keep_best
        if metric not in values or not improves(metric, values[metric], self.best_value):
            return False
        self.best_value, self.best_step = values[metric], step
        return True

    async def _save(self) -> None:
        """Checkpoint after the last completed step, once."""
        step = self.summary.steps_completed
        if step in (0, self.saved_step):
            return
        self.tracker.phase("saving a checkpoint")
        state = RunState(
            step=step,
            sampler=asdict(self.sampler.state()),
            best_value=self.best_value,
            best_step=self.best_step,
            versions=library_versions(),
        )
        rewards = {} if self.part.scorer is None else await self.part.scorer.state()
        await self.checkpoints.save(state, self.learner.trainer.save, rewards=rewards)
        self.saved_step = step

    async def _restore(self) -> None:
        path, state = self.checkpoints.latest()
        self.tracker.phase(f"resuming from {path}")
        await self.learner.trainer.load(path / "trainer")
        if self.part.scorer is not None:
            await self.part.scorer.restore(load_rewards(path))
        self.sampler.restore(SamplerState(**state.sampler))
        self.best_value, self.best_step = state.best_value, state.best_step
        self.summary.steps_completed = self.saved_step = state.step
        self.tracker.truncate_after(state.step)
        if state.versions != library_versions():
            self.tracker.note(
                f"resuming with other library versions than the checkpoint was written by "
                f"({state.versions}): results may differ in the last bits"
            )
