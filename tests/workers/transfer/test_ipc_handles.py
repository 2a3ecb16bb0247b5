"""Handles of GPU memory on their way to the engines, through vLLM's own messages.

No GPU is here: a handle is opened by what stands for CUDA, all else is vLLM's and torch's.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.packed_tensor import PackedBufferImporter, packed_ipc_consumer
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from rlstack.planning.phases import Transport
from tests.workers.launch.test_environment import engine
from workers.launch.environment import engine_environment

UUID = "GPU-0"
HANDLE = b"cudaIpcMemHandle \xff"


def handle(buffer: Tensor) -> tuple[Any, ...]:
    """As `torch.multiprocessing.reductions.reduce_tensor` describes a CUDA tensor."""
    size = buffer.nbytes
    place = (type(buffer), buffer.size(), buffer.stride(), 0, torch.storage.TypedStorage)
    return (*place, buffer.dtype, 7, HANDLE, size, 0, False, b"counter", 0, b"event", True)


def update_info(buffer: Tensor) -> dict[str, Any]:
    """As vLLM's trainer sends a chunk of two tensors."""
    return {
        "names": ["a", "b"],
        "dtype_names": ["float32", "bfloat16"],
        "shapes": [[2, 3], [4]],
        "ipc_handles": {UUID: handle(buffer)},
        "tensor_sizes": [24, 8],
    }


def sent(info: dict[str, Any]) -> dict[str, Any]:
    """Through the messages of vLLM's front to its engine process and back out."""
    call = (0, 1, "collective_rpc", ("update_weights", None, (), {"update_info": info}))
    message = [bytes(part) for part in MsgpackEncoder().encode(call)]
    *_, (_, _, _, named) = MsgpackDecoder().decode(message)
    return named["update_info"]


def test_handles_arrive_in_an_engine_that_has_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in engine_environment(engine(transport=Transport.CUDA_IPC), threads=1).items():
        monkeypatch.setenv(name, value)
    first, second = torch.arange(6.0).view(2, 3), torch.arange(4.0).to(torch.bfloat16)
    memory = torch.cat([first.view(-1).view(torch.uint8), second.view(torch.uint8)])
    opened: list[tuple[Any, ...]] = []

    def open_handle(*arguments: Any) -> torch.UntypedStorage:
        opened.append(arguments)
        return memory.untyped_storage()

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    properties = SimpleNamespace(uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.storage.TypedStorage, "_new_shared_cuda", open_handle)
    info = IPCWeightTransferUpdateInfo(**sent(update_info(memory)))
    assert isinstance(info.ipc_handles, dict)
    importer = PackedBufferImporter()
    for _ in range(2):  # the second chunk finds the buffer open
        loaded = packed_ipc_consumer(
            info.ipc_handles,
            info.names,
            info.shapes,
            info.dtype_names,
            info.tensor_sizes or [],
            device_index=0,
            importer=importer,
        )
    ((device, opened_handle, num_bytes, *_),) = opened
    assert (device, opened_handle, num_bytes) == (0, HANDLE, 32)
    assert [name for name, _ in loaded] == ["a", "b"]
    assert torch.equal(loaded[0][1], first)
    assert torch.equal(loaded[1][1], second)


def test_without_it_vllm_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = engine_environment(engine(transport=Transport.NCCL), threads=1)
    assert "VLLM_ALLOW_INSECURE_SERIALIZATION" not in environment
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
    with pytest.raises(TypeError, match="VLLM_ALLOW_INSECURE_SERIALIZATION"):
        sent(update_info(torch.zeros(32, dtype=torch.uint8)))
