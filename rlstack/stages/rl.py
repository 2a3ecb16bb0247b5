"""`rlstack rl`: wire the roles of a run together, then step, evaluate, track and checkpoint."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rlstack.checkpoint import Checkpoints, RunState, improves, load_rewards, write_folder
from rlstack.config.load import dump
from rlstack.config.run import RLConfig
from rlstack.controller import Controller, Roles
from rlstack.data.sampler import PromptSampler, SamplerState
from rlstack.protocols import Filtration, Trained
from rlstack.report import write_report
from rlstack.rollout_log import write_rollouts
from rlstack.stages.common import (
    check_unused,
    episodes,
    library_versions,
    load_train_and_held_out,
    serve_reward_models,
    stop_signals,
)
from rlstack.stages.rl_roles import check_roles, chosen_filtration, launch_spec
from rlstack.timeline import Timeline
from rlstack.tracking import Tracker
from rlstack.types import Prompt
from workers.adapter_targets import check_adapters
from workers.launch import launch
from workers.launch_spec import LaunchSpec
from workers.loading import (
    check_model,
    check_positions,
    load_tokenizer,
)
from workers.scorer import ScorerPool


@dataclass(kw_only=True)
class RunSummary:
    """What a run achieved."""

    run_dir: Path
    steps_completed: int = 0
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict[int, dict[str, float]])
    """step -> evaluation metrics, of this process"""
    report: Path | None = None
    stopped_early: bool = False


def run(config: RLConfig) -> RunSummary:
    """Train until `total_steps`; SIGTERM or Ctrl-C finish the step, save and stop."""
    return asyncio.run(_run(config))


async def _run(config: RLConfig) -> RunSummary:
    run_dir = Path(config.run_dir)
    spec, filtration = _checked(config)
    tokenizer = load_tokenizer(config.model)
    train, held_out = load_train_and_held_out(config.data, tokenizer)
    sampler = PromptSampler(
        train, seed=config.seed, shuffle=config.data.shuffle, curriculum=config.data.curriculum
    )
    async with AsyncExitStack() as stack:
        prompts = (*train.prompts, *held_out.prompts)
        row_rewards = {p.reward for p in prompts if p.reward}
        scorer = ScorerPool(config.reward, row_rewards=row_rewards)
        stack.callback(scorer.close)
        with_environment = stack.enter_context(episodes(config, tokenizer, prompts))
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(dump(config))
        tracker = stack.enter_context(
            Tracker.open(
                config.tracking, run_dir=run_dir, total_steps=config.total_steps, title="rl"
            )
        )
        tracker.note(train.summary("training"))
        tracker.note(held_out.summary("held-out"))
        tracker.phase("starting engines and trainers")
        workers = await stack.enter_async_context(launch(spec))
        assert workers.policy
        assert workers.engines
        assert workers.reallocator
        serve_reward_models(scorer, workers, config.reward)
        stop = stack.enter_context(stop_signals())  # after Ray, which sets handlers of its own
        await scorer.ready()
        timeline = Timeline(run_dir, on_span=tracker.span)
        roles = Roles(
            engines=await with_environment(workers.engines),
            scorer=scorer,
            policy=workers.policy,
            reference=workers.reference,
            critic=workers.critic,
            filtration=filtration,
            reallocator=workers.reallocator,
        )
        controller = Controller(
            config,
            roles,
            sampler=sampler,
            pad_token_id=tokenizer.pad_token_id,
            timeline=timeline,
        )
        training = Training(config, controller, tracker, held_out.prompts)
        await training.run(stop)
    training.summary.report = write_report(run_dir)
    return training.summary


def _checked(config: RLConfig) -> tuple[LaunchSpec, Filtration | None]:
    """The roles and the filtration, once all that a user can get wrong in them has been checked."""
    if config.resume is None:
        check_unused(Path(config.run_dir), command="rl")
    spec = launch_spec(config)
    check_model(config.model)
    check_roles(config)
    check_adapters(config.model, config.trainer.lora, key="trainer.lora")
    check_positions(config.model, longest_row=spec.max_prompt_tokens + spec.max_response_tokens)
    return spec, chosen_filtration(config)


class Training:
    """The steps of one run, with everything that happens between them."""

    def __init__(
        self,
        config: RLConfig,
        controller: Controller,
        tracker: Tracker,
        held_out: tuple[Prompt, ...],
    ) -> None:
        self.config = config
        self.controller = controller
        self.tracker = tracker
        self.held_out = held_out
        self.run_dir = Path(config.run_dir)
        self.checkpoints = Checkpoints(self.run_dir, keep_last=config.checkpoint.keep_last)
        self.summary = RunSummary(run_dir=self.run_dir)
        self.saved_step: int | None = None
        self.best_value: float | None = None
        self.best_step: int | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """From the latest checkpoint, or from the start, to the end or to `stop`."""
        config, controller = self.config, self.controller
        if config.resume is not None:
            await self._restore()
        first = self.summary.steps_completed
        if config.evaluation.every and first == 0:
            self.tracker.log(0, await self._evaluate(0))
        for step in range(first + 1, config.total_steps + 1):
            controller.timeline.begin_step(step)
            result = await controller.step(step)
            self.summary.steps_completed = step
            metrics = result.metrics + controller.timeline.end_step()
            if config.tracking.save_rollouts:
                write_rollouts(result.groups, run_dir=self.run_dir, step=step)
            evaluating = config.evaluation.every and (
                step % config.evaluation.every == 0 or step == config.total_steps
            )
            values = metrics.values()
            values |= throughput(values) | (await self._evaluate(step) if evaluating else {})
            self.tracker.log(step, values)
            self._remember_best(step, values)
            if config.checkpoint.every and step % config.checkpoint.every == 0:
                await self._save()
            if stop.is_set():
                self.summary.stopped_early = step < config.total_steps
                break
        await self._save()
        if self.summary.stopped_early:
            self.tracker.note(
                f"stopped after step {self.summary.steps_completed}; resume with "
                f"rlstack rl resume={self.run_dir}"
            )
        elif config.checkpoint.export:
            self.tracker.phase("exporting")
            await write_folder(self.run_dir / "export", controller.roles.policy.export)
            if controller.roles.critic is not None:
                await write_folder(self.run_dir / "export_critic", controller.roles.critic.export)

    async def _evaluate(self, step: int) -> dict[str, float]:
        result = await self.controller.evaluate(self.held_out)
        if self.config.tracking.save_rollouts:
            write_rollouts(result.groups, run_dir=self.run_dir, step=step, evaluation=True)
        values = result.metrics.values()
        self.summary.evaluations[step] = values
        return {name: value for name, value in values.items() if name.startswith("eval/")}

    def _remember_best(self, step: int, values: dict[str, float]) -> None:
        metric = self.config.checkpoint.keep_best
        if metric is None or metric not in values:
            return
        if improves(metric, values[metric], self.best_value):
            self.best_value, self.best_step = values[metric], step

    async def _save(self) -> None:
        """Checkpoint after the last completed step, once."""
        step = self.summary.steps_completed
        if step in (0, self.saved_step):
            return
        self.tracker.phase("saving a checkpoint")
        state = RunState(
            step=step,
            policy_version=self.controller.policy_version,
            kl_coef=self.controller.kl_coef,
            sampler=asdict(self.controller.sampler.state()),
            best_value=self.best_value,
            best_step=self.best_step,
            versions=library_versions(),
        )
        rewards = await self.controller.roles.scorer.state()
        await self.checkpoints.save(state, self._save_trainers, rewards=rewards)
        self.saved_step = step

    async def _save_trainers(self, directory: Path) -> None:
        for name, trainer in self._trainers().items():
            await trainer.save(directory / name)

    def _trainers(self) -> dict[str, Trained]:
        """By the name of their folder in a checkpoint."""
        roles = self.controller.roles
        critic: dict[str, Trained] = {"critic": roles.critic} if roles.critic else {}
        return {"policy": roles.policy, **critic}

    async def _restore(self) -> None:
        path, state = self.checkpoints.latest()
        self.tracker.phase(f"resuming from {path}")
        for name, trainer in self._trainers().items():
            await trainer.load(path / "trainer" / name)
        await self.controller.roles.scorer.restore(load_rewards(path))
        self.controller.sampler.restore(SamplerState(**state.sampler))
        self.controller.policy_version = state.policy_version
        self.controller.kl_coef = state.kl_coef
        self.best_value, self.best_step = state.best_value, state.best_step
        self.summary.steps_completed = self.saved_step = state.step
        self.tracker.truncate_after(state.step)
        if state.versions != library_versions():
            self.tracker.note(
                f"resuming with other library versions than the checkpoint was written by "
                f"({state.versions}): results may differ in the last bits"
            )


def throughput(values: dict[str, float]) -> dict[str, float]:
    """Generated tokens a second, of generation alone and of the whole step."""
    num_tokens = values["rollout/num_tokens"]
    return {
        "rollout/tokens_per_s": num_tokens / values["time/rollout_s"],
        "update/tokens_per_s": num_tokens / values["time/update_s"],
        "step/tokens_per_s": num_tokens / values["time/step_s"],
    }
