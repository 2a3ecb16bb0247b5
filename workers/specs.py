"""What trainer and engine actors are told and what they report; no heavy library is imported."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlstack.config.model import ModelConfig
from rlstack.config.rollout import RolloutConfig
from rlstack.config.trainer import TrainerConfig
from rlstack.data.features import FeatureScale
from rlstack.planning.phases import Transport
from rlstack.planning.spec import FrozenRole, RewardModelRole
from rlstack.types import FinishReason

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The files of an adapter, as peft and vLLM name them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """What every rank that computes is told."""

    temperature: float
    """Logprobs are taken at the temperature that rollouts are sampled at."""
    device: str
    num_ranks: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec(RankSpec):
    """What every rank of a trainer is told."""

    model: ModelConfig
    trainer: TrainerConfig
    total_updates: int
    seed: int
    features: FeatureScale | None = None
    feeds_engines: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSpec(RankSpec):
    """What every rank of the reference is told."""

    role: FrozenRole


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelSpec(RewardModelRole):
    """What every rank of the reward models is told."""

    device: str = "cpu"
    num_ranks: int = 1
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReport:
    """What rank 0 put into the engines; empty on other ranks."""

    digests: dict[str, int]
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine is told."""

    model: ModelConfig
    rollout: RolloutConfig
    max_model_tokens: int
    tensor_parallel: int
    transport: Transport
    device: str
    seed: int
    adapter_rank: int | None = None
    """Of the adapters that the engine is sent instead of weights."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenRequest:
    """A `GenerationRequest` without what the engine need not see."""

    request_id: int
    token_ids: list[int]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """A finished response; arrays as in `Rollout`."""

    request_id: int
    text: str
    response_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What an engine says it holds, for verification after an update."""

    weight_version: str
    received: list[dict[str, int]]
    """Per worker: checksum of each tensor of the last update and of the adapter. Without the update
    where vLLM's own transports brought it."""
    checksums: list[dict[str, str]]
    """Per worker: checksums of the loaded parameters and adapters."""
