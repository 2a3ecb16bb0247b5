"""Weights through a segment of shared memory: trainer and engines on one node."""

import shutil
from dataclasses import asdict, dataclass
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import TrainerInitInfo, WeightTransferInitInfo

from rlstack.errors import WeightSyncError
from rlstack.planning.phases import Transport
from workers.transfer.buckets import BucketInfo, ReloadingEngine, SendingEngine, Slot, lay_out, view

SEGMENTS = Path("/dev/shm")
"""Where Linux keeps segments of shared memory."""


def check_room(num_bytes: int) -> None:
    """Refuse a segment that does not fit: Linux makes it, and kills whoever writes to its end.

    Raises:
        WeightSyncError: naming what is needed and what is free.
    """
    free = shutil.disk_usage(SEGMENTS).free
    if num_bytes > free:
        raise WeightSyncError(
            f"{SEGMENTS}: weights for the engines need {num_bytes / 2**20:.0f} MiB of shared "
            f"memory at once and {free / 2**20:.0f} MiB are free; give the container more (docker "
            "run --shm-size=8g; on Kubernetes an emptyDir of medium Memory at /dev/shm)"
        )


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
    """Nothing to agree on."""

    backend: ClassVar[str] = Transport.SHARED_MEMORY.value


class SharedMemoryTrainerEngine(SendingEngine[SharedMemoryTrainerInit]):
    """Trainer side of the shared-memory transport: one segment, reused."""

    init_info_cls = SharedMemoryTrainerInit
    segment: shared_memory.SharedMemory | None = None

    def meet(self, init_info: SharedMemoryTrainerInit) -> None:
        self.client.init_weight_transfer_engine({})

    def send_bucket(self, bucket: list[tuple[str, Tensor]]) -> None:
        slots, num_bytes = lay_out(bucket)
        if self.segment is None or self.segment.size < num_bytes:
            self.shutdown()
            check_room(num_bytes)
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
