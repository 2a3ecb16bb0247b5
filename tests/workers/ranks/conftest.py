"""DeepSpeed in the test's own process, and what that process holds."""

import gc
from collections.abc import Iterator

import deepspeed
import pytest
import torch
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rlstack.planning.mesh import Mesh
from workers.ranks.device_memory import DeviceMemory
from workers.ranks.rendezvous import ProcessGroup

SMALL = 4096
"""Bytes of what may stay on a device that was left: counters of optimizers."""


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """Of this process alone; DeepSpeed keeps it for all trainers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")  # so that what `join` sets is undone
        patch.setenv("DS_ACCELERATOR", "cpu")
        group = ProcessGroup(mesh=Mesh.of_rank(0, world_size=1), device="cpu")
        group.store = torch.distributed.TCPStore("127.0.0.1", 0, 1, True)
        group.join(address="127.0.0.1", port=group.store.port)
        yield
        deepspeed.comm.destroy_process_group()


@pytest.fixture
def deepspeed_here(process_group: None) -> Iterator[None]:
    """Ranks of one process may be started in this one; the next find nothing of them."""
    yield
    unset_hf_deepspeed_config()  # of a rank that is not collected yet


def held_bytes(*, beside: set[int], host: DeviceMemory) -> int:
    """Of all tensors of this process, each memory once, but for `beside` and what is in `host`."""
    besides = beside | {block.untyped_storage().data_ptr() for block in host._host}
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            if storage.data_ptr() not in besides:
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def memories() -> set[int]:
    """Of the tensors that there are now."""
    gc.collect()
    return {
        thing.untyped_storage().data_ptr()
        for thing in gc.get_objects()
        if isinstance(thing, Tensor) and thing.device.type == "cpu"
    }
