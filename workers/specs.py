"""What trainer and engine actors are told and what they report; imports no more than torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlstack.config.model import ModelConfig
from rlstack.config.rollout import RolloutConfig
from rlstack.config.trainer import TrainerConfig
from rlstack.data.features import FeatureScale
from rlstack.metrics import Metrics
from rlstack.planning.mesh import Mesh
from rlstack.planning.phases import Transport
from rlstack.planning.spec import FrozenRole, RewardModelRole
from rlstack.types import FinishReason

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The files of an adapter, as peft and vLLM name them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """What every rank that computes is told."""

    device: str
    data_parallel: int
    """Ranks that share out the rows."""
    threads: int
    sequence_parallel: int = 1
    """Ranks that share out the tokens of the same rows."""

    @property
    def world_size(self) -> int:
        """All ranks of the role."""
        return self.data_parallel * self.sequence_parallel

    def mesh(self, rank: int) -> Mesh:
        """Where the rank with this global number stands."""
        return Mesh.of_rank(
            rank, world_size=self.world_size, sequence_parallel_size=self.sequence_parallel
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec(RankSpec):
    """What every rank of a trainer is told."""

    temperature: float
    """Logprobs are taken at the temperature that rollouts are sampled at."""
    model: ModelConfig
    trainer: TrainerConfig
    total_updates: int
    seed: int
    features: FeatureScale | None = None
    feeds_engines: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSpec(RankSpec):
    """What every rank of a model that is not trained is told."""

    is_guest: bool
    """Whether its GPU is another role's: the model is there for a call only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSpec(FrozenSpec):
    """What every rank of the reference is told."""

    temperature: float
    """As of `TrainerSpec`."""
    role: FrozenRole


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelSpec(FrozenSpec):
    """What every rank of the reward models is told."""

    role: RewardModelRole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What a rank of a trainer gives back of an update or an evaluation.

    samples: int64 [N], those of the batch that were the rank's, and values: float32, what the model
    said of them before the update; both empty for objectives that measure by micro-batch, and of an
    update that was skipped.
    """

    metrics: Metrics
    skipped: bool
    samples: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFiles:
    """What a rank has written to disk."""

    node: str
    sizes: dict[str, int]
    """Bytes by absolute path."""


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

    @property
    def compiled(self) -> bool:
        """Whether it compiles its model and records CUDA graphs."""
        chosen = self.rollout.compile
        return self.device == "gpu" if chosen == "auto" else chosen


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
    policy_versions: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a process has come; one that is busy and does not count on is stuck."""

    done: int
    busy: bool
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What an engine says it holds, for verification after an update."""

    weight_version: str
    received: list[dict[str, int]]
    """Per worker: checksum of each tensor of the last update and of the adapter."""
    checksums: list[dict[str, int]]
    """Per worker: checksums of the loaded parameters and adapters."""
