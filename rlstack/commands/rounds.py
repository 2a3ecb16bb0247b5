"""Learning from what the policy samples itself, in rounds: sample, judge, select, train, repeat.

A round is a supervised training on rows that were selected from the samples of the policy as the
round before left it. The rows lie in RUN_DIR/rounds/round_001/data.jsonl, so that a run that is
resumed in the middle of a round goes on with the same ones; beside them is what the rewards
remembered after they had judged the samples.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

import numpy as np

from rlstack.commands import supervised
from rlstack.commands.loop import Loop, RunPart, with_report
from rlstack.commands.policy_samples import PolicySamples
from rlstack.commands.restarts import taken_up
from rlstack.commands.supervised import Learner
from rlstack.commands.wiring import Running, Sampling, reward_models, started
from rlstack.config.rounds import SampledConfig
from rlstack.data.dataset import Dataset, SampleT, SkipReport, Source, load_prompts
from rlstack.data.held_out import train_and_held_out
from rlstack.data.sampler import PromptSampler
from rlstack.data.selection import Record, Selection
from rlstack.data.tokenizer import Tokenizer
from rlstack.errors import CheckpointError, DataError
from rlstack.evaluation import rollout_metrics
from rlstack.faults import SkippedUpdates
from rlstack.metrics import Metrics
from rlstack.planning.spec import RunSpec, TrainedRole
from rlstack.run import jsonl
from rlstack.run.checkpoint import load_rewards, write_rewards
from rlstack.run.folders import whole_folder
from rlstack.run.progress import Summary
from rlstack.types import Group, Phase, Prompt
from workers.groups.ranks import PolicyGroup

NOTHING_SKIPPED = SkipReport(counts={}, messages=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round, as a learner must know it."""

    number: int
    folder: Path
    is_start: bool
    """Whether the policy is the one that sampled the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsTraining(Generic[SampleT]):
    """A training in rounds whose configuration and model have been checked."""

    command: str
    config: SampledConfig
    tokenizer: Tokenizer
    rows_per_prompt: int
    """The most that are selected of the samples of a prompt."""
    select: Callable[[Sequence[Group]], Selection[SampleT]]
    to_record: Callable[[SampleT], Record]
    from_record: Callable[[Record], SampleT]
    learner: Callable[[PolicyGroup, Round, Sequence[SampleT]], Learner[SampleT, Any]]


async def run(training: RoundsTraining[SampleT]) -> Summary:
    """Read the prompts and carry out all rounds."""
    data = training.config.data
    load = partial(load_prompts, tokenizer=training.tokenizer, config=data)
    return await train(training, *train_and_held_out(data, load))


async def train(
    training: RoundsTraining[SampleT], prompts: Dataset[Prompt], held_out: Dataset[Prompt]
) -> Summary:
    """Carry out all rounds; SIGTERM or Ctrl-C finish the step, save and stop."""
    config = training.config
    num_prompts = config.prompts_in_round(len(prompts.prompts))
    total_steps = config.rounds * config.num_steps(num_prompts * training.rows_per_prompt)
    spec = RunSpec(
        placement=config.placement,
        model=config.model,
        seed=config.seed,
        policy=TrainedRole(model=config.model, trainer=config.trainer, total_updates=total_steps),
        reward_models=reward_models(config.reward),
        rollout=config.rollout,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
        trained_temperature=1.0,
        ray_address=config.ray_address,
        faults=config.faults,
    )

    async def attempt(config: SampledConfig) -> Summary:
        async with started(
            config,
            spec,
            command=training.command,
            total_steps=total_steps,
            notes=supervised.notes(prompts, held_out, title="prompts"),
            sampling=Sampling(
                config=config,
                prompts=(*prompts.prompts, *held_out.prompts),
                tokenizer=training.tokenizer,
            ),
        ) as running:
            current = replace(training, config=config)
            return await _Rounds(current, prompts, held_out, running).run()

    return with_report(await taken_up(config, attempt, command=training.command), config)


class _Rounds(Generic[SampleT]):
    """Carries out the rounds of one run."""

    def __init__(
        self,
        training: RoundsTraining[SampleT],
        prompts: Dataset[Prompt],
        held_out: Dataset[Prompt],
        running: Running,
    ) -> None:
        roles, config = running.roles, training.config
        assert roles.policy is not None
        assert roles.reallocator is not None
        assert running.scorer is not None
        self.training = training
        self.held_out = held_out.prompts
        self.config = config
        self.running = running
        self.scorer = running.scorer
        self.policy_samples = PolicySamples(config, running)
        self.policy, self.reallocator = roles.policy, roles.reallocator
        self.run_dir = Path(config.run_dir)
        self.skipped = SkippedUpdates(most=config.faults.max_skipped_updates)
        self.loop = Loop(
            config,
            running,
            command=training.command,
            trainers={"policy": roles.policy},
            skipped=self.skipped,
        )
        self.num_prompts = config.prompts_in_round(len(prompts.prompts))
        self.sampler = PromptSampler.of_run(prompts, config.data, seed=config.seed)

    async def run(self) -> Summary:
        """Go from the latest checkpoint, or from the start, to the last round or to a stop."""
        saved = self.loop.progress.whole_steps() if self.config.resume is not None else []
        done = saved[-1] if saved else 0
        if self.config.resume is None:
            # Of a run that died before its first step, perhaps with another configuration.
            shutil.rmtree(self.run_dir / "rounds", ignore_errors=True)
        elif not saved:
            self.running.tracker.truncate_after(-1)  # the evaluation before the first step too
        start = 0
        for number in range(1, self.config.rounds + 1):
            folder = self.run_dir / "rounds" / f"round_{number:03d}"
            samples = await self._samples(folder, number, start, done)
            if not samples:
                self._check_nothing_to_learn(folder, number)
                await self.loop.export()
                break
            end = start + self.config.num_steps(len(samples))
            if done <= end:
                part = self._part(folder, samples, number, start, done)
                await self.reallocator.enter(Phase.TRAIN, version=start)
                await self.loop.run(part)
                if self.loop.stopped_early:
                    break
                if number < self.config.rounds:
                    await self._begin_anew()
            start = end
        return self.loop.summary

    async def _samples(self, folder: Path, number: int, start: int, done: int) -> list[SampleT]:
        """The rows of a round: from disk, or sampled now."""
        first = self.sampler.num_taken
        prompts = self.sampler.take(self.num_prompts)
        if folder.is_dir():
            await self.scorer.restore(load_rewards(folder))
        elif done > start:
            raise CheckpointError(
                f"{folder}: the rows of a round that was trained on are gone; restore them, or "
                "start a new run"
            )
        else:
            await self._sample(folder, prompts, first=first, number=number, step=start)
        return [self.training.from_record(row) for row in jsonl.read(folder / "data.jsonl")]

    async def _begin_anew(self) -> None:
        """Let the model alone go on to the next round, as iterative training does.

        Adapters are merged into it and the optimizer forgets; the learning rate is scheduled over
        all rounds.
        """
        if self.config.trainer.lora is None:
            await self.policy.reset_optimizer()
            return
        await self.policy.merge_adapters()
        # Merged weights are rounded otherwise than adapters beside weights.
        self.reallocator.weights_changed()

    def _part(
        self, folder: Path, samples: Sequence[SampleT], number: int, start: int, done: int
    ) -> RunPart:
        """What the loop carries out in a round of which `done - start` steps are done."""
        config, name = self.config, f"round {number}"
        end = start + config.num_steps(len(samples))
        finished = done == end
        current = Round(number=number, folder=folder, is_start=number == 1 or done <= start)
        learner = self.training.learner(self.policy, current, samples)
        dataset = Dataset(
            sources=(Source(name=name, weight=None, samples=tuple(samples)),),
            skipped=NOTHING_SKIPPED,
        )
        if not finished:
            self.running.tracker.note(dataset.summary(name))
        steps = supervised.Steps(config, dataset, learner, self.running, self.skipped, start=start)
        opening: dict[str, float] = json.loads((folder / "round.json").read_text())

        async def step(number: int) -> dict[str, float]:
            values = await steps.step(number)
            return values | opening if number == start + 1 else values

        return RunPart(
            end=end,
            step=step,
            evaluate=self._evaluate if self.held_out else None,
            state=steps.state,
            restore=steps.restore,
            resume=start < done,
            prepare=None if finished else learner.prepare,
            is_last=number == config.rounds,
        )

    async def _sample(
        self, folder: Path, prompts: Sequence[Prompt], *, first: int, number: int, step: int
    ) -> None:
        """Sample and judge with the present policy, and write what is selected to `folder`."""
        self.running.tracker.phase(f"round {number}: sampling")
        groups, metrics = await self.policy_samples.take(prompts, first=first, step=step)
        selection = self.training.select(groups)
        max_response_tokens = self.config.rollout.max_response_tokens
        metrics += rollout_metrics(groups, max_response_tokens=max_response_tokens)
        rewards = np.concatenate([group.rewards for group in groups])
        judged = rewards[~np.isnan(rewards)]
        metrics += Metrics.mean("reward/mean", float(judged.sum()), len(judged))
        counts = {"number": number, "num_rows": len(selection.samples)}
        counts |= {f"dropped_{reason}": count for reason, count in selection.dropped.items()}
        metrics += Metrics.of({f"round/{name}": float(n) for name, n in counts.items()})
        with whole_folder(folder) as unfinished:
            jsonl.write(unfinished / "data.jsonl", map(self.training.to_record, selection.samples))
            (unfinished / "round.json").write_text(json.dumps(metrics.values(), indent=2))
            write_rewards(unfinished, await self.scorer.state())

    async def _evaluate(self, step: int) -> dict[str, float]:
        return await self.policy_samples.evaluate(self.held_out, step=step)

    def _check_nothing_to_learn(self, folder: Path, number: int) -> None:
        """Let a later round end the run; in the first one it is a mistake."""
        found = json.loads((folder / "round.json").read_text())
        reasons = ", ".join(
            f"{name.removeprefix('round/dropped_')} {count:.0f}"
            for name, count in found.items()
            if name.startswith("round/dropped_") and count
        )
        text = f"round {number}: of {self.num_prompts} prompts nothing is left to learn ({reasons})"
        if number == 1:
            raise DataError(
                f"{text}; see {self.run_dir}/rollouts for what was sampled. Use more "
                "rollout.num_samples, other prompts, or a reward that tells responses apart"
            )
        self.running.tracker.note(f"{text}; the run ends here")
