"""A node that does not see the run directory is named before anything is started."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from rlstack.errors import PlacementError
from workers.launch import shared_disk
from workers.launch.cluster import node_name
from workers.launch.shared_disk import check_shared

pytestmark = pytest.mark.real_stack


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayCluster]:
    head = {"num_cpus": 1, "include_dashboard": False}
    nodes = RayCluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.usefixtures("two_nodes")
def test_nodes_that_share_the_disk_pass_and_nothing_is_left_there(tmp_path: Path) -> None:
    asyncio.run(check_shared(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("two_nodes")
def test_a_node_without_the_disk_is_named(tmp_path: Path) -> None:
    _, blind = sorted(ray.nodes(), key=lambda node: node["NodeID"])
    node_id = blind["NodeID"]

    def read(file: str) -> str | None:
        here = ray.get_runtime_context().get_node_id()
        return None if here == node_id else Path(file).read_text()

    with pytest.raises(PlacementError) as caught:
        asyncio.run(check_shared(tmp_path, read=read))
    assert f"{node_name(blind)} sees nothing" in str(caught.value)
    assert str(caught.value).count("sees nothing") == 1
    assert str(tmp_path) in str(caught.value)


@pytest.mark.usefixtures("two_nodes")
def test_a_node_that_hangs_on_the_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_disk, "ANSWER_WITHIN_S", 1.0)

    def read(file: str) -> str | None:
        import time

        time.sleep(60)
        return None

    with pytest.raises(PlacementError, match="is silent"):
        asyncio.run(check_shared(tmp_path, read=read))


@pytest.mark.usefixtures("two_nodes")
def test_a_node_whose_processes_die_is_named(tmp_path: Path) -> None:
    def read(file: str) -> str | None:
        import os

        os._exit(1)

    with pytest.raises(PlacementError, match="is silent"):
        asyncio.run(check_shared(tmp_path, read=read))
