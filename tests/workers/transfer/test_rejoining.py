"""An engine that connects to the trainer again; what stands for NCCL notes what is done with it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import nccl_engine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

from rlstack.planning.phases import Transport
from workers.transfer import register as transports


def test_the_communicator_of_before_is_destroyed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def communicator(init_info: NCCLWeightTransferInitInfo, _: Any) -> Any:
        name = str(init_info.master_port)
        events.append(f"open {name}")
        return SimpleNamespace(destroy=lambda: events.append(f"destroy {name}"))

    monkeypatch.setattr(nccl_engine, "worker_init_process_group", communicator)
    transports.register()
    transports.register()  # once in the extension, perhaps again elsewhere
    engine: Any = WeightTransferEngineFactory.create_engine(
        WeightTransferConfig(backend=Transport.NCCL.value),
        SimpleNamespace(parallel_config=None, model_config=None),  # type: ignore[arg-type]
        torch.device("cpu"),
        nn.Linear(1, 1),
    )
    for port in (1, 2):
        engine.init_transfer_engine(
            NCCLWeightTransferInitInfo(
                master_address="localhost", master_port=port, rank_offset=1, world_size=2
            )
        )
    assert events == ["open 1", "destroy 1", "open 2"]
    engine.shutdown()
    assert events[3:] == ["destroy 2"]
