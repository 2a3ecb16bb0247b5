"""`rlstack rl`: reinforcement learning of a policy on the rewards of its own rollouts."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from rlstack.commands.loop import Loop, RunPart, with_report
from rlstack.commands.preflight import preflight
from rlstack.commands.restarts import taken_up
from rlstack.commands.rl_roles import (
    check_critic,
    check_plugin_parts,
    check_teacher,
    chosen_filtration,
    run_spec,
)
from rlstack.commands.wiring import Running, Sampling, started
from rlstack.config.run import RLConfig
from rlstack.controller import Controller, Roles
from rlstack.data.dataset import load_prompts
from rlstack.data.held_out import train_and_held_out
from rlstack.data.sampler import PromptSampler
from rlstack.generation import OnDemand
from rlstack.protocols import Filtration, Saved, Trained
from rlstack.run.progress import Summary
from rlstack.run.tracking import Tracker
from rlstack.types import Prompt
from workers.groups.moving_reference import MovingReferenceGroup
from workers.groups.ranks import ReferenceGroup


def run(config: RLConfig) -> Summary:
    """Train until `total_steps`; SIGTERM or Ctrl-C finish the step, save and stop."""
    return asyncio.run(_run(config))


async def _run(config: RLConfig) -> Summary:
    spec = run_spec(config)
    tokenizer = preflight(
        config, command="rl", longest_row=spec.max_prompt_tokens + spec.max_response_tokens
    )
    check_critic(config)
    check_teacher(config)
    check_plugin_parts(config.algorithm)
    filtration = chosen_filtration(config)
    load = partial(load_prompts, tokenizer=tokenizer, config=config.data)
    train, held_out = train_and_held_out(config.data, load)

    async def attempt(config: RLConfig) -> Summary:
        async with started(
            config,
            spec,
            command="rl",
            total_steps=config.total_steps,
            notes=[train.summary("training"), held_out.summary("held-out")],
            sampling=Sampling(
                config=config, prompts=(*train.prompts, *held_out.prompts), tokenizer=tokenizer
            ),
        ) as running:
            sampler = PromptSampler.of_run(train, config.data, seed=config.seed)
            controller = _controller(
                config, running, sampler, filtration, pad_token_id=tokenizer.pad_token_id
            )
            return await train_policy(config, controller, running, held_out.prompts)

    return with_report(await taken_up(config, attempt, command="rl"), config)


def _controller(
    config: RLConfig,
    running: Running,
    prompts: PromptSampler[Prompt],
    filtration: Filtration | None,
    *,
    pad_token_id: int,
) -> Controller:
    """Make the controller of the running roles, and its source of groups."""
    groups = running.roles
    assert running.sampler
    assert groups.policy
    assert groups.reallocator
    source = OnDemand(
        config,
        running.sampler,
        prompts=prompts,
        reallocator=groups.reallocator,
        timeline=running.timeline,
    )
    moving = None
    if config.reference.update.every is not None:
        assert isinstance(groups.reference, ReferenceGroup)
        moving = MovingReferenceGroup(groups.reference, groups.policy)
    roles = Roles(
        policy=groups.policy,
        reference=groups.reference,
        critic=groups.critic,
        filtration=filtration,
        moving_reference=moving,
    )
    return Controller(config, roles, source, pad_token_id=pad_token_id, timeline=running.timeline)


async def train_policy(
    config: RLConfig, controller: Controller, running: Running, held_out: Sequence[Prompt]
) -> Summary:
    """Take the steps of `controller` to the end, or to a stop."""
    steps = _Steps(controller, running.tracker, held_out)
    trainers: dict[str, Trained] = {"policy": controller.roles.policy}
    if controller.roles.critic is not None:
        trainers["critic"] = controller.roles.critic
    others: dict[str, Saved] = {}
    if controller.roles.moving_reference is not None:
        others["reference"] = controller.roles.moving_reference
    loop = Loop(
        config,
        running,
        command="rl",
        trainers=trainers,
        others=others,
        skipped=controller.skipped,
    )
    return await loop.run(
        RunPart(
            end=config.total_steps,
            step=steps.step,
            evaluate=steps.evaluate,
            state=controller.state,
            restore=controller.restore,
            resume=config.resume is not None,
        )
    )


class _Steps:
    """The controller's steps and evaluations, with their rollouts on disk."""

    def __init__(
        self, controller: Controller, tracker: Tracker, held_out: Sequence[Prompt]
    ) -> None:
        self.controller = controller
        self.tracker = tracker
        self.held_out = held_out

    async def step(self, step: int) -> dict[str, float]:
        """Take a step; its metrics."""
        timeline = self.controller.timeline
        timeline.begin_step(step)
        result = await self.controller.step(step)
        values = (result.metrics + timeline.end_step()).values()
        self.tracker.rollouts(result.groups, step=step)
        return values | throughput(values)

    async def evaluate(self, step: int) -> dict[str, float]:
        """Sample and score the held-out prompts; the metrics `eval/...`."""
        result = await self.controller.evaluate(self.held_out)
        self.tracker.rollouts(result.groups, step=step, evaluation=True)
        return result.metrics.values()


def throughput(values: Mapping[str, float]) -> dict[str, float]:
    """Tokens a second: generated in generation alone and in the whole step, and learned from."""
    num_tokens = values["rollout/num_tokens"]
    return {
        "rollout/tokens_per_s": num_tokens / values["time/rollout_s"],
        "update/tokens_per_s": values["update/num_tokens"] / values["time/update_s"],
        "step/tokens_per_s": num_tokens / values["time/step_s"],
    }
