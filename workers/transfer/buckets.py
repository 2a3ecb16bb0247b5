"""What the CPU transports of vLLM's weight-transfer API have in common.

They send the trainer's weights in buckets of whole tensors. Rank 0 of the trainer drives the
engines; the other ranks only take part in gathering. On GPUs vLLM's own `nccl` and `ipc` engines
are used instead (see `verified`).
"""

# vLLM and torch are typed too loosely for these.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    WeightTransferUpdatePayload,
)
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from workers.transfer.checksum import checksums

BUCKET_BYTES = 256 * 2**20
"""Memory that a transfer may hold beside the weights, unless one layer is larger."""

_ALIGNMENT = 64

InitInfo = TypeVar("InitInfo", bound=WeightTransferInitInfo)
TrainerInfo = TypeVar("TrainerInfo", bound=TrainerInitInfo)


class EngineClient:
    """vLLM's control plane of several engine actors at once, called from rank 0 of the trainer.

    Unlike vLLM's own Ray client it gives every engine its own ranks in the transfer group.
    """

    def __init__(self, engines: Sequence[ActorHandle], *, workers_per_engine: int) -> None:
        self.engines = engines
        self.workers_per_engine = workers_per_engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every engine join; `rank_offset`, where there is one, is the first engine's."""
        calls = []
        for index, engine in enumerate(self.engines):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += index * self.workers_per_engine
            calls.append(engine.call.remote(lambda s, i: s.init_weight_transfer_engine(i), info))
        ray.get(calls)

    def start_weight_update(self) -> None:
        """See vLLM."""
        ray.get([engine.call.remote(lambda s: s.start_weight_update()) for engine in self.engines])

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """See vLLM."""
        calls = [
            engine.call.remote(lambda s, info: s.update_weights(info), update_info)
            for engine in self.engines
        ]
        ray.get(calls)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See vLLM; the version is set by the reallocator, which also verifies it."""
        assert weight_version is None
        ray.get([engine.call.remote(lambda s: s.finish_weight_update()) for engine in self.engines])


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where a tensor lies in a bucket."""

    name: str
    dtype: str
    shape: list[int]
    offset: int


def lay_out(bucket: list[tuple[str, Tensor]]) -> tuple[list[Slot], int]:
    """Slots of a bucket's tensors and the bytes they take together."""
    slots, offset = [], 0
    for name, tensor in bucket:
        slots.append(
            Slot(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=list(tensor.shape),
                offset=offset,
            )
        )
        offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return slots, offset


def buckets(source: WeightSource, *, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Whole layer groups of `source`, joined up to `max_bytes` (or one group that is larger)."""
    pending: list[tuple[str, Tensor]] = []
    pending_bytes = 0
    for names, tensors in source.iter_groups():
        group_bytes = sum(tensor.nbytes for tensor in tensors)
        if pending and pending_bytes + group_bytes > max_bytes:
            yield pending
            pending, pending_bytes = [], 0
        pending += zip(names, tensors, strict=True)
        pending_bytes += group_bytes
    if pending:
        yield pending


def view(memory: Tensor, slot: Slot) -> Tensor:
    """The tensor of `slot` inside a uint8 buffer, without a copy."""
    dtype = getattr(torch, slot.dtype)
    num_bytes = dtype.itemsize * torch.Size(slot.shape).numel()
    return memory[slot.offset : slot.offset + num_bytes].view(dtype).view(slot.shape)


@dataclass
class BucketInfo(WeightTransferUpdateInfo):
    """What a worker must know to read one bucket."""

    slots: list[dict[str, Any]]
    num_bytes: int
    segment: str = ""
    """Name of the shared-memory segment that holds the bucket."""


class ReloadingEngine(WeightTransferEngine[InitInfo, BucketInfo]):
    """Receives checkpoint-format tensors and reloads the model layer by layer."""

    update_info_cls = BucketInfo

    def start_weight_update(self) -> None:
        # What arrived in this update, by name: the trainer compares it with what it sent.
        self.received: dict[str, int] = {}
        forget_kernels_of_experts(self.model)
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def load(self, memory: Tensor, slots: list[Slot]) -> None:
        """Load the tensors of one bucket that lies in `memory`."""
        weights = [(slot.name, view(memory, slot)) for slot in slots]
        with ThreadPoolExecutor(max_workers=1) as beside:
            arrived = beside.submit(checksums, weights)
            # The layer-wise reload may hold a tensor back until its whole layer is there, and the
            # buffer is reused: hand it copies.
            self.model.load_weights((name, tensor.clone()) for name, tensor in weights)
            self.received |= arrived.result()


def forget_kernels_of_experts(model: nn.Module) -> None:
    """Have vLLM make them anew from the next weights.

    On CPUs a kernel packs the experts' weights when it is made; vLLM 0.32 keeps it when weights
    come anew, and would read those, not packed, as if they were.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.moe_kernel = None


class SendingEngine(TrainerWeightTransferEngine[TrainerInfo]):
    """Sends bucket by bucket and remembers the checksum of each tensor."""

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
        is_sender: bool = True,
    ) -> None:
        super().__init__(client=client, source=source, is_sender=is_sender)
        self.sent: dict[str, int] = {}
        self.sent_bytes = 0

    @classmethod
    def trainer_init(
        cls,
        init_info: TrainerInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            engine.meet(init_info)
        return engine

    def meet(self, init_info: TrainerInfo) -> None:
        """Let every engine join."""
        raise NotImplementedError

    def send_weights(self) -> None:
        assert self.source is not None
        self.sent, self.sent_bytes = {}, 0
        if self.is_sender:
            self.client.start_weight_update()
        for bucket in buckets(self.source, max_bytes=BUCKET_BYTES):
            if self.is_sender:
                # Most of the time the engines are waited for.
                with ThreadPoolExecutor(max_workers=1) as beside:
                    left = beside.submit(checksums, bucket)
                    self.send_bucket(bucket)
                    self.sent |= left.result()
                self.sent_bytes += sum(tensor.nbytes for _, tensor in bucket)
        if self.is_sender:
            self.client.finish_weight_update()

    def send_bucket(self, bucket: list[tuple[str, Tensor]]) -> None:
        """Put one bucket into every engine; returns when they have loaded it."""
        raise NotImplementedError
