"""What a policy rank does with engines: connects, and puts weights or adapters into them.

Apart from `policy`, because its imports from vLLM take seconds that other trainers need not spend.
"""

from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from transformers import PreTrainedModel
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES
from vllm.utils.network_utils import get_open_port

from rlstack.config.trainer import LoRAConfig
from rlstack.planning.phases import Transport
from workers.models.lora import adapter_files, trained_tensors
from workers.specs import SendReport
from workers.transfer import register as transports
from workers.transfer.buckets import EngineClient, SendingEngine
from workers.transfer.checksum import checksums
from workers.transfer.gloo import GlooTrainerInit
from workers.transfer.shared_memory import SharedMemoryTrainerInit
from workers.transfer.source import DeepSpeedSource
from workers.transfer.verified import VerifiedSource


class WeightSender:
    """Of one rank to all engines; every call is made on every rank at the same time."""

    transfer: TrainerWeightTransferEngine[Any] | None = None
    sent: SendingEngine[Any] | VerifiedSource
    """What remembers the checksums of the last transfer."""

    def __init__(
        self,
        model: PreTrainedModel,
        transport: Transport,
        *,
        lora: LoRAConfig | None,
        rank: int,
        device: str,
        base_in_engines: bool,
        engines: list[ActorHandle],
        workers_per_engine: int,
    ) -> None:
        """base_in_engines: whether they hold the weights below the adapters as they are now."""
        self.model = model
        self.transport = transport
        self.rank = rank
        self.device = device
        self.base_in_engines = base_in_engines
        self.sends_adapters = lora is not None and lora.engines == "adapters"
        """Whether engines hold the weights below the adapters and are sent adapters."""
        self.engines = engines
        self.workers_per_engine = workers_per_engine
        if not self.sends_adapters:
            self._open()

    def forget_base(self) -> None:
        """The weights below the adapters are others now: the next `send` brings them too."""
        self.base_in_engines = False

    def send(self) -> SendReport:
        """Put the current weights into every engine."""
        if not self.sends_adapters:
            return self._send_model()
        base = SendReport(digests={}, num_bytes=0)
        if not self.base_in_engines:
            if self.transfer is None:
                self._open()
            base = self._send_model()
            self.base_in_engines = True
        adapter = self._send_adapter()
        return SendReport(
            digests=base.digests | adapter.digests, num_bytes=base.num_bytes + adapter.num_bytes
        )

    def close(self) -> None:
        """Leave the engines."""
        if self.transfer is not None:
            self.transfer.shutdown()
            self.transfer = None

    def _open(self) -> None:
        transports.register()
        source = self._source()
        verified = VerifiedSource(source, is_sender=self.rank == 0)
        ours = self.transport in transports.TRAINERS
        self.transfer = WeightTransferTrainerFactory.trainer_init(
            self._transfer_info(source),
            client=EngineClient(self.engines, workers_per_engine=self.workers_per_engine),
            source=source if ours else verified,
        )
        self.sent = self.transfer if isinstance(self.transfer, SendingEngine) else verified

    def _transfer_info(self, source: DeepSpeedSource) -> TrainerInitInfo:
        rank = self.rank
        num_workers = len(self.engines) * self.workers_per_engine
        match self.transport:
            case Transport.SHARED_MEMORY:
                return SharedMemoryTrainerInit(rank=rank)
            case Transport.GLOO:
                host = ray.util.get_node_ip_address()
                return GlooTrainerInit(rank=rank, num_workers=num_workers, host=host)
            case Transport.CUDA_IPC:
                return ipc_info(source, rank=rank)
            case Transport.NCCL:
                return NCCLTrainerInitInfo(
                    rank=rank,
                    master_address=ray.util.get_node_ip_address(),
                    master_port=get_open_port(),
                    world_size=num_workers + 1,
                )

    def _source(self) -> DeepSpeedSource:
        tied = self.model.config.tie_word_embeddings and self.device == "cpu"
        return DeepSpeedSource(
            self.model,
            tied_output="lm_head.weight" if tied else None,
            merged=not self.sends_adapters,
        )

    def _send_model(self) -> SendReport:
        """The weights; with adapters merged in, or where those are sent apart, without them."""
        assert self.transfer is not None
        self.transfer.send_weights()
        return SendReport(digests=self.sent.sent, num_bytes=self.sent.sent_bytes)

    def _send_adapter(self) -> SendReport:
        tensors = trained_tensors(self.model)
        if self.rank != 0:
            return SendReport(digests={}, num_bytes=0)
        files = ray.put(adapter_files(self.model, tensors))
        load = [
            engine.call.remote(lambda s, f: s.load_adapter(f), files) for engine in self.engines
        ]
        ray.get(load)
        return SendReport(
            digests=checksums(tensors.items()),
            num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        )


def ipc_info(source: WeightSource, *, rank: int) -> IPCTrainerInitInfo:
    """Of a transfer through GPU memory, in pieces that the largest tensor fits into: vLLM refuses
    one that is larger."""
    largest = max(torch.Size(m.shape).numel() * m.dtype.itemsize for m in source.metadata())
    return IPCTrainerInitInfo(
        rank=rank,
        packed=True,
        packed_buffer_size_bytes=max(largest, DEFAULT_PACKED_BUFFER_SIZE_BYTES),
    )
