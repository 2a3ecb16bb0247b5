"""Handles of GPU memory on their way to an engine's workers, through vLLM's own queue.

No GPU is here: a handle is opened by what stands for CUDA, all else is vLLM's and torch's.
"""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.packed_tensor import PackedBufferImporter, packed_ipc_consumer

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
    """As vLLM's core tells its workers, where an engine has several."""
    core = MessageQueue(n_reader=1, n_local_reader=1)
    worker = MessageQueue.create_from_handle(core.export_handle(), rank=0)
    with ThreadPoolExecutor(max_workers=1) as executor:
        ready = executor.submit(core.wait_until_ready)
        worker.wait_until_ready()
        ready.result()
    core.enqueue(("update_weights", (), {"update_info": info}, None))
    _, _, named, _ = worker.dequeue(timeout=10)
    return named["update_info"]


def test_they_open_the_buffer_once_and_give_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
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
