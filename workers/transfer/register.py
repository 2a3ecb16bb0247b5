"""Makes our transports known to vLLM, and what we put in the place of its own."""

from vllm.distributed.weight_transfer.factory import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)

from rlstack.planning.phases import Transport
from workers.transfer.gloo import GlooEngine, GlooTrainerEngine
from workers.transfer.shared_memory import SharedMemoryEngine, SharedMemoryTrainerEngine
from workers.transfer.verified import VerifiedIPCEngine, VerifiedNCCLEngine

ENGINES = {
    Transport.SHARED_MEMORY: SharedMemoryEngine,
    Transport.GLOO: GlooEngine,
    Transport.CUDA_IPC: VerifiedIPCEngine,
    Transport.NCCL: VerifiedNCCLEngine,
}
TRAINERS = {
    Transport.SHARED_MEMORY: SharedMemoryTrainerEngine,
    Transport.GLOO: GlooTrainerEngine,
}


def register() -> None:
    """Once per process; again does nothing."""
    for transport, engine in ENGINES.items():
        # `ipc` and `nccl` stand there already, and registering twice is refused.
        WeightTransferEngineFactory._registry.pop(transport.value, None)  # pyright: ignore
        WeightTransferEngineFactory.register_engine(transport.value, engine)
    for transport, trainer in TRAINERS.items():
        WeightTransferTrainerFactory._registry.pop(transport.value, None)  # pyright: ignore
        WeightTransferTrainerFactory.register_engine(transport.value, trainer)
