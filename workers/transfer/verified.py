"""vLLM's own transports between GPUs, with checksums at both ends."""

# vLLM is typed too loosely for these.
# pyright: reportIncompatibleMethodOverride=false, reportAbstractUsage=false

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, WeightTransferEngine
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

from workers.transfer.checksum import checksums
from workers.transfer.rejoining import RejoiningNCCLEngine


class _LoadsAndRemembers:
    """A model that takes in weights through `load_weights` alone."""

    def __init__(self, model: nn.Module, received: dict[str, int]) -> None:
        self.model = model
        self.received = received

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        arrived = list(weights)
        self.received |= checksums(arrived)
        return self.model.load_weights(arrived)  # pyright: ignore[reportCallIssue]


class VerifiedEngine(WeightTransferEngine[Any, Any]):
    """Mixed in before one of vLLM's engines: keeps the checksum of each tensor that arrives."""

    received: dict[str, int]
    """Of the last update, by name."""

    def start_weight_update(self) -> None:
        self.received = {}
        super().start_weight_update()

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _LoadsAndRemembers(model, self.received)
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model


class VerifiedIPCEngine(VerifiedEngine, IPCWeightTransferEngine):
    """Worker side of `ipc`."""


class VerifiedNCCLEngine(VerifiedEngine, RejoiningNCCLEngine):
    """Worker side of `nccl`."""


class VerifiedSource(WeightSource):
    """Another source; where `is_sender`, it keeps the checksum of each tensor that is taken.

    On GPUs the sums are two more reads of the weights, in the stream that gathered them.
    """

    def __init__(self, source: WeightSource, *, is_sender: bool) -> None:
        self.source = source
        self.is_sender = is_sender
        self.sent: dict[str, int] = {}
        self.sent_bytes = 0

    def metadata(self) -> list[ParamMeta]:
        return self.source.metadata()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for names, tensors in self.iter_groups():
            yield from zip(names, tensors, strict=True)

    def iter_groups(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        self.sent, self.sent_bytes = {}, 0
        for names, tensors in self.source.iter_groups():
            if self.is_sender:
                self.sent |= checksums(zip(names, tensors, strict=True))
                self.sent_bytes += sum(tensor.nbytes for tensor in tensors)
            yield names, tensors
