"""What vLLM loads into its own workers: our transports, checksums of what they received."""

import ctypes
import hashlib
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from vllm.lora.request import LoRARequest

from workers import transports
from workers.specs import ADAPTER_WEIGHTS
from workers.transfer import digest

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have Linux end this process when the engine's actor dies, however it dies.

    vLLM's processes outlive an actor that was killed, and keep their memory.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


transports.register()
die_with_parent()


class WeightExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    weight_transfer_engine: Any
    model_runner: Any
    add_lora: Any

    def received_weight_digests(self) -> dict[str, int]:
        """Checksum of every tensor of the last update, as it arrived in this worker."""
        return dict(self.weight_transfer_engine.received)

    def load_adapter(self, folder: str, name: str, number: int) -> dict[str, int]:
        """Replace the adapter by that in `folder`; the checksum of every tensor as it was read."""
        received = {n: digest(t) for n, t in load_file(Path(folder) / ADAPTER_WEIGHTS).items()}
        request = LoRARequest(name, number, folder, load_inplace=True)
        if not self.add_lora(request):
            raise RuntimeError(f"vLLM did not load the adapter {name}")
        return received

    def adapter_checksums(self) -> dict[str, str]:
        """Of the adapters' tensors as the layers of this worker hold them."""
        found: dict[str, str] = {}
        for name, module in self.model_runner.get_model().named_modules():
            for kind in ("lora_a_stacked", "lora_b_stacked"):
                stacked = getattr(module, kind, ())
                parts = (stacked,) if isinstance(stacked, Tensor) else stacked
                for index, part in enumerate(parts):
                    contents = part.cpu().contiguous().view(-1).view(torch.uint8).numpy()
                    found[f"{name}.{kind}.{index}"] = hashlib.sha256(contents).hexdigest()
        return found
