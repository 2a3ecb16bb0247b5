"""`rlstack rl`: wire the roles of a run together, then step, evaluate, track and checkpoint."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from rlstack.commands.common import (
    check_unused,
    episodes,
    load_train_and_held_out,
    serve_reward_models,
    stop_signals,
)
from rlstack.commands.rl_roles import check_roles, chosen_filtration, launch_spec
from rlstack.config.load import dump
from rlstack.config.run import RLConfig
from rlstack.controller import Controller, Roles
from rlstack.data.sampler import PromptSampler
from rlstack.planning.spec import RunSpec
from rlstack.protocols import Filtration, Trained
from rlstack.run.checkpoint import load_rewards, write_folder
from rlstack.run.progress import Progress, Summary
from rlstack.run.report import write_report
from rlstack.run.rollout_log import write_rollouts
from rlstack.run.timeline import Timeline
from rlstack.run.tracking import Tracker
from rlstack.types import Prompt
from workers.launch.launch import launch
from workers.models.adapter_targets import check_adapters
from workers.models.preflight import (
    check_model,
    check_positions,
    load_tokenizer,
)
from workers.scoring.pool import ScorerPool


def run(config: RLConfig) -> Summary:
    """Train until `total_steps`; SIGTERM or Ctrl-C finish the step, save and stop."""
    return asyncio.run(_run(config))


async def _run(config: RLConfig) -> Summary:
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
        running = await stack.enter_async_context(launch(spec))
        assert running.policy
        assert running.engines
        assert running.reallocator
        serve_reward_models(scorer, running, config.reward)
        stop = stack.enter_context(stop_signals())  # after Ray, which sets handlers of its own
        await scorer.ready()
        timeline = Timeline(run_dir, on_span=tracker.span)
        roles = Roles(
            engines=await with_environment(running.engines),
            scorer=scorer,
            policy=running.policy,
            reference=running.reference,
            critic=running.critic,
            filtration=filtration,
            reallocator=running.reallocator,
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


def _checked(config: RLConfig) -> tuple[RunSpec, Filtration | None]:
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
        self.progress = Progress(
            config.checkpoint, controller.sampler, tracker, run_dir=self.run_dir
        )
        self.summary = self.progress.summary

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
            if self.progress.is_due(values):
                await self._save()
            if stop.is_set():
                self.summary.stopped_early = step < config.total_steps
                break
        await self._save()
        if self.summary.stopped_early:
            self.progress.note_stop("rl")
        elif config.checkpoint.export:
            self.tracker.phase("exporting")
            self.summary.model = self.run_dir / "export"
            await write_folder(self.summary.model, controller.roles.policy.export)
            if controller.roles.critic is not None:
                await write_folder(self.run_dir / "export_critic", controller.roles.critic.export)

    async def _evaluate(self, step: int) -> dict[str, float]:
        result = await self.controller.evaluate(self.held_out)
        if self.config.tracking.save_rollouts:
            write_rollouts(result.groups, run_dir=self.run_dir, step=step, evaluation=True)
        values = result.metrics.values()
        values = {name: value for name, value in values.items() if name.startswith("eval/")}
        self.progress.evaluated(step, values)
        return values

    async def _save(self) -> None:
        """Checkpoint after the last completed step, once."""
        if self.progress.is_saved:
            return
        await self.progress.save(
            self._save_trainers,
            rewards=await self.controller.roles.scorer.state(),
            policy_version=self.controller.policy_version,
            kl_coef=self.controller.kl_coef,
        )

    async def _save_trainers(self, directory: Path) -> None:
        for name, trainer in self._trainers().items():
            await trainer.save(directory / name)

    def _trainers(self) -> dict[str, Trained]:
        """By the name of their folder in a checkpoint."""
        roles = self.controller.roles
        critic: dict[str, Trained] = {"critic": roles.critic} if roles.critic else {}
        return {"policy": roles.policy, **critic}

    async def _load_trainers(self, directory: Path) -> None:
        for name, trainer in self._trainers().items():
            await trainer.load(directory / name)

    async def _restore(self) -> None:
        path, state = await self.progress.restore(self._load_trainers)
        await self.controller.roles.scorer.restore(load_rewards(path))
        self.controller.policy_version = state.policy_version
        self.controller.kl_coef = state.kl_coef


def throughput(values: dict[str, float]) -> dict[str, float]:
    """Tokens a second: generated in generation alone and in the whole step, and learned from."""
    num_tokens = values["rollout/num_tokens"]
    return {
        "rollout/tokens_per_s": num_tokens / values["time/rollout_s"],
        "update/tokens_per_s": values["update/num_tokens"] / values["time/update_s"],
        "step/tokens_per_s": num_tokens / values["time/step_s"],
    }
