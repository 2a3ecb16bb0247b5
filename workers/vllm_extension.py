"""What vLLM loads into its own workers: our transports, checksums of what they received."""

import ctypes
import signal
import sys
from typing import Any

from workers import transports

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

    def received_weight_digests(self) -> dict[str, int]:
        """Checksum of every tensor of the last update, as it arrived in this worker."""
        return dict(self.weight_transfer_engine.received)
