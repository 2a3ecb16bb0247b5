"""Clusters that do not answer are named at once; what one has."""

import os
import socket
import subprocess
import sys

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from rlstack.errors import PlacementError
from workers.launch.cluster import check_reachable, describe, join


def test_a_port_where_nothing_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        check_reachable(f"ray://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["auto", "local"])
def test_addresses_without_a_port_are_left_to_ray(address: str) -> None:
    check_reachable(address)


def test_a_port_that_answers() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        check_reachable(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_port_that_answers_on_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        check_reachable(f"[::1]:{server.getsockname()[1]}")


@pytest.mark.real_stack
def test_what_a_cluster_has() -> None:
    num_cores = os.cpu_count()
    assert num_cores is not None
    join(None, cpus=num_cores + 3)
    try:
        (node,) = describe().nodes
        assert socket.gethostname() in node.name
        assert (node.cpus, node.cores) == (num_cores + 3, num_cores)
        assert node.gpus == int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()


def test_ray_address_of_the_environment_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{probe.getsockname()[1]}")
    with pytest.raises(PlacementError, match="RAY_ADDRESS"):
        join(None, cpus=1)


@pytest.mark.real_stack
def test_a_cluster_on_this_machine_that_was_not_named_is_not_joined() -> None:
    """In a process of its own: this one may be in a cluster."""
    program = (
        "from workers.launch.cluster import describe, join; join(None, cpus=3);"
        "print([node.cpus >= 3 for node in describe().nodes])"
    )
    others = RayCluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
    finally:
        others.shutdown()
    assert done.stdout.strip() == "[True]", done.stderr
