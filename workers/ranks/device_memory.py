"""What a rank holds on its device, and how it leaves the device to others and comes back.

DeepSpeed's `offload_states` knows some of its optimizers, and what they hold differs from one to
the next. Here the memory itself goes: every tensor and every view of it stays as it is and finds
its contents again afterwards, whichever optimizer, stage and dtype it is of.
"""

# torch types storages too loosely for these.
# pyright: reportPrivateImportUsage=false

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

HOST_BLOCK_BYTES = 256 * 2**20
"""Of pinned memory, of which torch rounds every piece up to a power of two."""


class DeviceMemory:
    """The memory of tensors, on a device that is shared with others in turns."""

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], *, device: torch.device) -> None:
        """tensors: all that are held at the time, on any device; those elsewhere stay there."""
        self._tensors = tensors
        self._device = device
        self._left: dict[UntypedStorage, int] = {}
        """The bytes of each memory that is in the host now, in their order."""
        self._host: list[Tensor] = []

    @property
    def is_left(self) -> bool:
        """Whether it is in the host: nothing may compute with the tensors, read or write them."""
        return bool(self._left)

    def leave(self, *, unchanged: bool = False) -> None:
        """Free the device, if that was not done; unchanged: the host still has the contents."""
        if self.is_left:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # also what other streams still do with it
        self._left = {storage: storage.nbytes() for storage in self._on_device()}
        if not (unchanged and self._host):
            for on_device, in_host in self._pieces():
                in_host.copy_(on_device, non_blocking=True)
            self._synchronize()
        for storage in self._left:
            storage.resize_(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def come_back(self) -> None:
        """Undo `leave`."""
        for storage, num_bytes in self._left.items():
            storage.resize_(num_bytes)
        for on_device, in_host in self._pieces():
            on_device.copy_(in_host, non_blocking=True)
        self._synchronize()
        self._left = {}

    def _on_device(self) -> list[UntypedStorage]:
        """Each once, however many tensors are views of it."""
        found: dict[int, UntypedStorage] = {}
        for tensor in self._tensors():
            if tensor.device == self._device and tensor.untyped_storage().nbytes():
                found.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return list(found.values())

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All bytes (uint8) on the device, which are there, and their place in the host.

        They lie in the host's blocks end to end.
        """
        offset = 0
        for storage, num_bytes in self._left.items():
            contents = torch.empty(0, dtype=torch.uint8, device=self._device).set_(storage)
            start = 0
            while start < num_bytes:
                block, inside = divmod(offset, HOST_BLOCK_BYTES)
                if block == len(self._host):
                    self._host.append(self._host_block())
                size = min(num_bytes - start, HOST_BLOCK_BYTES - inside)
                yield contents[start : start + size], self._host[block][inside : inside + size]
                start += size
                offset += size

    def _host_block(self) -> Tensor:
        pinned = self._device.type == "cuda"
        return torch.empty(HOST_BLOCK_BYTES, dtype=torch.uint8, pin_memory=pinned)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()


class Guest:
    """A frozen model: it stays on its device, or where that is another role's comes for calls."""

    def __init__(
        self, tensors: Callable[[], Iterable[Tensor]], *, device: torch.device, is_guest: bool
    ) -> None:
        """tensors: as in `DeviceMemory`."""
        self._memory = DeviceMemory(tensors, device=device) if is_guest else None
        if self._memory is not None:
            self._memory.leave()

    @contextmanager
    def present(self, *, changes: bool = False) -> Iterator[None]:
        """On its device; changes: whether the weights are others afterwards."""
        if self._memory is None:
            yield
            return
        self._memory.come_back()
        try:
            yield
        finally:
            self._memory.leave(unchanged=not changes)


def tensors_of_engine(engine: Any) -> Iterator[Tensor]:
    """Parameters, gradients and shards of a DeepSpeed engine, and all that its optimizer holds."""
    engine.empty_partition_cache()  # lets go of parameters that ZeRO-3 has gathered
    held = [list(engine.parameters()), list(engine.buffers()), engine.optimizer]
    return _tensors(held, seen=set())


def tensors_of_module(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    return chain(module.parameters(), module.buffers())


def _tensors(holder: Any, *, seen: set[int]) -> Iterator[Tensor]:
    """All tensors that are reached through containers, tensors and DeepSpeed's own objects."""
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, Tensor):
        yield holder
        if holder.is_leaf and holder.grad is not None:
            yield holder.grad
        parts: Iterable[Any] = vars(holder).values()  # ds_tensor, grad_accum and their like
    elif isinstance(holder, Mapping):
        parts = holder.values()
    elif isinstance(holder, list | tuple | set | deque):
        parts = holder
    elif isinstance(holder, nn.Module) or not _is_state(holder):
        return
    else:
        parts = vars(holder).values()
    for part in list(parts):
        yield from _tensors(part, seen=seen)


def _is_state(holder: Any) -> bool:
    """Whether it is an optimizer, or what DeepSpeed keeps beside one."""
    ours = type(holder).__module__.startswith("deepspeed.runtime")
    return hasattr(holder, "__dict__") and (ours or isinstance(holder, torch.optim.Optimizer))
