"""vLLM's own layer of experts on a CPU takes in new weights as it took in the first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import (
    destroy_distributed_environment,
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.model_loader.reload.layerwise import record_metadata_for_reloading

from tests.workers.transfer.receiver import worker_engine
from workers.transfer.shared_memory import SharedMemoryEngine


def make_experts(layer: int) -> Any:
    experts = FusedMoEFactory(
        num_experts=4,
        top_k=2,
        hidden_size=128,
        intermediate_size=64,
        params_dtype=torch.float32,
        renormalize=True,
        prefix=f"layers.{layer}.experts",
    )
    record_metadata_for_reloading(experts)
    return experts


@pytest.fixture
def two_layers(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"file://{tmp_path}/rendezvous",
            backend="gloo",
        )
        initialize_model_parallel()
        yield make_experts(0), make_experts(1)
        destroy_model_parallel()
        destroy_distributed_environment()


def some_experts(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate": (64, 128), "up": (64, 128), "down": (128, 64)}
    return {
        f"{expert}.{kind}_proj.weight": torch.randn(shape, generator=generator)
        for expert in range(4)
        for kind, shape in shapes.items()
    }


def load(experts: Any, weights: dict[str, Tensor]) -> None:
    assert list(experts.load_weights((name, t.clone()) for name, t in weights.items()))


def test_experts_that_come_anew_are_packed_like_the_first(two_layers: tuple[Any, Any]) -> None:
    updated, started = two_layers
    old, new = some_experts(0), some_experts(1)
    for experts, weights in ((updated, old), (started, new)):
        load(experts, weights)
        routed = experts.routed_experts
        routed.quant_method.process_weights_after_loading(routed)
    expected = dict(started.named_parameters())
    engine = worker_engine(SharedMemoryEngine, updated)
    for _ in range(2):
        engine.start_weight_update()
        load(updated, new)
        engine.finish_weight_update()
        for name, parameter in updated.named_parameters():
            assert torch.equal(parameter, expected[name]), name
    assert len(expected) == 2
