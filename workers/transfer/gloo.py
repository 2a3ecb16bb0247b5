"""Weights by gloo broadcast: engines on other nodes than the trainer."""

# vLLM and torch are typed too loosely for these.
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer.base import TrainerInitInfo, WeightTransferInitInfo

from rlstack.planning.phases import Transport
from workers.transfer.buckets import BucketInfo, ReloadingEngine, SendingEngine, Slot, lay_out, view
from workers.transfer.gloo_errors import gloo_explained

TIMEOUT = timedelta(minutes=5)


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Where the trainer waits, and the rank of this engine's first worker."""

    host: str
    port: int
    world_size: int
    rank_offset: int


class GlooEngine(ReloadingEngine[GlooInit]):
    """Worker side of the gloo transport."""

    init_info_cls = GlooInit
    group: ProcessGroupGloo | None = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        store = TCPStore(
            init_info.host, init_info.port, init_info.world_size, False, timeout=TIMEOUT
        )
        rank = init_info.rank_offset + self.parallel_config.rank
        with gloo_explained():
            self.group = ProcessGroupGloo(store, rank, init_info.world_size, TIMEOUT)

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

    backend: ClassVar[str] = Transport.GLOO.value
    num_workers: int
    """Workers of all engines together."""
    host: str


class GlooTrainerEngine(SendingEngine[GlooTrainerInit]):
    """Trainer side of the gloo transport: rank 0 of a group with every engine worker."""

    init_info_cls = GlooTrainerInit
    group: ProcessGroupGloo | None = None

    def meet(self, init_info: GlooTrainerInit) -> None:
        world_size = init_info.num_workers + 1
        # Port 0: the system picks one that is free, and keeps it.
        store = TCPStore(
            init_info.host, 0, world_size, True, timeout=TIMEOUT, wait_for_workers=False
        )
        worker_info = GlooInit(
            host=init_info.host, port=store.port, world_size=world_size, rank_offset=1
        )
        with ThreadPoolExecutor(max_workers=1) as executor:
            ready = executor.submit(self.client.init_weight_transfer_engine, asdict(worker_info))
            with gloo_explained():
                self.group = ProcessGroupGloo(store, 0, world_size, TIMEOUT)
            ready.result()

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
