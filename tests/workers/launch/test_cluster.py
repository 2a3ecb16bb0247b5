"""Clusters that do not answer are named at once; what one has."""

import os
import socket

import pytest
import ray

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
