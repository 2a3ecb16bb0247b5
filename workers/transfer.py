"""CPU transports for vLLM's weight-transfer API: shared memory on one node, gloo between nodes.

Both send the trainer's weights in buckets of whole tensors. Rank 0 of the trainer drives the
engines; the other ranks only take part in gathering. On GPUs vLLM's own `nccl` and `ipc` engines
are used instead (see `reallocator`).
"""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing import resource_tracker, shared_memory
from typing import Any, ClassVar, Self, TypeVar

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdatePayload,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.factory import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rlstack.planning.phases import Transport

SHARED_MEMORY = Transport.SHARED_MEMORY.value
GLOO = Transport.GLOO.value
BUCKET_BYTES = 256 * 2**20
_ALIGNMENT = 64

InitInfo = TypeVar("InitInfo", bound=WeightTransferInitInfo)
TrainerInfo = TypeVar("TrainerInfo", bound=TrainerInitInfo)


def digest(tensor: Tensor) -> int:
    """CRC-32 of a CPU tensor's bytes."""
    return zlib.crc32(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


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
            calls.append(
                engine.init_weight_transfer_engine.remote(WeightTransferInitRequest(init_info=info))
            )
        ray.get(calls)

    def start_weight_update(self) -> None:
        """See vLLM."""
        ray.get([engine.start_weight_update.remote() for engine in self.engines])

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """See vLLM."""
        request = WeightTransferUpdateRequest(update_info=update_info)
        ray.get([engine.update_weights.remote(request) for engine in self.engines])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See vLLM; the version is set by the reallocator, which also verifies it."""
        assert weight_version is None
        ray.get([engine.finish_weight_update.remote() for engine in self.engines])


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
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def load(self, memory: Tensor, slots: list[Slot]) -> None:
        """Load the tensors of one bucket that lies in `memory`."""
        weights = [(slot.name, view(memory, slot)) for slot in slots]
        self.received |= {name: digest(tensor) for name, tensor in weights}
        # The layer-wise reload may hold a tensor back until its whole layer is there, and the
        # buffer is reused: hand it copies.
        self.model.load_weights((name, tensor.clone()) for name, tensor in weights)


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Nothing to agree on: every bucket names its segment."""


class SharedMemoryEngine(ReloadingEngine[SharedMemoryInit]):
    """Worker side of the shared-memory transport."""

    init_info_cls = SharedMemoryInit

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        pass

    def receive_weights(self, update_info: BucketInfo) -> None:
        segment = shared_memory.SharedMemory(name=update_info.segment)
        # The sender owns the segment; without this the receiver's exit would unlink it.
        resource_tracker.unregister(segment._name, "shared_memory")  # pyright: ignore
        try:
            memory = torch.frombuffer(segment.buf, dtype=torch.uint8)
            self.load(memory, [Slot(**slot) for slot in update_info.slots])
            del memory
        finally:
            segment.close()

    def shutdown(self) -> None:
        pass


@dataclass
class SharedMemoryTrainerInit(TrainerInitInfo):
    """Trainer-side settings of the shared-memory transport."""

    backend: ClassVar[str] = SHARED_MEMORY
    bucket_bytes: int = BUCKET_BYTES


class SendingEngine(TrainerWeightTransferEngine[TrainerInfo]):
    """Sends bucket by bucket and remembers the checksum of each tensor."""

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
        is_sender: bool = True,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        super().__init__(client=client, source=source, is_sender=is_sender)
        self.bucket_bytes = bucket_bytes
        self.sent: dict[str, int] = {}
        self.sent_bytes = 0

    def send_weights(self) -> None:
        assert self.source is not None
        self.sent, self.sent_bytes = {}, 0
        if self.is_sender:
            self.client.start_weight_update()
        for bucket in buckets(self.source, max_bytes=self.bucket_bytes):
            if self.is_sender:
                self.sent |= {name: digest(tensor) for name, tensor in bucket}
                self.sent_bytes += sum(tensor.nbytes for _, tensor in bucket)
                self.send_bucket(bucket)
        if self.is_sender:
            self.client.finish_weight_update()

    def send_bucket(self, bucket: list[tuple[str, Tensor]]) -> None:
        """Put one bucket into every engine; returns when they have loaded it."""
        raise NotImplementedError


class SharedMemoryTrainerEngine(SendingEngine[SharedMemoryTrainerInit]):
    """Trainer side of the shared-memory transport: one segment, reused."""

    init_info_cls = SharedMemoryTrainerInit
    segment: shared_memory.SharedMemory | None = None

    @classmethod
    def trainer_init(
        cls,
        init_info: SharedMemoryTrainerInit,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        engine = cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            bucket_bytes=init_info.bucket_bytes,
        )
        if engine.is_sender:
            client.init_weight_transfer_engine({})
        return engine

    def send_bucket(self, bucket: list[tuple[str, Tensor]]) -> None:
        slots, num_bytes = lay_out(bucket)
        if self.segment is None or self.segment.size < num_bytes:
            self.shutdown()
            self.segment = shared_memory.SharedMemory(create=True, size=num_bytes)
        memory = torch.frombuffer(self.segment.buf, dtype=torch.uint8)
        for slot, (_, tensor) in zip(slots, bucket, strict=True):
            view(memory, slot).copy_(tensor)
        del memory
        info = BucketInfo(
            slots=[asdict(slot) for slot in slots], num_bytes=num_bytes, segment=self.segment.name
        )
        self.client.update_weights(asdict(info))

    def shutdown(self) -> None:
        if self.segment is not None:
            self.segment.close()
            self.segment.unlink()
            self.segment = None


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Where the trainer waits, and the rank of this engine's first worker."""

    host: str
    port: int
    world_size: int
    rank_offset: int
    timeout_s: float


class GlooEngine(ReloadingEngine[GlooInit]):
    """Worker side of the gloo transport."""

    init_info_cls = GlooInit
    group: ProcessGroupGloo | None = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        timeout = timedelta(seconds=init_info.timeout_s)
        store = TCPStore(
            init_info.host, init_info.port, init_info.world_size, False, timeout=timeout
        )
        rank = init_info.rank_offset + self.parallel_config.rank
        self.group = ProcessGroupGloo(store, rank, init_info.world_size, timeout)

    def receive_weights(self, update_info: BucketInfo) -> None:
        assert self.group is not None
        memory = torch.empty(update_info.num_bytes, dtype=torch.uint8)
        self.group.broadcast(memory, 0).wait()
        self.load(memory, [Slot(**slot) for slot in update_info.slots])

    def shutdown(self) -> None:
        self.group = None


@dataclass
class GlooTrainerInit(TrainerInitInfo):
    """Trainer-side settings of the gloo transport."""

    backend: ClassVar[str] = GLOO
    num_workers: int
    """Workers of all engines together."""
    host: str
    timeout_s: float = 300.0
    bucket_bytes: int = BUCKET_BYTES


class GlooTrainerEngine(SendingEngine[GlooTrainerInit]):
    """Trainer side of the gloo transport: rank 0 of a group with every engine worker."""

    init_info_cls = GlooTrainerInit
    group: ProcessGroupGloo | None = None

    @classmethod
    def trainer_init(
        cls,
        init_info: GlooTrainerInit,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        engine = cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            bucket_bytes=init_info.bucket_bytes,
        )
        if engine.is_sender:
            world_size = init_info.num_workers + 1
            timeout = timedelta(seconds=init_info.timeout_s)
            # Port 0: the system picks one that is free, and keeps it.
            store = TCPStore(
                init_info.host, 0, world_size, True, timeout=timeout, wait_for_workers=False
            )
            worker_info = GlooInit(
                host=init_info.host,
                port=store.port,
                world_size=world_size,
                rank_offset=1,
                timeout_s=init_info.timeout_s,
            )
            with ThreadPoolExecutor(max_workers=1) as executor:
                ready = executor.submit(client.init_weight_transfer_engine, asdict(worker_info))
                engine.group = ProcessGroupGloo(store, 0, world_size, timeout)
                ready.result()
        return engine

    def send_bucket(self, bucket: list[tuple[str, Tensor]]) -> None:
        assert self.group is not None
        slots, num_bytes = lay_out(bucket)
        memory = torch.empty(num_bytes, dtype=torch.uint8)
        for slot, (_, tensor) in zip(slots, bucket, strict=True):
            view(memory, slot).copy_(tensor)
        info = BucketInfo(slots=[asdict(slot) for slot in slots], num_bytes=num_bytes)
        with ThreadPoolExecutor(max_workers=1) as executor:
            loaded = executor.submit(self.client.update_weights, asdict(info))
            self.group.broadcast(memory, 0).wait()
            loaded.result()

    def shutdown(self) -> None:
        self.group = None


def register() -> None:
    """Make both transports known to vLLM; once per process."""
    for name, engine in ((SHARED_MEMORY, SharedMemoryEngine), (GLOO, GlooEngine)):
        if name not in WeightTransferEngineFactory._registry:  # pyright: ignore
            WeightTransferEngineFactory.register_engine(name, engine)
    for name, engine in ((SHARED_MEMORY, SharedMemoryTrainerEngine), (GLOO, GlooTrainerEngine)):
        if name not in WeightTransferTrainerFactory._registry:  # pyright: ignore
            WeightTransferTrainerFactory.register_engine(name, engine)
