"""Meeting a Ray cluster, or starting one inside this process."""

import os
import socket

import ray

from rlstack.errors import PlacementError

CONNECT_TIMEOUT_S = 5.0


def join(address: str | None, *, cpus: int) -> None:
    """Join the cluster at `address` (auto or host:port); None: start one with at least `cpus` CPUs.

    Raises:
        PlacementError: if none answers there.
    """
    if address is not None:
        try:
            check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise PlacementError(
                f"ray_address: no Ray cluster answers at {address!r}; start one with "
                f"`ray start --head`, or leave ray_address=null to run inside this command: {error}"
            ) from error
        return
    # Phases take turns, so more logical CPUs than cores is no overload.
    ray.init(
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        # Ray would start a process for each CPU now, and none has the environment of an actor.
        _system_config={"prestart_worker_first_driver": False},
    )


def check_reachable(address: str) -> None:
    """Raise OSError at once if nothing listens at host:port; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
