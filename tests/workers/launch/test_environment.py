"""The environment variables of every actor, on GPUs and on CPUs."""

from pathlib import Path
from typing import Any

import pytest

from rlstack.planning.phases import Transport
from tests.workers.conftest import model_config, rollout_config
from workers.launch.environment import engine_environment, shared_gpus, trainer_environment
from workers.specs import EngineSpec

EVERYWHERE = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "6",
}
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}
ENGINE = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
EAGER = {"TORCH_COMPILE_DISABLE": "1"}


def engine(**changes: Any) -> EngineSpec:
    values: dict[str, Any] = {
        "model": model_config(Path("m")),
        "rollout": rollout_config(),
        "max_model_tokens": 64,
        "tensor_parallel": 1,
        "transport": Transport.NCCL,
        "device": "gpu",
        "seed": 0,
    }
    return EngineSpec(**(values | changes))


def test_ranks_on_a_gpu_see_what_ray_gave_them() -> None:
    assert trainer_environment(device="gpu", threads=6) == EVERYWHERE


def test_ranks_on_a_cpu_look_for_no_gpu() -> None:
    expected = EVERYWHERE | ON_CPU | {"DS_ACCELERATOR": "cpu"}
    assert trainer_environment(device="cpu", threads=6) == expected


def test_processes_that_share_gpus_see_those_of_the_ranks_in_their_order() -> None:
    assert shared_gpus(["3", "0"]) == {"CUDA_VISIBLE_DEVICES": "3,0"}


@pytest.mark.parametrize("transport", [Transport.NCCL, Transport.CUDA_IPC])
@pytest.mark.parametrize("tensor_parallel", [1, 8])
def test_engines_on_gpus(tensor_parallel: int, transport: Transport) -> None:
    """In one process with vLLM's core: its messages would not take handles of GPU memory."""
    spec = engine(tensor_parallel=tensor_parallel, transport=transport)
    assert engine_environment(spec, threads=6) == EVERYWHERE | ENGINE | EAGER
    compiled = engine(rollout=rollout_config(compile=True))
    assert engine_environment(compiled, threads=6) == EVERYWHERE | ENGINE


@pytest.mark.parametrize("transport", [Transport.SHARED_MEMORY, Transport.GLOO])
def test_engines_on_a_cpu(transport: Transport) -> None:
    spec = engine(device="cpu", transport=transport, tensor_parallel=2)
    environment = engine_environment(spec, threads=6)
    assert (EVERYWHERE | ENGINE | EAGER | ON_CPU).items() <= environment.items()
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
