"""`rlstack rl algorithm=NAME` for every NAME: a step of the real loop on real roles."""

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from rlstack.commands.rl_roles import chosen_filtration
from rlstack.config.faults import MeasuredAfter, MeasuredBefore
from rlstack.config.load import parse
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.config.run import RLConfig
from rlstack.controller import Controller, Roles
from rlstack.data.dataset import Dataset, SkipReport, Source
from rlstack.data.sampler import PromptSampler
from rlstack.generation import GroupSampler, OnDemand
from rlstack.planning.spec import TrainedRole
from rlstack.run.timeline import Timeline
from tests.config.test_load import CONF, TEACHER, rl_values
from tests.workers.conftest import (
    MAX_RESPONSE_TOKENS,
    Stack,
    frozen_role,
    make_prompts,
    random_batch,
    run_spec,
    running_stack,
    trainer_config,
)
from workers.groups.ranks import ReferenceGroup
from workers.scoring.pool import ScorerPool

pytestmark = [pytest.mark.real_stack, pytest.mark.timeout(300)]

ALGORITHMS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))
PLUGIN = '''
from rewards.registry import register
from rlstack.types import RewardRequest


@register("vowels")
def vowels(request: RewardRequest) -> float:
    """Share of vowels: it differs between any two responses of a random model."""
    return sum(letter in "aeiou" for letter in request.response) / (1 + len(request.response))
'''


@pytest.fixture(scope="module")
def stack(tied_model: Path, untied_model: Path) -> Iterator[Stack]:
    """With a critic and a sharded reference of another model; not every algorithm calls them."""
    spec = run_spec(tied_model, zero_stage=0)  # the other stages are in test_stack
    role = TrainedRole(
        model=spec.model, trainer=trainer_config(learning_rate=1e-4), total_updates=1
    )
    reference = frozen_role(untied_model, zero_stage=3)
    yield from running_stack(replace(spec, policy=role, critic=role, reference=reference))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScorerPool]:
    plugin = tmp_path_factory.mktemp("plugin") / "vowels.py"
    plugin.write_text(PLUGIN)
    config = RewardConfig(
        components=(RewardComponent(name="vowels"),),
        plugins=(str(plugin),),
        num_workers=1,
        timeout_s=10,
        memory_gib=16,
    )
    pool = ScorerPool(config)
    yield pool
    pool.close()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_of_every_algorithm(
    name: str, stack: Stack, scorer: ScorerPool, tmp_path: Path
) -> None:
    config = parse(
        RLConfig,
        rl_values(
            f"algorithm={name}",
            *TEACHER.get(name, []),
            "data.prompts_per_step=4",
            "rollout.num_samples=4",
            "rollout.temperature=0.8",
            f"rollout.max_response_tokens={MAX_RESPONSE_TOKENS}",
            "algorithm.updates_per_epoch=2",
        ),
    )
    roles = stack.roles
    assert roles.policy
    assert roles.engines
    assert roles.reallocator
    dataset = Dataset(
        sources=(Source(name="s", weight=None, samples=tuple(make_prompts(8))),),
        skipped=SkipReport(counts={}, messages=()),
    )
    timeline = Timeline(tmp_path, on_span=lambda _: None)
    source = OnDemand(
        config,
        GroupSampler(engines=roles.engines, scorer=scorer, seed=config.seed),
        prompts=PromptSampler(dataset, seed=0, shuffle=False, curriculum=None),
        reallocator=roles.reallocator,
        timeline=timeline,
    )
    controller = Controller(
        config,
        Roles(
            policy=roles.policy,
            reference=roles.reference if config.algorithm.needs_reference else None,
            critic=roles.critic if config.algorithm.needs_critic else None,
            filtration=chosen_filtration(config),
        ),
        source,
        pad_token_id=0,
        timeline=timeline,
    )
    result = stack.run(controller.step(1))
    values = result.metrics.values()
    assert len(result.groups) == 4
    assert all(isfinite(value) for value in values.values())
    assert values["policy/grad_norm"] > 0
    assert values["reward/groups_without_signal"] == 0
    if config.algorithm.needs_critic:
        assert values["critic/grad_norm"] > 0
    if name == "ppo":  # it has a critic and a reference: whatever can be bounded is measured
        assert {*get_args(MeasuredBefore), *get_args(MeasuredAfter)} <= values.keys()
    assert values["mismatch/logprob_difference_max"] < 1e-4
    assert ("policy/ref_kl" in values) == config.algorithm.needs_reference


def test_a_sharded_reference_says_what_the_whole_model_says(
    stack: Stack, untied_model: Path
) -> None:
    """Ranks with other numbers of rows, tokens and chunks; none holds the whole model."""
    batch = random_batch([200, 180, 90, 60, 40, 30, 20, 10, 9, 8, 7, 6, 5, 4])
    reference = stack.roles.reference
    assert isinstance(reference, ReferenceGroup)
    model = AutoModelForCausalLM.from_pretrained(untied_model)
    with torch.no_grad():
        logits = model(batch.token_ids, attention_mask=batch.attention_mask.long()).logits
    expected = torch.zeros(batch.token_ids.shape)
    chosen = (logits[:, :-1] / 0.8).log_softmax(-1).gather(2, batch.token_ids[:, 1:, None])
    expected[:, 1:] = chosen.squeeze(2)
    expected[~batch.loss_mask] = 0
    for _ in range(2):
        found = stack.run(reference.logprobs(batch))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def held(actor: Any) -> tuple[int, int]:
        parameters = list(actor.rank.module.parameters())
        return sum(p.numel() for p in parameters), sum(p.ds_tensor.numel() for p in parameters)

    for whole, shard in ray.get([rank.__ray_call__.remote(held) for rank in reference.ranks]):
        assert whole == 0
        assert shard <= 0.51 * model.num_parameters()
