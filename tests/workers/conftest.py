"""One running set of roles per layout, shared by every test that needs it."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlstack.batch import TokenBatch
from rlstack.config.environment import EnvironmentConfig
from rlstack.config.faults import FaultsConfig
from rlstack.config.model import ModelConfig
from rlstack.config.placement import PlacementConfig
from rlstack.config.reference import ReferenceConfig
from rlstack.config.reward import RewardComponent, RewardConfig
from rlstack.config.rollout import RolloutConfig
from rlstack.config.trainer import ScheduleConfig, TrainerConfig
from rlstack.planning.spec import FrozenRole, RunSpec, TrainedRole
from rlstack.types import GenerationRequest, Prompt, Rollout, SamplingSettings
from tests.tiny_model import write_tiny_model
from workers.environments.pool import EnvironmentPool
from workers.launch.launch import WorkerGroups, launch

MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 32, 24


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Running roles and the event loop they are driven from."""

    roles: WorkerGroups
    spec: RunSpec
    loop: asyncio.AbstractEventLoop

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)


def trainer_config(**changes: Any) -> TrainerConfig:
    values = {
        "zero_stage": 1,
        "offload_optimizer": False,
        "offload_parameters": False,
        "gradient_checkpointing": False,
        "max_tokens_per_microbatch": 256,
        "logprob_chunk_tokens": 64,
        "learning_rate": 1e-2,
        "schedule": ScheduleConfig(name="constant", warmup_updates=0, min_ratio=0.0),
        "weight_decay": 0.0,
        "betas": (0.9, 0.95),
        "max_grad_norm": 1.0,
        "lora": None,
    }
    return TrainerConfig.model_validate(values | changes)


def rollout_config(**changes: Any) -> RolloutConfig:
    values = {
        "num_samples": 4,
        "temperature": 0.8,
        "max_response_tokens": MAX_RESPONSE_TOKENS,
        "stop": (),
        "max_concurrent": 64,
        "prefix_caching": True,
        "compile": False,
        "kv_cache_gib": 1,
        "gpu_memory_fraction": 0.4,
    }
    return RolloutConfig.model_validate(values | changes)


def placement_config(**changes: Any) -> PlacementConfig:
    beside = {"ranks": None, "devices": "policy"}
    values = {
        "mode": "colocated",
        "device": "cpu",
        "trainer_ranks": 2,
        "num_engines": 1,
        "tensor_parallel": 1,
        "cpus_per_worker": 1,
        "critic": beside,
        "reference": beside,
        "reward_model": beside,
    }
    return PlacementConfig.model_validate(values | changes)


def model_config(path: Path) -> ModelConfig:
    return ModelConfig(path=str(path), dtype="float32", trust_remote_code=False)


def faults_config(**changes: Any) -> FaultsConfig:
    values = {"max_restarts": 2, "answer_s": 60.0, "progress_s": 120.0, "start_s": 300.0}
    return FaultsConfig.model_validate(values | changes)


def frozen_role(path: Path, *, zero_stage: int) -> FrozenRole:
    return FrozenRole(
        model=model_config(path),
        config=ReferenceConfig.model_validate(
            {"zero_stage": zero_stage, "offload_parameters": False}
        ),
        max_tokens_per_microbatch=256,
        logprob_chunk_tokens=64,
    )


def run_spec(
    model_path: Path, *, zero_stage: int, num_engines: int = 1, tensor_parallel: int = 1
) -> RunSpec:
    return RunSpec(
        placement=placement_config(num_engines=num_engines, tensor_parallel=tensor_parallel),
        model=model_config(model_path),
        seed=0,
        policy=TrainedRole(
            model=model_config(model_path),
            trainer=trainer_config(zero_stage=zero_stage),
            total_updates=1,
        ),
        rollout=rollout_config(),
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        max_response_tokens=MAX_RESPONSE_TOKENS,
        faults=faults_config(),
    )


def running_stack(spec: RunSpec) -> Iterator[Stack]:
    loop = asyncio.new_event_loop()
    exits = AsyncExitStack()
    roles = loop.run_until_complete(exits.enter_async_context(launch(spec)))
    yield Stack(roles=roles, spec=spec, loop=loop)
    loop.run_until_complete(exits.aclose())
    loop.close()


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tied")
    write_tiny_model(path, tied=True)
    return path


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untied")
    write_tiny_model(path, tied=False)
    return path


def make_prompts(count: int) -> list[Prompt]:
    generator = np.random.default_rng(0)
    return [
        Prompt(
            prompt_id=str(index),
            data_source="test",
            text="",
            token_ids=generator.integers(3, 90, size=generator.integers(5, 20)),
            answer=None,
            reward=None,
            metadata={},
        )
        for index in range(count)
    ]


def random_batch(lengths: list[int]) -> TokenBatch:
    """Rows of `lengths`, each with as many loss tokens as chance gives it."""
    torch.manual_seed(0)
    shape = (len(lengths), max(lengths))
    columns, ends = torch.arange(shape[1]), torch.tensor(lengths).unsqueeze(1)
    starts = 1 + (torch.rand(len(lengths), 1) * (ends - 1)).long()
    return TokenBatch(
        token_ids=torch.randint(3, 90, shape),
        attention_mask=columns < ends,
        loss_mask=(columns >= starts) & (columns < ends),
        rollout_logprobs=torch.zeros(shape),
        group_ids=torch.arange(len(lengths)),
        rewards=torch.zeros(len(lengths)),
    )


def make_requests(prompts: list[Prompt], *, num_samples: int = 4) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            request_id=row * num_samples + index,
            prompt=prompt,
            sample_index=index,
            seed=row * 1000 + index,
        )
        for row, prompt in enumerate(prompts)
        for index in range(num_samples)
    ]


async def generate(roles: WorkerGroups, requests: list[GenerationRequest]) -> dict[int, Rollout]:
    assert roles.engines is not None
    sampling = SamplingSettings(temperature=0.8, max_response_tokens=MAX_RESPONSE_TOKENS)
    found: dict[int, Rollout] = {}
    async for request_id, rollout in roles.engines.generate(requests, sampling):
        assert request_id not in found, "a request was answered twice"
        found[request_id] = rollout
    return found


def environment_pool(
    name: str,
    params: dict[str, Any],
    *,
    plugins: tuple[str, ...] = (),
    timeout_s: float = 10.0,
    num_workers: int = 2,
) -> EnvironmentPool:
    config = EnvironmentConfig(
        name=name,
        params=params,
        max_turns=5,
        max_observation_tokens=64,
        timeout_s=timeout_s,
        num_workers=num_workers,
    )
    reward = RewardConfig(
        components=(RewardComponent(name="environment"),),
        plugins=plugins,
        num_workers=1,
        timeout_s=1.0,
        memory_gib=16,
    )
    return EnvironmentPool(config, reward)
