"""Learning from what the policy samples itself, in rounds: sample, judge, select, train, repeat.

A round is a supervised training (`stages.supervised`) on rows that were selected from the samples
of the policy as the round before left it. The rows lie in RUN_DIR/rounds/round_001/data.jsonl, so
that a run that is resumed in the middle of a round goes on with the same ones; beside them is what
the rewards remembered after they had judged the samples.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np

from rlstack.batch import Rows
from rlstack.commands import supervised
from rlstack.commands.common import episodes, reward_models, serve_reward_models
from rlstack.commands.supervised import Learner, Part, Running, Stage, Training
from rlstack.config.rounds import SampledConfig
from rlstack.controller import sample_groups
from rlstack.data.dataset import Dataset, SampleT, SkipReport, Source
from rlstack.data.sampler import PromptSampler
from rlstack.data.selection import Record, Selection
from rlstack.data.tokenizer import Tokenizer
from rlstack.errors import CheckpointError, DataError
from rlstack.evaluation import evaluation_metrics, rollout_metrics
from rlstack.metrics import Metrics
from rlstack.planning.spec import RunSpec, TrainedRole
from rlstack.protocols import RolloutEngines
from rlstack.run import jsonl
from rlstack.run.checkpoint import Checkpoints, load_rewards, write_rewards
from rlstack.run.folders import whole_folder
from rlstack.run.progress import Summary
from rlstack.run.report import write_report
from rlstack.run.rollout_log import write_rollouts
from rlstack.seeds import Domain
from rlstack.types import Group, Phase, Prompt, SamplingSettings
from workers.groups.ranks import PolicyGroup
from workers.scoring.pool import ScorerPool

NOTHING_SKIPPED = SkipReport(counts={}, messages=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round, as a learner must know it."""

    number: int
    folder: Path
    is_start: bool
    """Whether the policy is the one that sampled the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsStage(Generic[SampleT]):
    """A stage of rounds, ready to start: all that a user can get wrong has been checked."""

    command: str
    config: SampledConfig
    tokenizer: Tokenizer
    prompts: Dataset[Prompt]
    held_out: Dataset[Prompt]
    rows_per_prompt: int
    """The most that are selected of the samples of a prompt."""
    select: Callable[[Sequence[Group]], Selection[SampleT]]
    to_record: Callable[[SampleT], Record]
    from_record: Callable[[Record], SampleT]
    learner: Callable[[PolicyGroup, Round, Sequence[SampleT]], Learner[SampleT, Any]]


async def run(stage: RoundsStage[SampleT]) -> Summary:
    """All rounds; SIGTERM or Ctrl-C finish the step, save and stop."""
    config = stage.config
    prompts = config.prompts_in_round(len(stage.prompts.prompts))
    total_steps = config.rounds * config.num_steps(prompts * stage.rows_per_prompt)
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
    )
    notes = [stage.prompts.summary("prompts")]
    if stage.held_out.sources:
        notes.append(stage.held_out.summary("held-out"))
    async with AsyncExitStack() as stack:
        rows = (*stage.prompts.prompts, *stage.held_out.prompts)
        scorer = ScorerPool(config.reward, row_rewards={p.reward for p in rows if p.reward})
        stack.callback(scorer.close)
        with_environment = stack.enter_context(episodes(config, stage.tokenizer, rows))
        running = await stack.enter_async_context(
            supervised.started(
                config, command=stage.command, total_steps=total_steps, spec=spec, notes=notes
            )
        )
        serve_reward_models(scorer, running.roles, config.reward)
        await scorer.ready()
        assert running.roles.engines is not None
        engines = await with_environment(running.roles.engines)
        summary = await _Rounds(stage, spec, running, engines, scorer).run()
    summary.report = write_report(Path(config.run_dir))
    return summary


class _Rounds(Generic[SampleT]):
    """The rounds of one run."""

    def __init__(
        self,
        stage: RoundsStage[SampleT],
        spec: RunSpec,
        running: Running,
        engines: RolloutEngines,
        scorer: ScorerPool,
    ) -> None:
        roles, config = running.roles, stage.config
        assert roles.policy is not None
        assert roles.reallocator is not None
        self.stage = stage
        self.config = config
        self.spec = spec
        self.running = running
        self.engines, self.scorer = engines, scorer
        self.policy, self.reallocator = roles.policy, roles.reallocator
        self.run_dir = Path(config.run_dir)
        self.num_prompts = config.prompts_in_round(len(stage.prompts.prompts))
        self.sampler = PromptSampler(
            stage.prompts,
            seed=config.seed,
            shuffle=config.data.shuffle,
            curriculum=config.data.curriculum,
        )

    async def run(self) -> Summary:
        """From the latest checkpoint, or from the start, to the last round or to a stop."""
        checkpoints = Checkpoints(self.run_dir, keep_last=self.config.checkpoint.keep_last)
        saved = checkpoints.steps() if self.config.resume is not None else []
        done = saved[-1] if saved else 0
        if self.config.resume is None:
            # Of a run that died before its first step, perhaps with another configuration.
            shutil.rmtree(self.run_dir / "rounds", ignore_errors=True)
        elif not saved:
            self.running.tracker.truncate_after(-1)  # the evaluation before the first step too
        start, training = 0, None
        for number in range(1, self.config.rounds + 1):
            first = self.sampler.num_taken
            prompts = self.sampler.take(self.num_prompts)
            folder = self.run_dir / "rounds" / f"round_{number:03d}"
            if folder.is_dir():
                await self.scorer.restore(load_rewards(folder))
            else:
                if done > start:
                    raise CheckpointError(
                        f"{folder}: the rows of a round that was trained on are gone; restore "
                        "them, or start a new run"
                    )
                await self._sample(folder, prompts, first=first, number=number, step=start)
            samples = [self.stage.from_record(row) for row in jsonl.read(folder / "data.jsonl")]
            if not samples:
                self._nothing_to_learn(folder, number, training)
                assert training is not None
                await training.export()
                break
            end = start + self.config.num_steps(len(samples))
            if done <= end:
                previous, training = training, self._training(folder, samples, number, start, done)
                if previous is not None:
                    training.progress.follow(previous.progress)
                await self.reallocator.enter(Phase.TRAIN, version=start)
                await training.run(self.running.stop)
                if training.summary.stopped_early:
                    break
                if number < self.config.rounds:
                    await self._begin_anew()
            start = end
        assert training is not None
        return training.summary

    async def _begin_anew(self) -> None:
        """What iterative training does from one round to the next: the model alone goes on.

        Adapters are merged into it and the optimizer forgets; the learning rate is scheduled over
        all rounds.
        """
        if self.config.trainer.lora is None:
            await self.policy.reset_optimizer()
            return
        await self.policy.merge_adapters()
        # Merged weights are rounded otherwise than adapters beside weights.
        self.reallocator.weights_changed()

    def _training(
        self, folder: Path, samples: Sequence[SampleT], number: int, start: int, done: int
    ) -> Training[SampleT, Rows]:
        stage, config = self.stage, self.config
        finished = done == start + config.num_steps(len(samples))
        info = Round(number=number, folder=folder, is_start=number == 1 or done <= start)
        learner = stage.learner(self.policy, info, samples)
        if finished:
            learner = replace(learner, prepare=None)
        name = f"round {number}"
        dataset = Dataset(
            sources=(Source(name=name, weight=None, samples=tuple(samples)),),
            skipped=NOTHING_SKIPPED,
        )
        if not finished:
            self.running.tracker.note(dataset.summary(name))
        part = Part(
            resume=start < done,
            start=start,
            last=number == config.rounds,
            opening=json.loads((folder / "round.json").read_text()),
            evaluate=self._evaluate if stage.held_out.prompts else None,
            scorer=self.scorer,
        )
        nothing: Dataset[SampleT] = Dataset(sources=(), skipped=NOTHING_SKIPPED)
        supervised_stage = Stage(
            command=stage.command,
            config=config,
            train=dataset,
            held_out=nothing,
            spec=self.spec,
            learner=lambda _: learner,
        )
        return Training(supervised_stage, learner, self.running.tracker, part)

    async def _sample(
        self, folder: Path, prompts: Sequence[Prompt], *, first: int, number: int, step: int
    ) -> None:
        """Sample and judge with the present policy, and write what is selected to `folder`."""
        self.running.tracker.phase(f"round {number}: sampling")
        metrics = await self.reallocator.enter(Phase.GENERATE, version=step)
        groups = await self._groups(
            prompts,
            num_samples=self.config.rollout.num_samples,
            domain=Domain.ROLLOUT,
            first=first,
            step=step,
        )
        metrics += await self.reallocator.enter(Phase.TRAIN, version=step)
        selection = self.stage.select(groups)
        metrics += rollout_metrics(
            groups, max_response_tokens=self.config.rollout.max_response_tokens
        )
        rewards = np.concatenate([group.rewards for group in groups])
        judged = rewards[~np.isnan(rewards)]
        metrics += Metrics.mean("reward/mean", float(judged.sum()), len(judged))
        counts = {"number": number, "num_rows": len(selection.samples)}
        counts |= {f"dropped_{reason}": count for reason, count in selection.dropped.items()}
        metrics += Metrics.of({f"round/{name}": float(n) for name, n in counts.items()})
        if self.config.tracking.save_rollouts:
            write_rollouts(groups, run_dir=self.run_dir, step=step + 1)
        with whole_folder(folder) as partial:
            jsonl.write(partial / "data.jsonl", map(self.stage.to_record, selection.samples))
            (partial / "round.json").write_text(json.dumps(metrics.values(), indent=2))
            write_rewards(partial, await self.scorer.state())

    async def _evaluate(self, step: int) -> Metrics:
        """Sample every held-out prompt once and score it."""
        await self.reallocator.enter(Phase.GENERATE, version=step)
        groups = await self._groups(
            self.stage.held_out.prompts,
            num_samples=1,
            domain=Domain.EVALUATION,
            first=0,
            step=step,
        )
        await self.reallocator.enter(Phase.TRAIN, version=step)
        if self.config.tracking.save_rollouts:
            write_rollouts(groups, run_dir=self.run_dir, step=step, evaluation=True)
        return evaluation_metrics(groups)

    async def _groups(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        domain: Domain,
        first: int,
        step: int,
    ) -> list[Group]:
        rollout = self.config.rollout
        return await sample_groups(
            prompts,
            engines=self.engines,
            scorer=self.scorer,
            num_samples=num_samples,
            sampling=SamplingSettings(
                temperature=rollout.temperature,
                max_response_tokens=rollout.max_response_tokens,
                stop=rollout.stop,
            ),
            seed=self.config.seed,
            domain=domain,
            numbers=range(first, first + len(prompts)),
            step=step,
        )

    def _nothing_to_learn(self, folder: Path, number: int, training: object) -> None:
        """A later round may end the run so; a first one is a mistake."""
        found = json.loads((folder / "round.json").read_text())
        reasons = ", ".join(
            f"{name.removeprefix('round/dropped_')} {count:.0f}"
            for name, count in found.items()
            if name.startswith("round/dropped_") and count
        )
        text = f"round {number}: of {self.num_prompts} prompts nothing is left to learn ({reasons})"
        if training is None:
            raise DataError(
                f"{text}; see {self.run_dir}/rollouts for what was sampled. Use more "
                "rollout.num_samples, other prompts, or a reward that tells responses apart"
            )
        self.running.tracker.note(f"{text}; the run ends here")
