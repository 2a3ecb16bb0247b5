"""How the ranks of a group find each other: one store, a process group, DeepSpeed on top of it."""

# DeepSpeed is typed too loosely, or wrongly, for these.
# pyright: reportPrivateImportUsage=false

import os
from contextlib import nullcontext

import deepspeed
import ray
import torch
from torch.distributed import TCPStore

from rlstack.planning.mesh import Mesh
from workers.transfer.gloo_errors import gloo_explained


class ProcessGroup:
    """One rank's part in it."""

    def __init__(self, *, mesh: Mesh, device: str) -> None:
        self.rank = mesh.rank
        self.world_size = mesh.world_size
        self.device = device

    def address(self) -> tuple[str, int]:
        """Open the group's store and return its address and port; called on rank 0 only."""
        address = ray.util.get_node_ip_address()
        # Port 0: the system picks one that is free, and this process keeps it.
        self.store = TCPStore(address, 0, self.world_size, True, wait_for_workers=False)
        return address, self.store.port

    def join(self, *, address: str, port: int) -> None:
        """Wait until all ranks are there; DeepSpeed is ready then.

        Raises:
            WorkerError: if they do not reach each other, on CPUs.
        """
        os.environ |= {
            "RANK": str(self.rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        if self.rank != 0:
            self.store = TCPStore(address, port, self.world_size, False)
        backend = "gloo" if self.device == "cpu" else "nccl"
        with gloo_explained() if backend == "gloo" else nullcontext():
            torch.distributed.init_process_group(
                backend, store=self.store, rank=self.rank, world_size=self.world_size
            )
        if self.device == "cpu":
            # DeepSpeed would compile C++ here, half a minute the first time, for inference only.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
