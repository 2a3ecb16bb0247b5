"""Joining a Ray cluster, or starting one inside this process; what it has."""

# Ray's handles are typed too loosely for these.
# pyright: reportArgumentType=false

import os
import socket
from typing import Any

import ray

from rlstack.errors import PlacementError
from rlstack.planning.cluster import Cluster, Node

CONNECT_TIMEOUT_S = 5.0
LOCAL = "local"
HEAD_RESOURCE = "node:__internal_head__"
"""What Ray gives to the head of a cluster alone."""


def join(address: str | None, *, cpus: int) -> bool:
    """Join the cluster at `address` (auto or host:port), or start one with at least `cpus` CPUs.

    address: None: that of RAY_ADDRESS, which Ray sets in its jobs; without it, or with "local",
        a cluster inside this process.

    Returns whether the cluster was there before.

    Raises:
        PlacementError: if none answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if address != LOCAL:
        try:
            check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise PlacementError(
                f"ray_address (or RAY_ADDRESS): no Ray cluster answers at {address!r}; start one "
                f"with `ray start --head`, or run inside this command with ray_address=local: "
                f"{error}"
            ) from error
        return True
    # Phases take turns, so more logical CPUs than cores is no overload.
    ray.init(
        # Without it Ray joins any cluster that it finds on this machine.
        address=LOCAL,
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        # Ray would start a process for each CPU now, and none has the environment of an actor.
        _system_config={"prestart_worker_first_driver": False},
    )
    return False


def check_reachable(address: str) -> None:
    """Raise OSError at once if nothing listens at host:port; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def describe() -> Cluster:
    """The living nodes of the cluster that was joined."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: HEAD_RESOURCE not in node["Resources"])
    here = ray.get_runtime_context().get_node_id()
    return Cluster(nodes=tuple(_node(node, here=node["NodeID"] == here) for node in alive))


def node_name(node: dict[str, Any]) -> str:
    """As messages name it."""
    return f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"


def _node(node: dict[str, Any], *, here: bool) -> Node:
    cpus = float(node["Resources"].get("CPU", 0.0))
    # Ray says what may be reserved; this machine's cores are known, and elsewhere the two are
    # equal unless `ray start --num-cpus` says otherwise.
    cores = os.cpu_count() if here else int(cpus)
    return Node(
        name=node_name(node),
        cpus=cpus,
        gpus=int(node["Resources"].get("GPU", 0)),
        cores=max(1, cores or 1),
    )
