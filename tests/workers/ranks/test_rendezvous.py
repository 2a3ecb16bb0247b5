"""Ranks that do not find each other are told what to do."""

import os
import subprocess
import sys

PROGRAM = """
from torch.distributed import HashStore
from rlstack.errors import WorkerError
from rlstack.planning.mesh import Mesh
from workers.ranks.rendezvous import ProcessGroup

group = ProcessGroup(mesh=Mesh.of_rank(0, world_size=1), device="cpu")
group.store = HashStore()
try:
    group.join(address="localhost", port=1)
except WorkerError as error:
    print(error)
"""


def test_an_interface_that_is_not_there() -> None:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "nowhere", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "gloo: the processes do not reach each other" in done.stdout, done.stderr
    assert "GLOO_SOCKET_IFNAME=eth0" in done.stdout
