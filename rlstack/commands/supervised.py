"""Supervised training: what `rlstack sft` and every command on a fixed data set share.

Such a command reads its data, two `Dataset`s, and makes a `Learner` of the running roles: how
samples become a batch, how a batch is learned from, how it is measured, and whose weights those
are. `run` does the rest (see `sft`, which is nothing else).

Its configuration is a `SupervisedConfig`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from rlstack.batch import Rows
from rlstack.commands.loop import Loop, RunPart, with_report
from rlstack.commands.restarts import taken_up
from rlstack.commands.wiring import Running, started
from rlstack.config.supervised import SupervisedConfig
from rlstack.data.dataset import Dataset, SampleT
from rlstack.data.features import FeatureScale
from rlstack.data.sampler import PromptSampler, SamplerState
from rlstack.faults import SkippedUpdates
from rlstack.metrics import Metrics, merge
from rlstack.planning.spec import RunSpec, TrainedRole
from rlstack.protocols import Trained
from rlstack.run.progress import Summary
from workers.groups.ranks import PolicyGroup
from workers.launch.launch import WorkerGroups

BatchT = TypeVar("BatchT", bound=Rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner(Generic[SampleT, BatchT]):
    """What a command does with its samples."""

    trainer: Trained
    collate: Callable[[Sequence[SampleT]], BatchT]
    update: Callable[[BatchT], Awaitable[Metrics]]
    """Takes one optimizer step on the whole batch."""
    evaluate: Callable[[BatchT], Awaitable[Any]]
    """Measures held-out samples, without learning from them; any number of rows."""
    summarize: Callable[[Sequence[Any]], Metrics] = merge
    """Makes metrics `eval/...` of all that `evaluate` has returned; metrics are added up."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Computes what needs the weights of the start; once, before weights are restored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedTraining(Generic[SampleT, BatchT]):
    """A training that is ready to start: all that a user can get wrong has been checked."""

    command: str
    """sft, ..."""
    config: SupervisedConfig
    train: Dataset[SampleT]
    held_out: Dataset[SampleT]
    learner: Callable[[WorkerGroups], Learner[SampleT, BatchT]]
    role: Literal["policy", "reward_model"] = "policy"
    """What is trained."""
    features: FeatureScale | None = None
    """Of the responses that a reward model is trained on."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.num_steps(len(self.train.prompts))


async def run(training: SupervisedTraining[SampleT, BatchT]) -> Summary:
    """Train to the last step; SIGTERM or Ctrl-C finish the step, save and stop."""
    config = training.config
    trained = TrainedRole(
        model=config.model,
        trainer=config.trainer,
        total_updates=training.num_steps,
        features=training.features,
    )
    spec = RunSpec(
        placement=config.placement,
        model=config.model,
        seed=config.seed,
        policy=trained if training.role == "policy" else None,
        reward_trainer=trained if training.role == "reward_model" else None,
        ray_address=config.ray_address,
        faults=config.faults,
    )

    async def attempt(config: SupervisedConfig) -> Summary:
        async with started(
            config,
            spec,
            command=training.command,
            total_steps=training.num_steps,
            notes=notes(training.train, training.held_out, title="training"),
        ) as running:
            current = replace(training, config=config)
            return await learn(current, current.learner(running.roles), running)

    return with_report(await taken_up(config, attempt, command=training.command), config)


def policy_of(roles: WorkerGroups) -> PolicyGroup:
    """The policy, where one is trained."""
    assert roles.policy is not None
    return roles.policy


def notes(train: Dataset[Any], held_out: Dataset[Any], *, title: str) -> list[str]:
    """Lines that tell the user what was read."""
    lines = [train.summary(title)]
    return [*lines, held_out.summary("held-out")] if held_out.sources else lines


async def learn(
    training: SupervisedTraining[SampleT, BatchT],
    learner: Learner[SampleT, BatchT],
    running: Running,
) -> Summary:
    """Let `learner` learn from the data to the last step, or to a stop."""
    config, held_out = training.config, training.held_out.prompts
    skipped = SkippedUpdates(most=config.faults.max_skipped_updates)
    steps = Steps(config, training.train, learner, running, skipped)

    async def evaluate(_: int) -> dict[str, float]:
        return (await steps.evaluate(held_out)).values()

    part = RunPart(
        end=training.num_steps,
        step=steps.step,
        evaluate=evaluate if held_out else None,
        state=steps.state,
        restore=steps.restore,
        resume=config.resume is not None,
        prepare=learner.prepare,
    )
    trainers = {training.role: learner.trainer}
    loop = Loop(config, running, command=training.command, trainers=trainers, skipped=skipped)
    return await loop.run(part)


class Steps(Generic[SampleT, BatchT]):
    """Steps through a data set: the next rows, one update on them, its metrics."""

    def __init__(
        self,
        config: SupervisedConfig,
        train: Dataset[SampleT],
        learner: Learner[SampleT, BatchT],
        running: Running,
        skipped: SkippedUpdates,
        *,
        start: int = 0,
    ) -> None:
        """start: steps before the first one on these data."""
        self.learner = learner
        self.skipped = skipped
        self.start = start
        self.num_rows = len(train.prompts)
        self.rows_per_step = config.data.prompts_per_step
        self.sampler = PromptSampler.of_run(train, config.data, seed=config.seed)
        self.tracker, self.timeline = running.tracker, running.timeline

    async def step(self, step: int) -> dict[str, float]:
        """Learn from the next rows; metrics.

        Raises:
            TrainingError: if too many updates in a row were skipped.
        """
        timeline = self.timeline
        timeline.begin_step(step)
        with timeline.span("collate"):
            batch = self.learner.collate(self.sampler.take(self.rows_per_step))
        with timeline.span("update"):
            metrics = await self.learner.update(batch)
        self.skipped.observe(metrics)
        values = (metrics + timeline.end_step()).values()
        num_tokens = int(batch.lengths.sum())
        return values | {
            "data/epoch": (step - self.start) * self.rows_per_step / self.num_rows,
            "update/num_tokens": num_tokens,
            "update/tokens_per_s": num_tokens / values["time/update_s"],
        }

    async def evaluate(self, held_out: Sequence[SampleT]) -> Metrics:
        """Measure `held_out`, as many rows at once as a step has; metrics `eval/...`."""
        self.tracker.span("evaluation")
        learner, rows = self.learner, self.rows_per_step
        return learner.summarize(
            [
                await learner.evaluate(learner.collate(held_out[first : first + rows]))
                for first in range(0, len(held_out), rows)
            ]
        )

    def state(self) -> Mapping[str, Any]:
        """What `restore` goes on from."""
        return {"sampler": asdict(self.sampler.state())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.sampler.restore(SamplerState(**state["sampler"]))
