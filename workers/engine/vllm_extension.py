"""What vLLM loads into its own workers: our transports, checksums of what they received."""

# vLLM is typed too loosely for these.
# pyright: reportArgumentType=false

import ctypes
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from vllm.lora.request import LoRARequest

from workers.specs import ADAPTER_WEIGHTS
from workers.transfer import register as transports
from workers.transfer.checksum import checksums

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have Linux end this process when the engine's actor dies, however it dies.

    vLLM's processes outlive an actor that was killed, and keep their memory.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


transports.register()
if multiprocessing.parent_process() is not None:  # a tensor-parallel worker, no actor
    die_with_parent()


class WeightExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    weight_transfer_engine: Any
    model_runner: Any
    add_lora: Any
    finish_weight_update: Any
    _weight_update_active: bool

    def received_digests(self) -> dict[str, int]:
        """Checksums of the tensors of the last update and of the adapter, as they arrived here."""
        weights: dict[str, int] = getattr(self.weight_transfer_engine, "received", {})
        adapter: dict[str, int] = getattr(self, "adapter_received", {})
        return weights | adapter

    def end_weight_update(self) -> None:
        """End an update that was left in the middle: layers that are half loaded stay so."""
        if self._weight_update_active:
            self.finish_weight_update()

    def load_adapter(self, folder: str, name: str, number: int) -> None:
        """Replace the adapter by that in `folder`."""
        self.adapter_received = checksums(load_file(Path(folder) / ADAPTER_WEIGHTS).items())
        request = LoRARequest(name, number, folder, load_inplace=True)
        if not self.add_lora(request):
            raise RuntimeError(f"vLLM did not load the adapter {name}")

    def parameter_checksums(self) -> dict[str, int]:
        """Of the model's parameters as this worker holds them: fused, padded, its own slices."""
        return checksums(self.model_runner.get_model().named_parameters())

    def adapter_checksums(self) -> dict[str, int]:
        """Of the adapters' tensors as the layers of this worker hold them."""
        found: dict[str, Tensor] = {}
        for name, module in self.model_runner.get_model().named_modules():
            for kind in ("lora_a_stacked", "lora_b_stacked"):
                stacked = getattr(module, kind, ())
                parts = (stacked,) if isinstance(stacked, Tensor) else stacked
                found |= {f"{name}.{kind}.{index}": part for index, part in enumerate(parts)}
        return checksums(found.items())
