"""The worker's end of a transport in this process, and a client that brings accidents about."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    WeightSource,
    WeightTransferEngine,
    WeightTransferUpdatePayload,
)
from vllm.model_executor.model_loader.reload.layerwise import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader


class LoadingModel(nn.Module):
    """What vLLM's models have: it takes in weights by their names."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            layer = nn.Module()
            layer.weight = nn.Parameter(torch.zeros(shape), requires_grad=False)
            self.add_module(name.removesuffix(".weight"), layer)
        record_metadata_for_reloading(self)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.named_parameters())
        for name, weight in weights:
            parameter = parameters[name]
            loader = getattr(parameter, "weight_loader", default_weight_loader)
            loader(parameter, weight)


class Tensors(WeightSource):
    """Weights that can be changed from one transfer to the next."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(n, t.dtype, tuple(t.shape)) for n, t in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.tensors.items()


def worker_engine(kind: type[WeightTransferEngine[Any, Any]], model: nn.Module) -> Any:
    model_config = SimpleNamespace(dtype=torch.float32)
    vllm_config = SimpleNamespace(
        parallel_config=SimpleNamespace(rank=0), model_config=model_config
    )
    return kind(
        config=None,  # pyright: ignore[reportArgumentType]
        vllm_config=vllm_config,  # pyright: ignore[reportArgumentType]
        device=torch.device("cpu"),
        model=model,
    )


@dataclass
class LocalClient:
    """Calls a worker's engine in this process; `accident` changes what it is told."""

    engine: Any
    accident: Any = field(default=lambda info: info)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.engine.init_transfer_engine(self.engine.parse_init_info(init_info))

    def start_weight_update(self) -> None:
        self.engine.start_weight_update()

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        info = self.accident(update_info)
        if info is not None:
            self.engine.receive_weights(self.engine.parse_update_info(info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        assert weight_version is None
        self.engine.finish_weight_update()
