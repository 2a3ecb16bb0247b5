"""Processes are where their placement says; GPUs that Ray is told of stand for real ones."""

import asyncio
import logging
import os
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from rlstack.config.placement import RolePlacement
from rlstack.planning.layouts import RoleName
from rlstack.planning.placement import place
from tests.planning.clusters import run
from tests.workers.conftest import faults_config
from workers.actors import WATCH
from workers.launch.actors import Actors
from workers.launch.cluster import describe
from workers.launch.environment import trainer_environment
from workers.progress import work
from workers.specs import Progress

pytestmark = pytest.mark.real_stack

Place = tuple[str, str]
"""Node and GPUs."""


class Probe:
    """An actor that says where it runs."""

    def place(self) -> Place:
        return ray.get_runtime_context().get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"]

    @ray.method(concurrency_group=WATCH)
    def progress(self) -> Progress:
        return work.progress()


@pytest.fixture
def two_nodes() -> Iterator[None]:
    nodes = RayCluster(
        initialize_head=True,
        head_node_args={"num_cpus": 8, "num_gpus": 2, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=9, num_gpus=2)
    ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.usefixtures("two_nodes")
def test_roles_that_share_gpus_see_the_same_ones_on_the_same_node() -> None:
    cluster = describe()
    assert [(node.cpus, node.gpus) for node in cluster.nodes] == [(8, 2), (9, 2)]
    assert [node.cores for node in cluster.nodes] == [os.cpu_count(), 9]
    with_policy = RolePlacement(ranks=3, devices="policy")
    spec = run(critic=with_policy, trainer_ranks=4, num_engines=2, tensor_parallel=2)
    actors = Actors(place(spec, cluster), faults_config())
    environment = trainer_environment(device="gpu", threads=1)

    async def places(role: RoleName) -> list[Place]:
        probes = [
            actors.start(role, index, Probe, environment=environment)
            for index in range(actors.placement.layouts[role].data_parallel)
        ]
        return await asyncio.gather(*(probe.place.remote() for probe in probes))

    async def all_places() -> tuple[list[Place], list[Place], list[Place]]:
        await actors.reserve()
        policy = await places("policy")
        actors.policy_gpus = [gpus for _, gpus in policy]
        return policy, await places("critic"), await places("engines")

    try:
        policy, critic, engines = asyncio.run(all_places())
    finally:
        actors.stop()
    assert len(set(policy)) == 4, "two ranks of the policy share a GPU"
    assert critic == policy[:3]
    for index, (node, gpus) in enumerate(engines):
        ranks = policy[2 * index : 2 * index + 2]
        assert {rank_node for rank_node, _ in ranks} == {node}
        assert gpus.split(",") == [rank_gpus for _, rank_gpus in ranks]
